"""A bundle is opened whole or not at all, and every refusal names the file and the reason."""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import ClassVar

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper
from safetensors.numpy import load, save

from tiny_model import CONFIG, MEMBERS, SPEAKERS, config_of, exported, random_tensors, reseal
from vconv.bundle import REQUIRED, Bundle, find_model, known_models
from vconv.config import ModelConfig
from vconv.errors import ModelError, SetupError, UsageError
from vconv.geometry import Geometry, Span
from vconv.graphs import Graph
from vconv.manifest import GeometryInfo
from vconv.onnxfile import graph_tensors
from vconv.weights import expected_shapes

SAMPLES = tuple(f"samples/{index:03d}-{name}.ogg" for index, name in enumerate(SPEAKERS))
FILES = ("manifest.json", *REQUIRED, *SAMPLES)


@pytest.fixture(scope="session")
def whole() -> Path:
    return exported()


@pytest.fixture
def bundle(whole: Path, tmp_path: Path) -> Path:
    """A copy that may be spoilt."""
    return Path(shutil.copytree(whole, tmp_path / "tiny"))


def refusal(path: Path, use: Callable[[Bundle], object] = lambda _: None) -> str:
    """The sentence of the ModelError with which opening, or then using, a bundle ends."""
    with pytest.raises(ModelError) as caught:
        use(Bundle.open(path))
    text = str(caught.value)
    assert "\n" not in text
    return text


def test_a_whole_bundle_opens_and_says_what_it_is(whole: Path) -> None:
    bundle = Bundle.open(whole)
    assert tuple(sorted(["manifest.json", *bundle.manifest.files])) == tuple(sorted(FILES))
    assert bundle.speakers.names == SPEAKERS
    assert bundle.config == CONFIG.model
    assert bundle.manifest.quality["heldout_nll"] == 2.5
    assert bundle.manifest.training.samples_seen == 51200
    assert bundle.manifest.data.licence == "CC0-1.0"
    tensors = random_tensors()
    np.testing.assert_array_equal(bundle.speaker_vectors, tensors["speakers.weight"])
    wavenet = bundle.weights("decoder.wavenet.")
    np.testing.assert_array_equal(
        wavenet["embedding.weight"], tensors["decoder.wavenet.embedding.weight"]
    )
    assert bundle.tensors.keys() == tensors.keys()


def test_the_digest_is_that_of_the_file_with_the_digest_blank(whole: Path) -> None:
    data = (whole / "manifest.json").read_bytes()
    digest = json.loads(data)["digest"]
    blank = data.replace(digest.encode(), b"0" * 64)
    assert hashlib.sha256(blank).hexdigest() == digest


@pytest.mark.parametrize(
    "config",
    [
        *(config_of(member).model for member in MEMBERS),
        ModelConfig(),
        ModelConfig.model_validate({"decoder": {"blocks": 1, "gate_channels": 3}}),
    ],
    ids=[*MEMBERS, "default", "odd"],
)
def test_expected_shapes_are_those_of_the_eager_network(config: ModelConfig) -> None:
    from vconv.nn.autoencoder import build_autoencoder

    state = build_autoencoder(config, 4).state_dict()
    assert expected_shapes(config, 4) == {name: tuple(t.shape) for name, t in state.items()}


@pytest.mark.parametrize("member", MEMBERS)
def test_the_manifest_s_lengths_are_the_geometry_s(member: str) -> None:
    geometry = Geometry.of(**config_of(member).model.geometry)
    info = GeometryInfo.of(geometry, 16000)
    for samples in (320, 640, 6400, 16000):
        plan = geometry.plan(samples)
        units = (samples + info.chunk.extra_samples - info.encoder_window) // info.unit_hop + 1
        assert plan.left == info.chunk.left
        assert plan.wav_length == samples + info.chunk.extra_samples
        assert plan.units == samples // info.unit_hop + info.chunk.extra_units == units
        assert plan.steps == samples // info.conditioning_hop + info.chunk.extra_steps
        assert plan.made == info.steps_per_unit * plan.units - info.steps_lost
        assert plan.skip == info.chunk.skip
    for wav in (info.encoder_window, info.encoder_window + 12345):
        units = len(geometry.encoder.outputs(Span(0, wav)))
        assert units == (wav - info.encoder_window) // info.unit_hop + 1


@pytest.mark.parametrize(
    ("member", "units"),
    [
        ("vq", ("vq", 16, 6, 200.0, 50)),
        ("fsq", ("fsq", 60, 3, pytest.approx(50 * np.log2(60)), 50)),
        ("ae", ("ae", None, 6, None, 50)),
        ("vae", ("vae", None, 6, None, 50)),
        ("inverter", ("features", None, 80, None, 100)),
        ("transposed_inverter", ("features", None, 39, None, 100)),
    ],
)
def test_the_manifest_says_what_a_unit_is(member: str, units: tuple[object, ...]) -> None:
    bundle = Bundle.open(exported(member))
    manifest, found = bundle.manifest, bundle.manifest.bottleneck
    said = (found.kind, found.codebook_size, found.dim, found.bits_per_second, manifest.unit_rate)
    assert said == units
    codebook = bundle.codebook
    assert (None if codebook is None else codebook.shape) == (units[1] and (units[1], units[2]))


def test_a_bundle_of_the_first_format_says_the_same_as_ever() -> None:
    """Its manifest lacks every key that came later."""
    folder = Path(__file__).parent / "export" / "format-1"
    written = json.loads((folder / "manifest.json").read_bytes())
    assert written["format_version"] == 1
    assert "kind" not in written["model"]
    bundle = Bundle.open(folder)
    assert bundle.manifest.format_version == 1
    assert bundle.manifest.geometry.model_dump() == written["geometry"]
    assert bundle.manifest.bottleneck.model_dump() == written["bottleneck"]
    assert bundle.codebook is not None
    assert bundle.codebook.shape == (16, 6)
    assert bundle.pitch_prior is None
    codes, latents, pitch = bundle.encoder()(np.zeros((2, 6000), np.float32))
    np.testing.assert_array_equal(latents, bundle.codebook[codes])
    assert pitch.shape == (2, 11, 0)


# Damage


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("damage", ["flip", "cut", "halve", "empty", "remove", "replace"])
def test_damage_to_any_file_is_refused_by_its_name(bundle: Path, name: str, damage: str) -> None:
    path = bundle / name
    data = bytearray(path.read_bytes())
    if damage == "flip":
        data[len(data) // 3] ^= 4
    changed = {"cut": data[:-1], "halve": data[: len(data) // 2], "empty": b"", "flip": data}
    path.unlink()
    if damage == "replace":
        path.mkdir()
    elif damage != "remove":
        path.write_bytes(changed[damage])
    assert str(path) in refusal(bundle)


def test_a_flip_of_any_bit_of_the_manifest_is_refused(bundle: Path) -> None:
    path = bundle / "manifest.json"
    data = path.read_bytes()
    random = np.random.default_rng(0)
    for at in random.choice(len(data), 300, replace=False):
        spoilt = bytearray(data)
        spoilt[at] ^= 1 << random.integers(8)
        path.write_bytes(spoilt)
        assert "manifest.json" in refusal(bundle)


def test_hashes_left_for_later_are_checked_when_the_file_is_read(bundle: Path) -> None:
    data = bytearray((bundle / "weights.safetensors").read_bytes())
    data[-3] ^= 1
    (bundle / "weights.safetensors").write_bytes(data)
    opened = Bundle.open(bundle, verify=False)
    with pytest.raises(ModelError, match=r"weights\.safetensors: damaged"):
        opened.weights()


def test_a_file_that_is_not_listed_is_refused(bundle: Path) -> None:
    (bundle / "samples" / "extra.ogg").write_bytes(b"x")
    assert "extra.ogg: not in the manifest" in refusal(bundle)


@pytest.mark.skipif(os.name != "posix", reason="links")
def test_a_link_that_leads_out_of_the_folder_is_refused(bundle: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside.npz"
    shutil.move(bundle / "golden.npz", outside)
    (bundle / "golden.npz").symlink_to(outside)
    assert "golden.npz: a link to a file outside" in refusal(bundle)


@pytest.mark.skipif(os.name != "posix", reason="pipes")
@pytest.mark.parametrize("name", ["manifest.json", "golden.npz"])
def test_a_pipe_in_place_of_a_file_does_not_hang(bundle: Path, name: str) -> None:
    (bundle / name).unlink()
    os.mkfifo(bundle / name)
    assert name in refusal(bundle)


@pytest.mark.parametrize("name", ["../outside", "/etc/passwd", "a/../../b", ".hidden", "a\\b", ""])
def test_a_name_that_leads_elsewhere_is_refused(bundle: Path, name: str) -> None:
    values = json.loads((bundle / "manifest.json").read_bytes())
    values["files"][name] = values["files"]["golden.npz"]
    write_manifest(bundle, values)
    assert "files" in refusal(bundle)


def write_manifest(bundle: Path, values: dict[str, object]) -> None:
    """As a forger would: any values, with the digest that belongs to them."""
    values["digest"] = "0" * 64
    blank = json.dumps(values).encode()
    digest = hashlib.sha256(blank).hexdigest()
    (bundle / "manifest.json").write_bytes(blank.replace(b"0" * 64, digest.encode()))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"format_version": 3}, "format version 3 cannot be read; this vconv reads 1, 2; update"),
        ({"format_version": "1"}, "format version '1' cannot be read"),
        ({"format_version": None}, "format version None"),
        ({"speakers": []}, "speakers"),
        ({"speakers": ["ada", "ada", "carl"]}, "'ada' occurs twice"),
        ({"sample_rate": 22050}, "sample_rate does not follow"),
        ({"unit_rate": 100.0}, "unit_rate does not follow"),
        ({"name": 7}, "name"),
        ({"surprise": 1}, "surprise"),
        ({"files": {}}, "lists no encoder.onnx"),
    ],
)
def test_a_manifest_that_cannot_be_right_is_refused(
    bundle: Path, change: dict[str, object], said: str
) -> None:
    values = json.loads((bundle / "manifest.json").read_bytes())
    write_manifest(bundle, values | change)
    assert said in refusal(bundle)


@pytest.mark.parametrize(
    "content",
    [b"", b"[]", b"hello", b"\xff\xfe", b"[" * 100_000, b'{"format_version": 1}', b"9" * 10_000],
    ids=["empty", "list", "text", "binary", "nested", "bare", "number"],
)
def test_what_is_no_manifest_is_refused(bundle: Path, content: bytes) -> None:
    (bundle / "manifest.json").write_bytes(content)
    assert "manifest.json" in refusal(bundle)


def test_a_huge_manifest_is_not_read(bundle: Path) -> None:
    with (bundle / "manifest.json").open("wb") as file:
        file.truncate(10**12)
    assert "1,000,000,000,000 bytes" in refusal(bundle)


def test_what_is_no_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"x")
    assert "file: is no folder" in refusal(tmp_path / "file")
    assert "nothing: there is nothing" in refusal(tmp_path / "nothing")
    assert "manifest.json: missing" in refusal(tmp_path)


# Weights, with every hash as it should be


def change_weights(bundle: Path, change: Callable[[dict[str, np.ndarray]], object]) -> None:
    path = bundle / "weights.safetensors"
    tensors = {name: tensor.copy() for name, tensor in load(path.read_bytes()).items()}
    change(tensors)
    path.write_bytes(save(tensors))
    reseal(bundle)


def use_weights(bundle: Bundle) -> object:
    return bundle.weights()


NAME = "decoder.wavenet.layers.3.dilated.weight"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda t: t[NAME].flat.__setitem__([1, 5], np.nan), f"{NAME} has 2 of 192 numbers"),
        (lambda t: t["skip.bias"].fill(np.inf), "KeyError"),
        (lambda t: t.pop(NAME), f"{NAME} [12, 16] is missing"),
        (lambda t: t.update(odd=np.zeros(3, np.float32)), "odd [3] is not one of"),
        (lambda t: t.update({NAME: t[NAME].T.copy()}), "has shape [16, 12], where"),
        (lambda t: t.update({NAME: t[NAME].astype(np.float16)}), f"{NAME} is float16"),
    ],
    ids=["nan", "inf", "missing", "unexpected", "shape", "type"],
)
def test_wrong_weights_are_refused_by_the_tensor(
    bundle: Path, change: Callable[[dict[str, np.ndarray]], object], said: str
) -> None:
    if said == "KeyError":  # the infinite ones
        change_weights(bundle, lambda t: t["decoder.wavenet.skip.bias"].fill(-np.inf))
        said = "decoder.wavenet.skip.bias has 10 of 10 numbers that are NaN or infinite"
    else:
        change_weights(bundle, change)
    text = refusal(bundle, use_weights)
    assert "weights.safetensors" in text
    assert said in text


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\xff" * 8,
        (2**62).to_bytes(8, "little") + b"{}",
        b"\x02" + bytes(7) + b"[]",
        b"\x80\x04cposix\nsystem\n.",
    ],
    ids=["empty", "garbage", "lying-length", "list", "pickle"],
)
@pytest.mark.parametrize("name", ["weights.safetensors", "speakers.safetensors"])
def test_what_is_no_safetensors_file_is_refused(bundle: Path, name: str, content: bytes) -> None:
    (bundle / name).write_bytes(content)
    reseal(bundle)
    assert name in refusal(bundle, lambda b: (b.weights(), b.speaker_vectors))


def test_a_safetensors_header_that_lies_about_its_data_is_refused(bundle: Path) -> None:
    header = b'{"vectors":{"dtype":"F32","shape":[1000000,5],"data_offsets":[0,20000000]}}'
    data = len(header).to_bytes(8, "little") + header + bytes(60)
    (bundle / "speakers.safetensors").write_bytes(data)
    reseal(bundle)
    assert "speakers.safetensors" in refusal(bundle, lambda b: b.speaker_vectors)


def test_a_speaker_table_of_another_size_is_refused(bundle: Path) -> None:
    vectors = np.zeros((2, 5), np.float32)
    (bundle / "speakers.safetensors").write_bytes(save({"vectors": vectors}))
    reseal(bundle)
    assert "[2, 5], where" in refusal(bundle, lambda b: b.speaker_vectors)


# Graphs


@pytest.mark.parametrize(
    ("member", "latents", "pitch", "width"),
    [
        ("vq", 6, 0, 8 * 2 * 6),
        ("vae", 6, 0, 8 * 2 * 6),
        ("pitch", 6, 2, 8 * 2 * 6),
        ("paper", 6, 0, 7),
        ("inverter", 80, 0, 8 * 2 * 6),
    ],
)
def test_sessions_run_with_any_batch_and_length(
    member: str, latents: int, pitch: int, width: int
) -> None:
    bundle = Bundle.open(exported(member))
    info = bundle.manifest.geometry
    encoder, conditioner = bundle.encoder(), bundle.conditioner()
    for batch, samples in ((1, info.encoder_window), (3, info.encoder_window + 5 * 320 + 7)):
        codes, vectors, heard = encoder(np.zeros((batch, samples), np.float32))
        units = (samples - info.encoder_window) // info.unit_hop + 1
        assert codes.shape == (batch, units)
        assert codes.dtype == np.int64
        assert (codes.max() == -1) == (bundle.codebook is None)
        assert vectors.shape == (batch, units, latents)
        assert heard.shape == (batch, units, pitch)
    steps = conditioner(np.zeros((2, 9, latents + pitch), np.float32), np.zeros((2, 5), np.float32))
    assert steps.shape == (2, info.steps_per_unit * 9 - info.steps_lost, width)


def test_the_encoder_of_a_model_with_pitch_tells_log2_of_hertz() -> None:
    """A voice of 200 Hz: pulses through one resonance."""
    bundle = Bundle.open(exported("pitch"))
    time = np.arange(480)
    ring = np.exp(-time / 40) * np.sin(0.25 * time)
    voice = np.convolve((np.arange(8000) % 80 == 0) * 0.3, ring)[:8000]
    _, _, pitch = bundle.encoder()(voice[None].astype(np.float32))
    octave, voicing = pitch[0, 2:-2].T
    assert (voicing == 1).all()
    np.testing.assert_allclose(octave, np.log2(200), atol=0.01)
    assert bundle.pitch_prior == pytest.approx(np.log2([100, 140, 250]).mean())


@pytest.mark.parametrize("file", ["encoder.onnx", "conditioner.onnx"])
def test_the_reader_of_onnx_files_agrees_with_the_onnx_package(whole: Path, file: str) -> None:
    data = (whole / file).read_bytes()
    model = onnx.load_from_string(data)
    wanted = [(i.name, numpy_helper.to_array(i)) for i in model.graph.initializer]
    wanted += [
        (attribute.t.name, numpy_helper.to_array(attribute.t))
        for node in model.graph.node
        for attribute in node.attribute
        if attribute.type == onnx.AttributeProto.TENSOR
    ]
    found = graph_tensors(data, file)
    assert sorted(t.name for t in found) == sorted(name for name, _ in wanted)
    for name, array in wanted:
        assert any(
            t.name == name and t.array.dtype == array.dtype and np.array_equal(t.array, array)
            for t in found
        ), name


def test_the_reader_finds_numbers_wherever_they_hide() -> None:
    """Typed lists, subgraphs, float attributes and functions; dims packed and not."""

    def constant(tensor: onnx.TensorProto, output: str) -> onnx.NodeProto:
        return helper.make_node("Constant", [], [output], value=tensor)

    inner = helper.make_graph(
        [constant(helper.make_tensor("deep", TensorProto.FLOAT, [2], [1.5, -2.5]), "d")],
        "inner",
        [],
        [helper.make_tensor_value_info("d", TensorProto.FLOAT, [2])],
    )
    nodes = [
        helper.make_node("If", ["c"], ["y"], then_branch=inner, else_branch=inner),
        helper.make_node("Constant", [], ["f"], value_floats=[7.0, 8.0, 9.0]),
    ]
    lists = [
        helper.make_tensor("whole", TensorProto.INT64, [2], [-3, 2**40]),
        helper.make_tensor("small", TensorProto.INT32, [2, 1], [-7, 9]),
        helper.make_tensor("wide", TensorProto.DOUBLE, [1], [0.1]),
        helper.make_tensor("flag", TensorProto.BOOL, [2], [True, False]),
    ]
    graph = helper.make_graph(nodes, "outer", [], [], initializer=lists)
    found = {
        t.name: t.array for t in graph_tensors(helper.make_model(graph).SerializeToString(), "x")
    }
    np.testing.assert_array_equal(found["deep"], np.float32([1.5, -2.5]))
    np.testing.assert_array_equal(found["(attribute)"], np.float32([7, 8, 9]))
    np.testing.assert_array_equal(found["whole"], [-3, 2**40])
    np.testing.assert_array_equal(found["small"], [[-7], [9]])
    np.testing.assert_array_equal(found["wide"], [0.1])
    np.testing.assert_array_equal(found["flag"], [True, False])


@pytest.mark.parametrize("content", [b"", b"hello, world", b"\x08", b"\xff" * 64], ids=repr)
@pytest.mark.parametrize("file", ["encoder.onnx", "conditioner.onnx"])
def test_what_is_no_onnx_file_is_refused(bundle: Path, file: str, content: bytes) -> None:
    (bundle / file).write_bytes(content)
    reseal(bundle)
    assert file in refusal(bundle, lambda b: (b.encoder(), b.conditioner()))


def test_a_cut_onnx_file_is_refused_at_every_length(whole: Path, bundle: Path) -> None:
    data = (whole / "conditioner.onnx").read_bytes()
    for length in np.linspace(1, len(data) - 1, 15).astype(int):
        (bundle / "conditioner.onnx").write_bytes(data[:length])
        reseal(bundle)
        assert "conditioner.onnx" in refusal(bundle, lambda b: b.conditioner())


def change_graph(bundle: Path, file: str, change: Callable[[onnx.ModelProto], object]) -> None:
    model = onnx.load_from_string((bundle / file).read_bytes())
    change(model)
    (bundle / file).write_bytes(model.SerializeToString())
    reseal(bundle)


def point_outside(model: onnx.ModelProto) -> None:
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="../../etc/passwd")


def test_data_outside_of_the_onnx_file_is_refused(bundle: Path) -> None:
    change_graph(bundle, "encoder.onnx", point_outside)
    assert "encoder.onnx: a tensor's data lies in another file" in refusal(
        bundle, lambda b: b.encoder()
    )


def rename_input(model: onnx.ModelProto) -> None:
    old, new = model.graph.input[0].name, "sound"
    model.graph.input[0].name = new
    for node in model.graph.node:
        for index, name in enumerate(node.input):
            if name == old:
                node.input[index] = new


def test_other_input_names_are_refused(bundle: Path) -> None:
    change_graph(bundle, "encoder.onnx", rename_input)
    assert "its inputs are sound, expected waveform" in refusal(bundle, lambda b: b.encoder())


def test_an_encoder_of_a_model_with_pitch_must_tell_it(tmp_path: Path) -> None:
    bundle = Path(shutil.copytree(exported("pitch"), tmp_path / "tiny"))
    change_graph(bundle, "encoder.onnx", lambda model: model.graph.output.pop())
    assert "its outputs are codes, latents, expected codes, latents, pitch" in refusal(
        bundle, lambda b: b.encoder()
    )


def test_a_graph_for_another_width_is_refused(bundle: Path) -> None:
    def widen(model: onnx.ModelProto) -> None:
        model.graph.input[1].type.tensor_type.shape.dim[1].dim_value = 9

    change_graph(bundle, "conditioner.onnx", widen)
    assert "conditioner.onnx" in refusal(bundle, lambda b: b.conditioner())


def test_cuda_that_is_not_there_is_an_error_not_the_cpu(
    whole: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    bundle = Bundle.open(whole)
    try:
        assert bundle.encoder("cuda").graph.providers[0] == "CUDAExecutionProvider"
    except SetupError as error:
        found = str(error)
        assert "device cuda was asked for" in found
        assert capfd.readouterr() == ("", ""), "onnxruntime's own complaints are not shown"
    with pytest.raises(UsageError, match=re.escape("no device 'gpu'")):
        bundle.encoder("gpu")


def test_what_a_graph_cannot_run_is_a_sentence(
    whole: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    conditioner = Bundle.open(whole).conditioner()
    with pytest.raises(ModelError, match=r"conditioner\.onnx: onnxruntime cannot run it"):
        conditioner(np.zeros((1, 2, 6), np.float32), np.zeros((1, 5), np.float32))
    assert capfd.readouterr() == ("", "")


def test_a_session_that_fell_back_to_the_cpu_is_noticed(
    whole: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Fallen:
        def __init__(self, *_: object, **__: object) -> None: ...

        def get_providers(self) -> list[str]:
            return ["CPUExecutionProvider"]

    monkeypatch.setattr(onnxruntime, "InferenceSession", Fallen)
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CUDAExecutionProvider"])
    with pytest.raises(SetupError, match="could not load its CUDA support"):
        Bundle.open(whole).encoder("cuda:0")


class Claiming(onnxruntime.InferenceSession):
    """A session on the CPU that says it has CUDA, and what it was made with."""

    made: ClassVar[list[tuple[onnxruntime.SessionOptions, dict[str, object]]]] = []

    def __init__(self, data: bytes, options: onnxruntime.SessionOptions, **others: object) -> None:
        self.made.append((options, others))
        super().__init__(data, options, **{**others, "providers": ["CPUExecutionProvider"]})

    def get_providers(self) -> list[str]:
        return ["CUDAExecutionProvider", "CPUExecutionProvider"]


def test_single_nodes_on_the_cpu_are_noticed(whole: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """onnxruntime's own account of where it put them; the arithmetic of shapes may be there."""
    if not hasattr(onnxruntime.InferenceSession, "get_provider_graph_assignment_info"):
        pytest.skip("this onnxruntime does not tell")
    monkeypatch.setattr(onnxruntime, "InferenceSession", Claiming)
    monkeypatch.setattr(Claiming, "made", [])
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CUDAExecutionProvider"])
    with pytest.raises(SetupError, match=r"would compute ArgMin, .*Conv, .* on the CPU") as caught:
        Bundle.open(whole).encoder("cuda:1")
    assert " Shape" not in str(caught.value)
    ((options, others),) = Claiming.made
    recorded = "session.record_ep_graph_assignment_info"
    assert options.get_session_config_entry(recorded) == "1"
    # Its own retrying on the CPU, when a session cannot be made or run.
    assert others["enable_fallback"] == 0
    assert others["providers"] == [
        ("CUDAExecutionProvider", {"device_id": "1", "use_tf32": "0"}),
        "CPUExecutionProvider",
    ]


@pytest.mark.parametrize("kind", ["Shape", "Log"])
def test_shapes_may_be_computed_on_the_cpu_and_of_small_things_one_is_told(
    kind: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(onnxruntime, "InferenceSession", Claiming)
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CUDAExecutionProvider"])
    value, shape = helper.make_tensor_value_info, kind == "Shape"
    output = value("y", TensorProto.INT64, [2]) if shape else value("y", TensorProto.FLOAT, ["n"])
    graph = helper.make_graph(
        [helper.make_node(kind, ["x"], ["y"])],
        "small",
        [value("x", TensorProto.FLOAT, ["n", "samples"] if shape else ["n"])],
        [output],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
    made = Graph(
        model.SerializeToString(),
        "small.onnx",
        "cuda",
        inputs={"x": ("tensor(float)", (None, None) if shape else (None,))},
        outputs={"y": ("tensor(int64)", (2,)) if shape else ("tensor(float)", (None,))},
    )
    found = made.run(["y"], {"x": np.ones((3, 4) if shape else 2, np.float32)})[0]
    assert found.tolist() == ([3, 4] if shape else [0, 0])
    told = "small.onnx: onnxruntime computes its Log on the CPU."
    if hasattr(onnxruntime.InferenceSession, "get_provider_graph_assignment_info"):
        assert caplog.messages == ([] if shape else [told])


# Names


def test_models_are_found_by_path_then_home_then_bundled(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tmp_path / "home"
    mine = Path(shutil.copytree(whole, home / "models" / "mine"))
    monkeypatch.setenv("VCONV_HOME", str(home))
    monkeypatch.chdir(tmp_path)
    assert find_model("mine") == mine
    assert Bundle.find("mine").path == mine
    assert known_models()["mine"] == mine
    (tmp_path / "mine").mkdir()  # a folder of that name that is no model does not hide it
    assert find_model("mine") == mine
    shutil.copytree(whole, tmp_path / "mine", dirs_exist_ok=True)
    assert find_model("mine") == Path("mine")
    assert find_model(whole) == whole


def test_an_unknown_model_lists_the_known(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(whole, tmp_path / "models" / "mine")
    monkeypatch.setenv("VCONV_HOME", str(tmp_path))
    with pytest.raises(ModelError, match=r"no model 'yours'; known by name: .*mine"):
        find_model("yours")
    assert "there is nothing" in refusal(find_model(tmp_path / "no" / "where"))


def test_a_pickle_named_like_a_file_of_ours_is_never_unpickled(bundle: Path) -> None:
    """golden.npz is only read by verify, and there without pickle; see tests/export."""
    file = io.BytesIO()
    np.savez(file, signal=np.array([print], object))
    (bundle / "golden.npz").write_bytes(file.getvalue())
    reseal(bundle)
    Bundle.open(bundle)
