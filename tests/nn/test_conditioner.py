"""The conditioners against the geometry that everything else is laid out by, and brute force."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

from contracts import (
    assert_chunked_is_whole,
    assert_items_are_independent,
    assert_reads_what_it_declares,
)
from vconv.geometry import Chain, Geometry, Layer, Span
from vconv.nn.conditioner import LinearConditioner, TransposedConditioner
from vconv.nn.incremental import scripted

LATENTS, SPEAKER, CHANNELS = 5, 3, 4
STRIDES = {"unit": (5, 4, 4, 4), "frame": (5, 4, 4, 2)}
_K3 = Layer(3)


def linear(repeats: int) -> tuple[nn.Module, Chain]:
    repeating = Layer(repeats, repeats, transposed=True)
    return LinearConditioner(LATENTS, SPEAKER, CHANNELS, repeats), Chain((_K3, repeating, _K3, _K3))


def transposed(step: str) -> tuple[nn.Module, Chain]:
    kernels = 25, 16, 16, 16
    layers = [Layer(k, s, transposed=True) for k, s in zip(kernels, STRIDES[step], strict=True)]
    module = TransposedConditioner(LATENTS, SPEAKER, CHANNELS, STRIDES[step])
    return module, Chain((_K3, *layers))


KINDS: dict[str, Callable[[], tuple[nn.Module, Chain]]] = {
    "linear from units": lambda: linear(2),
    "linear from frames": lambda: linear(1),
    "transposed from units": lambda: transposed("unit"),
    "transposed from frames": lambda: transposed("frame"),
}


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> tuple[nn.Module, Chain]:
    torch.manual_seed(0)
    module, chain = KINDS[request.param]()
    return module.eval(), chain


def of_latents(module: nn.Module) -> Callable[[Tensor], Tensor]:
    """latents [B, D, U] -> conditioning [B, C, F], every item with another speaker."""
    speakers = torch.randn(8, SPEAKER, generator=torch.Generator().manual_seed(3))
    return lambda latents: module(latents, speakers[: len(latents)]).transpose(1, 2)


def test_the_units_that_are_read_are_the_geometry_s(kind: tuple[nn.Module, Chain]) -> None:
    module, chain = kind
    for name, parameter in module.named_parameters():
        if name.endswith("bias"):
            parameter.data.fill_(3.0)  # no ReLU that is shut hides an input
    assert_reads_what_it_declares(of_latents(module), LATENTS, chain)


def test_chunks_give_what_the_whole_gives(kind: tuple[nn.Module, Chain]) -> None:
    module, chain = kind
    with torch.inference_mode():
        latents = torch.randn(2, LATENTS, 17)
        split = len(chain.outputs(Span(0, 17))) // 2 + 1
        assert_chunked_is_whole(of_latents(module), latents, chain, split)


def test_items_do_not_touch_one_another(kind: tuple[nn.Module, Chain]) -> None:
    module, _ = kind

    def both(joined: Tensor) -> Tensor:
        latents, speaker = joined.split([LATENTS, SPEAKER], dim=1)
        conditioning: Tensor = module(latents, speaker[:, :, 0])
        return conditioning

    with torch.inference_mode():
        assert_items_are_independent(both, torch.randn(4, LATENTS + SPEAKER, 12))


def test_a_speaker_reaches_every_step(kind: tuple[nn.Module, Chain]) -> None:
    module, _ = kind
    for parameter in module.parameters():
        parameter.data.abs_()
    with torch.inference_mode():
        latents = torch.rand(1, LATENTS, 12)
        moved = module(latents, torch.full((1, SPEAKER), 0.5)) - module(
            latents, torch.full((1, SPEAKER), 0.25)
        )
    assert (moved.abs().amax(2) > 1e-3).all()


@pytest.mark.parametrize("upsampling", ["linear", "transposed"])
@pytest.mark.parametrize("encoder", [True, False], ids=["units", "frames"])
def test_lengths_are_those_of_the_geometry_s_plans(upsampling: str, encoder: bool) -> None:
    geometry = Geometry.of(
        features="logmel80",
        upsampling=upsampling,
        kernel_size=2,
        blocks=1,
        layers=2,
        encoder=encoder,
    )
    make = KINDS[f"{upsampling} from {'units' if encoder else 'frames'}"]
    conditioner, _ = make()
    plan = geometry.plan(3 * geometry.unit_hop, lead=geometry.lead_samples)
    with torch.inference_mode():
        made = conditioner(torch.randn(1, LATENTS, plan.units), torch.randn(1, SPEAKER))
    assert made.shape == (1, plan.made, CHANNELS)


@pytest.mark.parametrize("step", STRIDES)
def test_transposed_upsampling_is_the_sum_over_full_overlaps(step: str) -> None:
    """Every input scattered over its outputs one by one, in float64; the outputs that lack a
    contribution, counted, are cut."""
    torch.manual_seed(1)
    conditioner = TransposedConditioner(LATENTS, SPEAKER, CHANNELS, STRIDES[step])
    latents, speaker = torch.randn(1, LATENTS, 11), torch.randn(1, SPEAKER)
    with torch.inference_mode():
        made = conditioner(latents, speaker)[0].numpy()
        mixed = conditioner.mix(latents)[0].double().numpy()
    x = np.concatenate([mixed, np.repeat(speaker.double().numpy().T, mixed.shape[1], axis=1)])
    for conv, stride in zip(conditioner.upsample, STRIDES[step], strict=True):
        weight = conv.weight.detach().double().numpy()  # [inputs, C, kernel]
        kernel = weight.shape[2]
        y = np.zeros((CHANNELS, (x.shape[1] - 1) * stride + kernel))
        taps = np.zeros(y.shape[1], int)
        for i in range(x.shape[1]):
            reached = slice(i * stride, i * stride + kernel)
            y[:, reached] += np.einsum("i,ick->ck", x[:, i], weight)
            taps[reached] += 1
        assert taps.max() * stride == kernel
        x = y[:, taps == taps.max()] + conv.bias.detach().double().numpy()[:, None]
    np.testing.assert_allclose(made, x.T, atol=1e-5)


def test_transposed_upsampling_is_linear() -> None:
    torch.manual_seed(2)
    conditioner = TransposedConditioner(LATENTS, SPEAKER, CHANNELS, STRIDES["unit"])
    with torch.inference_mode():
        a, b = torch.randn(2, 1, LATENTS, 9), torch.randn(2, 1, SPEAKER)
        halfway = conditioner((a[0] + a[1]) / 2, (b[0] + b[1]) / 2)
        ends = [conditioner(a[i], b[i]) for i in range(2)]
    torch.testing.assert_close(halfway, (ends[0] + ends[1]) / 2, rtol=0, atol=1e-5)


def test_transposed_upsampling_begins_with_units_at_their_own_size() -> None:
    """Four linear layers in a row must not shrink what the WaveNet is told to nothing."""
    torch.manual_seed(3)
    conditioner = TransposedConditioner(64, 64, 128, STRIDES["unit"])
    with torch.inference_mode():
        latents, speaker = torch.randn(4, 64, 20), torch.randn(4, 64)
        units = torch.cat([conditioner.mix(latents).flatten(), speaker.flatten()])
        ratio = conditioner(latents, speaker).std() / units.std()
    assert 0.5 < ratio < 2


def test_a_script_gives_what_eager_gives(kind: tuple[nn.Module, Chain]) -> None:
    module, _ = kind
    compiled = scripted(module)
    with torch.inference_mode():
        for units in (9, 14):
            latents, speaker = torch.randn(2, LATENTS, units), torch.randn(2, SPEAKER)
            assert torch.equal(compiled(latents, speaker), module(latents, speaker))


@pytest.mark.parametrize("name", ["linear from units", "transposed from units"])
def test_an_onnx_file_gives_what_eager_gives(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    module = KINDS[name]()[0].eval()
    path = tmp_path / "conditioner.onnx"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the exporter, about torch's own internals
        program = torch.onnx.export(
            module.requires_grad_(False),
            (torch.zeros(2, LATENTS, 11), torch.zeros(2, SPEAKER)),
            input_names=["latents", "speaker"],
            dynamic_shapes={"latents": {0: "batch", 2: "units"}, "speaker": {0: "batch"}},
            opset_version=20,
            dynamo=True,
            verbose=False,
        )
    assert program is not None
    program.save(path)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    for batch, units in ((1, 9), (3, 14)):
        latents, speaker = torch.randn(batch, LATENTS, units), torch.randn(batch, SPEAKER)
        (made,) = session.run(None, {"latents": latents.numpy(), "speaker": speaker.numpy()})
        np.testing.assert_allclose(made, module(latents, speaker).numpy(), rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", ["mix", "frames.0", "frames.1"])
def test_linear_weights_keep_their_names(name: str) -> None:
    assert f"{name}.weight" in linear(2)[0].state_dict()


@pytest.mark.parametrize("index", range(4))
def test_transposed_weights_keep_their_names(index: int) -> None:
    weight = transposed("unit")[0].state_dict()[f"upsample.{index}.weight"]
    inputs = CHANNELS + SPEAKER if index == 0 else CHANNELS
    assert weight.shape == (inputs, CHANNELS, 25 if index == 0 else 16)
