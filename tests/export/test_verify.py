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

from tiny_model import MEMBERS, exported, reseal
from vconv.bundle import Bundle
from vconv.errors import ModelError
from vconv.export.comparison import Comparison
from vconv.export.verify import comparisons, verify
from vconv.golden import Golden
from vconv.manifest import READABLE


@pytest.fixture(scope="session")
def whole() -> Path:
    return exported()


@pytest.fixture
def bundle(whole: Path, tmp_path: Path) -> Path:
    """A copy that may be spoilt."""
    return copy_of("vq", tmp_path)


def copy_of(member: str, folder: Path) -> Path:
    return Path(shutil.copytree(exported(member), folder / member))


def first_failure(bundle: Path) -> Comparison:
    reseal(bundle)
    failure = next((c for c in comparisons(Bundle.open(bundle)) if not c.passed), None)
    assert failure is not None, "nothing was found"
    return failure


@pytest.mark.parametrize("member", MEMBERS)
def test_a_fresh_export_of_any_member_passes_every_comparison(member: str) -> None:
    found = verify(exported(member), trust_code=True)
    assert [str(c) for c in found if not c.passed] == []
    made = {c.name for c in found if c.figure is not None}
    for part in (
        "encoder.onnx: codes against golden, differing",
        "encoder.onnx: latents against golden, where the codes agree",
        "encoder.onnx: latents in chunks against one shot, where the codes agree",
        "encoder.onnx: latents against eager, where the codes agree",
        "conditioner.onnx: conditioning against golden",
        "conditioner.onnx: conditioning against eager",
        "native engine: logits against golden",
        "native engine: in chunks against one shot",
        "torchscript engine: logits against golden",
        "torchscript engine: in chunks against one shot",
        "eager logits against golden.npz",
        "decoder.ts: logits against golden.npz",
        "decoder.ts: draws that their logits do not give",
        "decoder.ts: draws in chunks against one shot, differing",
    ):
        assert part in made
    assert ("golden.npz: pitch against its definition" in made) == (member == "pitch")
    assert ("encoder.onnx: pitch against eager" in made) == (member == "pitch")


@pytest.mark.parametrize("member", MEMBERS)
def test_the_comparisons_have_something_to_compare(member: str) -> None:
    golden = Golden.from_bytes((exported(member) / "golden.npz").read_bytes(), "golden")
    continuous = member in {"ae", "vae", "inverter", "transposed_inverter"}
    assert len(np.unique(golden.codes)) == 1 if continuous else len(np.unique(golden.codes)) >= 6
    assert len(golden.codes) >= 40
    assert golden.latents.std(0).min() > 0.1
    assert golden.logits.shape == (1000, 256)
    assert golden.logits.std() > 0.4
    assert golden.conditioning.std() > 0.3
    assert len(np.unique(golden.forced)) > 50
    if member == "pitch":
        assert np.ptp(golden.pitch[:, 0]) > 0.5
        assert np.ptp(golden.pitch[:, 1]) > 0.5


def test_every_format_that_was_released_is_still_read_and_verified(tmp_path: Path) -> None:
    for path in Path(__file__).parent.glob("format-*"):
        if path.is_dir():
            shutil.copytree(path, tmp_path / path.name)
        else:  # packed: the DFTs in a bundle are a megabyte of cosines
            shutil.unpack_archive(path, tmp_path, filter="data")
    bundles = [Bundle.open(path) for path in sorted(tmp_path.iterdir())]
    assert [bundle.manifest.format_version for bundle in bundles] == list(READABLE)
    made = [list(comparisons(bundle)) for bundle in bundles]
    assert [str(c) for found in made for c in found if not c.passed] == []
    # What a later format has, an earlier one may lack.
    newest = {c.name for c in made[-1]}
    assert "weights.safetensors: codebook against its formula" in newest
    assert "encoder.onnx: pitch against golden" in newest


# ONNX


def initialisers(file: str, member: str = "vq") -> dict[str, tuple[int, ...]]:
    model = onnx.load_from_string((exported(member) / file).read_bytes())
    floats = (i for i in model.graph.initializer if i.data_type == onnx.TensorProto.FLOAT)
    return {i.name: tuple(i.dims) for i in floats if np.prod(i.dims, dtype=int) > 1}


@pytest.mark.parametrize("file", ["encoder.onnx", "conditioner.onnx"])
def test_any_altered_weight_in_an_onnx_file_is_found(bundle: Path, file: str) -> None:
    names = initialisers(file)
    assert len(names) >= 22
    every_alteration_is_found(bundle, file, list(names))


@pytest.mark.parametrize("file", ["encoder.onnx", "conditioner.onnx"])
@pytest.mark.parametrize("member", [member for member in MEMBERS if member != "vq"])
def test_an_altered_weight_that_only_this_member_has_is_found(
    member: str, file: str, tmp_path: Path
) -> None:
    known, own = initialisers(file), initialisers(file, member)
    names = [name for name, shape in own.items() if known.get(name) != shape]
    every_alteration_is_found(copy_of(member, tmp_path), file, names or list(own)[-1:])


def every_alteration_is_found(bundle: Path, file: str, names: list[str]) -> None:
    data = (bundle / file).read_bytes()
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


def insert_gain(model: onnx.ModelProto, weight: str) -> None:
    """Make louder what the convolution of this weight sees."""
    model.graph.initializer.append(numpy_helper.from_array(np.float32(1.2), "gain"))
    conv = next(n for n in model.graph.node if n.op_type == "Conv" and weight in n.input)
    conv.input[0], old = "louder", conv.input[0]
    at = list(model.graph.node).index(conv)
    model.graph.node.insert(at, helper.make_node("Mul", [old, "gain"], ["louder"]))


@pytest.mark.parametrize(
    ("member", "weight", "found"),
    [
        ("vq", "features.basis", "codes against golden, differing"),
        ("fsq", "features.basis", "codes against golden, differing"),
        ("vae", "features.basis", "latents against golden, where the codes agree"),
        ("inverter", "features.basis", "latents against golden, where the codes agree"),
    ],
)
def test_an_altered_computation_is_found_by_golden(
    member: str, weight: str, found: str, tmp_path: Path
) -> None:
    bundle = copy_of(member, tmp_path)
    change_graph(bundle, lambda model: insert_gain(model, weight))
    assert first_failure(bundle).name == f"encoder.onnx: {found}"


def test_an_altered_computation_of_the_pitch_is_found_by_golden(tmp_path: Path) -> None:
    bundle = copy_of("pitch", tmp_path)

    def transpose(model: onnx.ModelProto) -> None:
        """An octave up."""
        model.graph.initializer.append(numpy_helper.from_array(np.float32([1, 0]), "octave"))
        last = next(n for n in model.graph.node if "pitch" in n.output)
        last.output[0] = "lower"
        model.graph.node.append(helper.make_node("Add", ["lower", "octave"], ["pitch"]))

    change_graph(bundle, transpose)
    assert first_failure(bundle).name == "encoder.onnx: numbers of unknown origin"

    def drop(model: onnx.ModelProto) -> None:
        """The octave's cost: scalars and structure are not compared, what comes out is."""
        sub = next(n for n in model.graph.node if "pitch.cost" in n.input)
        sub.op_type = "Add"

    shutil.copy(exported("pitch") / "encoder.onnx", bundle)
    change_graph(bundle, drop)
    assert first_failure(bundle).name == "encoder.onnx: pitch against golden"


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
    ("member", "name", "found"),
    [
        ("fsq", "bottleneck.codebook", "weights.safetensors: codebook against its formula"),
        ("fsq", "bottleneck.shift", "weights.safetensors: codebook against its formula"),
        ("vae", "bottleneck.project.bias", "encoder.onnx: weights against weights.safetensors"),
        ("pitch", "pitch.speaker_means", "conditioner.onnx: conditioning against golden"),
        (
            "paper",
            "decoder.conditioner.upsample.3.weight",
            "conditioner.onnx: weights against weights.safetensors",
        ),
        (
            "paper",
            "decoder.wavenet.layers.0.condition.weight",
            "native engine: logits against golden",
        ),
    ],
)
def test_an_altered_tensor_of_a_member_is_found(
    member: str, name: str, found: str, tmp_path: Path
) -> None:
    bundle = copy_of(member, tmp_path)
    path = bundle / "weights.safetensors"
    tensors = {key: tensor.copy() for key, tensor in load(path.read_bytes()).items()}
    tensors[name].flat[0] += 0.5
    path.write_bytes(save(tensors))
    assert first_failure(bundle).name == found


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


@pytest.mark.parametrize("column", [0, 1])
def test_an_altered_pitch_in_golden_is_found(column: int, tmp_path: Path) -> None:
    bundle = copy_of("pitch", tmp_path)
    arrays = dict(np.load(bundle / "golden.npz"))
    arrays["pitch"][20, column] -= 0.01
    (bundle / "golden.npz").write_bytes(Golden(**arrays).to_bytes())
    assert first_failure(bundle).name == "golden.npz: pitch against its definition"


@pytest.mark.parametrize("member", ["ae", "vae", "inverter"])
def test_continuous_latents_altered_wherever_golden_has_them_are_found(
    member: str, tmp_path: Path
) -> None:
    bundle = copy_of(member, tmp_path)
    arrays = dict(np.load(bundle / "golden.npz"))
    for name in ("encodings", "latents"):
        arrays[name][30, 3] += 1e-3
    (bundle / "golden.npz").write_bytes(Golden(**arrays).to_bytes())
    found = "encoder.onnx: latents against golden, where the codes agree"
    assert first_failure(bundle).name == found


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
    monkeypatch.setattr("vconv.golden._MAX_BYTES", 5_000_000)
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


@pytest.mark.parametrize("member", ["vq", "pitch"])
def test_verifying_needs_neither_torch_nor_onnx(member: str) -> None:
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
        [sys.executable, "-c", program, str(exported(member))],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    found = {name: (figure, passed) for name, figure, passed in json.loads(done.stdout)}
    assert all(passed for _, passed in found.values())
    assert found["conditioner.onnx: conditioning against golden"][0] is not None
    assert found["encoder.onnx: weights against weights.safetensors"][0] == 0
    assert found["decoder.ts"][0] is None
