"""What `vconv verify` must find, with every hash recomputed as a forger would."""

from __future__ import annotations

import io
import json
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import helper, numpy_helper
from safetensors.numpy import load, save

from tiny_model import exported, reseal
from vconv.bundle import Bundle
from vconv.errors import ModelError
from vconv.export.golden import Golden
from vconv.export.verify import Comparison, comparisons, verify


@pytest.fixture(scope="session")
def whole() -> Path:
    return exported()


@pytest.fixture
def bundle(whole: Path, tmp_path: Path) -> Path:
    """A copy that may be spoilt."""
    return Path(shutil.copytree(whole, tmp_path / "tiny"))


def first_failure(bundle: Path) -> Comparison:
    reseal(bundle)
    failure = next((c for c in comparisons(Bundle.open(bundle)) if not c.passed), None)
    assert failure is not None, "nothing was found"
    return failure


def test_a_fresh_export_passes_every_comparison(whole: Path) -> None:
    found = verify(whole, trust_code=True)
    assert [str(c) for c in found if not c.passed] == []
    made = {c.name for c in found if c.figure is not None}
    for part in (
        "encoder.onnx: codes against golden, differing",
        "conditioner.onnx: conditioning against golden",
        "torchscript engine: logits against golden",
        "torchscript engine: in chunks against one shot",
        "eager logits against golden.npz",
        "decoder.ts: logits against golden.npz",
        "decoder.ts: draws in chunks against one shot, differing",
    ):
        assert part in made


def test_the_comparisons_have_something_to_compare(whole: Path) -> None:
    golden = Golden.from_bytes((whole / "golden.npz").read_bytes(), "golden")
    assert len(np.unique(golden.codes)) >= 6
    assert golden.logits.shape == (1000, 256)
    assert golden.logits.std() > 0.5
    assert golden.conditioning.std() > 0.3
    assert len(np.unique(golden.forced)) > 50
    undecided = [c.note for c in verify(whole) if "more have two codes" in c.note]
    assert (
        all(note.endswith("0 more have two codes within 0.01)") for note in undecided) or undecided
    )


def test_every_format_that_was_released_is_still_read_and_verified() -> None:
    for path in sorted(Path(__file__).parent.glob("format-*")):
        assert [str(c) for c in verify(path) if not c.passed] == [], path.name


@pytest.mark.parametrize("figure", [2e-4, float("nan"), float("inf")])
def test_a_figure_beyond_its_bound_or_none_at_all_fails(figure: float) -> None:
    assert not Comparison("x", figure, 1e-4).passed
    assert str(Comparison("x", figure, 1e-4)).startswith("FAIL")


# ONNX


def initialisers(file: str) -> list[str]:
    model = onnx.load_from_string((exported() / file).read_bytes())
    floats = (i for i in model.graph.initializer if i.data_type == onnx.TensorProto.FLOAT)
    return [i.name for i in floats if np.prod(i.dims, dtype=int) > 1]


@pytest.mark.parametrize("file", ["encoder.onnx", "conditioner.onnx"])
def test_any_altered_weight_in_an_onnx_file_is_found(bundle: Path, file: str) -> None:
    data = (bundle / file).read_bytes()
    names = initialisers(file)
    assert len(names) >= 22
    for name in names:
        model = onnx.load_from_string(data)
        tensor = next(i for i in model.graph.initializer if i.name == name)
        array = numpy_helper.to_array(tensor).copy()
        array.flat[array.size // 2] += 1e-3
        tensor.CopyFrom(numpy_helper.from_array(array, name))
        (bundle / file).write_bytes(model.SerializeToString())
        assert first_failure(bundle).name.startswith(f"{file}: "), name


def test_a_weight_moved_to_a_name_of_its_own_is_found(bundle: Path) -> None:
    """The real one stays, unused: another tensor takes its place in the computation."""

    def hide(model: onnx.ModelProto) -> None:
        weight = "encoder.layers.4.conv.weight"
        tensor = next(i for i in model.graph.initializer if i.name == weight)
        altered = numpy_helper.from_array(numpy_helper.to_array(tensor) * 1.01, "hidden")
        model.graph.initializer.append(altered)
        for node in model.graph.node:
            for index, name in enumerate(node.input):
                node.input[index] = "hidden" if name == weight else name

    change_graph(bundle, hide)
    assert "of unknown origin" in first_failure(bundle).name


def test_an_altered_computation_is_found_by_golden(bundle: Path) -> None:
    def scale(model: onnx.ModelProto) -> None:
        model.graph.initializer.append(numpy_helper.from_array(np.float32(1.2), "gain"))
        last = next(n for n in model.graph.node if n.op_type == "Conv")
        last.input[0], old = "louder", last.input[0]
        at = list(model.graph.node).index(last)
        model.graph.node.insert(at, helper.make_node("Mul", [old, "gain"], ["louder"]))

    change_graph(bundle, scale)
    assert first_failure(bundle).name.startswith("encoder.onnx: codes")


def change_graph(bundle: Path, change: Callable[[onnx.ModelProto], object]) -> None:
    model = onnx.load_from_string((bundle / "encoder.onnx").read_bytes())
    change(model)
    (bundle / "encoder.onnx").write_bytes(model.SerializeToString())


# The other files


@pytest.mark.parametrize(
    "name",
    [
        "features.std",
        "encoder.layers.8.norm.running_var",
        "bottleneck.codebook",
        "speakers.weight",
        "decoder.conditioner.mix.bias",
        "decoder.wavenet.layers.0.condition.weight",
        "decoder.wavenet.layers.5.dilated.weight",
        "decoder.wavenet.logits.bias",
    ],
)
def test_an_altered_tensor_among_the_weights_is_found(bundle: Path, name: str) -> None:
    path = bundle / "weights.safetensors"
    tensors = {key: tensor.copy() for key, tensor in load(path.read_bytes()).items()}
    tensors[name].flat[0] += 0.01
    path.write_bytes(save(tensors))
    first_failure(bundle)


@pytest.mark.parametrize(
    "name",
    ["signal", "encodings", "latents", "codes", "speaker", "conditioning", "forced", "logits"],
)
def test_an_altered_golden_array_is_found(bundle: Path, name: str) -> None:
    path = bundle / "golden.npz"
    arrays = dict(np.load(path))
    arrays[name].flat[3] = arrays[name].flat[3] + 1
    path.write_bytes(Golden(**arrays).to_bytes())
    first_failure(bundle)


def test_features_altered_in_golden_are_found_with_torch(bundle: Path) -> None:
    path = bundle / "golden.npz"
    arrays = dict(np.load(path))
    arrays["features"][5, 5] += 0.01
    path.write_bytes(Golden(**arrays).to_bytes())
    assert first_failure(bundle).name == "eager features against golden.npz"


def test_an_altered_tensor_in_decoder_ts_is_found_without_running_it(bundle: Path) -> None:
    path = bundle / "decoder.ts"
    source = zipfile.ZipFile(io.BytesIO(path.read_bytes()))
    with zipfile.ZipFile(path, "w") as target:
        for entry in source.infolist():
            data = source.read(entry)
            if entry.filename.endswith("data/9"):
                floats = np.frombuffer(data, np.float32).copy()
                floats[7] += 0.01
                data = floats.tobytes()
            target.writestr(entry.filename, data)
    assert first_failure(bundle).name.startswith("decoder.ts: tensors against")


class Hostile(torch.nn.Module):
    """TorchScript runs __setstate__ when it loads the file."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x

    @torch.jit.export
    def __getstate__(self) -> tuple[torch.Tensor, bool]:
        return torch.zeros(1), self.training

    @torch.jit.export
    def __setstate__(self, state: tuple[torch.Tensor, bool]) -> None:
        self.training = state[1]
        raise RuntimeError("ran while it was loaded")


def test_code_in_decoder_ts_runs_only_when_trusted(bundle: Path) -> None:
    from vconv.nn.incremental import scripted

    scripted(Hostile()).save(str(bundle / "decoder.ts"))
    reseal(bundle)
    found = verify(bundle)  # would raise if it had run
    assert [c.name for c in found if not c.passed] == [
        "decoder.ts: tensors against weights.safetensors, packed"
    ]
    with pytest.raises(ModelError, match=r"decoder\.ts: cannot be run"):
        verify(bundle, trust_code=True)


@pytest.mark.parametrize("file", ["golden.npz", "decoder.ts"])
@pytest.mark.parametrize("content", [b"", b"text", b"PK\x05\x06" + bytes(18)], ids=repr)
def test_what_is_no_archive_is_refused(bundle: Path, file: str, content: bytes) -> None:
    (bundle / file).write_bytes(content)
    reseal(bundle)
    if file == "decoder.ts" and content.startswith(b"PK"):  # a zip file, but an empty one
        assert not all(c.passed for c in verify(bundle))
        return
    with pytest.raises(ModelError, match=file):
        verify(bundle)


def test_a_pickle_in_golden_is_refused_not_run(bundle: Path, tmp_path: Path) -> None:
    class Payload:
        def __reduce__(self) -> tuple[object, tuple[Path]]:
            return Path.touch, (tmp_path / "ran",)

    arrays = dict(np.load(bundle / "golden.npz"))
    np.savez(bundle / "golden.npz", **arrays | {"codes": np.array([Payload()], object)})
    reseal(bundle)
    with pytest.raises(ModelError, match=r"golden\.npz.*codes is damaged"):
        verify(bundle)
    assert not (tmp_path / "ran").exists()


def test_a_zip_bomb_in_golden_is_refused_before_it_is_unpacked(
    bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vconv.export.golden._MAX_BYTES", 5_000_000)
    verify(bundle)
    arrays = dict(np.load(bundle / "golden.npz"))
    with zipfile.ZipFile(bundle / "golden.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        for name in arrays:
            archive.writestr(f"{name}.npy", bytes(1_000_000))
    reseal(bundle)
    with pytest.raises(ModelError, match="too large"):
        verify(bundle)


def test_a_golden_header_that_claims_too_much_is_refused(bundle: Path) -> None:
    arrays = dict(np.load(bundle / "golden.npz"))
    header = b"{'descr': '<f4', 'fortran_order': False, 'shape': (100000000000,), }"
    header = header.ljust(117) + b"\n"
    lie = b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + bytes(8)
    with zipfile.ZipFile(bundle / "golden.npz", "w") as archive:
        for name in arrays:
            archive.writestr(f"{name}.npy", lie)
    reseal(bundle)
    with pytest.raises(ModelError, match="is damaged"):
        verify(bundle)


def test_golden_arrays_of_other_types_are_refused(bundle: Path) -> None:
    arrays = dict(np.load(bundle / "golden.npz"))
    arrays["codes"] = arrays["codes"].astype("U4")
    (bundle / "golden.npz").write_bytes(Golden(**arrays).to_bytes())
    reseal(bundle)
    with pytest.raises(ModelError, match=r"codes is <U4 \[67\]"):
        verify(bundle)


def test_golden_arrays_of_other_shapes_are_refused(bundle: Path) -> None:
    arrays = dict(np.load(bundle / "golden.npz"))
    arrays["logits"] = arrays["logits"][:10]
    (bundle / "golden.npz").write_bytes(Golden(**arrays).to_bytes())
    reseal(bundle)
    with pytest.raises(ModelError, match=r"logits is float32 \[10, 256\]"):
        verify(bundle)


def test_verifying_needs_neither_torch_nor_onnx(whole: Path) -> None:
    program = """
import importlib.abc, json, sys

class Without(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {"torch", "torchaudio", "onnx", "onnxscript", "scipy"}:
            raise ModuleNotFoundError(name, name=name)

sys.meta_path.insert(0, Without())
import importlib.util
found = importlib.util.find_spec
importlib.util.find_spec = lambda name, *rest: None if name == "torch" else found(name, *rest)
from vconv.export.verify import verify
print(json.dumps([[c.name, c.figure, c.passed] for c in verify(sys.argv[1])]))
"""
    done = subprocess.run(
        [sys.executable, "-c", program, str(whole)], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    found = {name: (figure, passed) for name, figure, passed in json.loads(done.stdout)}
    assert all(passed for _, passed in found.values())
    assert found["conditioner.onnx: conditioning against golden"][0] is not None
    assert found["encoder.onnx: weights against weights.safetensors"][0] == 0
    assert found["decoder.ts"][0] is None
