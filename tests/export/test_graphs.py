"""The exported graphs are valid ONNX, and equal to eager at random lengths and batch sizes."""

from __future__ import annotations

import onnx
import pytest
import torch

from random_cases import random_recordings, random_units
from tiny_model import MEMBERS, exported
from vconv.bundle import CONDITIONER, ENCODER, GOLDEN, Bundle
from vconv.errors import SetupError
from vconv.export.comparison import TOLERANCE
from vconv.export.golden import joined
from vconv.export.onnx import OPSET
from vconv.export.verify_torch import conditioner_gap, encoder_gaps, load_network
from vconv.golden import Golden

CASES = 100
KINDS = ("vq", "ae", "vae", "fsq", "inverter")  # one of every bottleneck; the others are slow
AXES = {
    "waveform": ("batch", "samples"),
    "codes": ("batch", "units"),
    "latents": ("batch", "units", int),
    "pitch": ("batch", "units", 2),
    "speaker": ("batch", 5),
    "conditioning": ("batch", "steps", int),
}


@pytest.mark.parametrize("file", [ENCODER, CONDITIONER])
@pytest.mark.parametrize("member", MEMBERS)
def test_a_graph_is_valid_and_whole_and_names_its_free_axes(member: str, file: str) -> None:
    model = onnx.load_from_string((exported(member) / file).read_bytes())
    onnx.checker.check_model(model, full_check=True)
    assert [(each.domain, each.version) for each in model.opset_import] == [("", OPSET)]
    assert not any(each.external_data for each in model.graph.initializer)
    values = [*model.graph.input, *model.graph.output]
    wanted = {"waveform", "codes", "latents"} if file == ENCODER else {"speaker", "latents"}
    assert wanted < {each.name for each in values} | {"pitch"}
    for value in values:
        axes = value.type.tensor_type.shape.dim
        assert len(axes) == len(AXES[value.name])
        for axis, name in zip(axes, AXES[value.name], strict=True):
            said = axis.dim_param or axis.dim_value
            assert said == name or (name is int and isinstance(said, int) and said > 0)


def against_eager(member: str, device: str) -> None:
    bundle = Bundle.open(exported(member))
    network = load_network(bundle)
    golden = Golden.from_bytes(bundle.read(GOLDEN), GOLDEN)
    try:
        encoder, conditioner = bundle.encoder(device), bundle.conditioner(device)
    except SetupError as error:
        pytest.skip(str(error))
    units = joined(golden.latents, golden.pitch, bundle.pitch_prior)
    with torch.inference_mode():
        wavs = random_recordings(bundle.geometry, CASES)
        gaps = encoder_gaps(network, encoder, bundle.codebook, wavs)
        pairs = random_units(bundle.geometry, units, bundle.speaker_vectors, CASES)
        conditioning = conditioner_gap(network, conditioner, pairs)
    assert [str(each) for each in gaps.comparisons("against eager") if not each.passed] == []
    assert gaps.decided.mean() > 0.95
    assert conditioning <= TOLERANCE


@pytest.mark.parametrize(
    "member",
    [m if m in KINDS else pytest.param(m, marks=pytest.mark.slow) for m in MEMBERS],
)
def test_both_graphs_are_eager_s_at_any_length_and_batch(member: str) -> None:
    against_eager(member, "cpu")


@pytest.mark.gpu
@pytest.mark.parametrize("member", KINDS)
def test_both_graphs_are_eager_s_on_a_gpu_too(member: str) -> None:
    against_eager(member, "cuda")


def test_the_random_cases_are_of_many_lengths_and_batches() -> None:
    bundle = Bundle.open(exported())
    shapes = {wav.shape for wav in random_recordings(bundle.geometry, CASES)}
    assert len({samples for _, samples in shapes}) > 90
    assert {batch for batch, _ in shapes} == {1, 2, 3, 4}
