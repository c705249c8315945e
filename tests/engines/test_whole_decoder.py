"""decoder.ts of networks with transposed upsampling, where conditioning comes sample by sample."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from vconv.config import BottleneckConfig, DecoderConfig, EncoderConfig, ModelConfig
from vconv.engines import create_engine
from vconv.export.torchscript import WholeDecoder, whole_decoder
from vconv.geometry import Plan
from vconv.nn.autoencoder import Autoencoder, build_autoencoder

LANES, SPEAKER = 2, 3
DECODER = DecoderConfig(
    residual_channels=7,
    gate_channels=5,
    skip_channels=9,
    blocks=2,
    layers=4,
    conditioning_channels=6,
    speaker_dim=SPEAKER,
    upsampling="transposed",
)


@pytest.fixture(scope="module", params=["autoencoder", "inverter"])
def network(request: pytest.FixtureRequest) -> Autoencoder:
    config = ModelConfig(
        kind=request.param,
        encoder=EncoderConfig(width=8),
        bottleneck=BottleneckConfig(dim=4, codebook_size=8),
        decoder=DECODER,
    )
    torch.manual_seed(0)
    model = build_autoencoder(config, 2)
    with torch.no_grad():
        for parameter in model.decoder.wavenet.parameters():
            parameter.mul_(2)  # so that the logits spread and every layer matters
    return model.eval().requires_grad_(False)


def work(network: Autoencoder, samples: int) -> tuple[Plan, Tensor, Tensor, Tensor]:
    """The plan of so many samples; units [B, U, D], speaker vectors [B, E], codes [B, T]."""
    plan = network.geometry.plan(samples)
    generator = torch.Generator().manual_seed(1)
    width = network.decoder.conditioner.mix.in_channels
    units = torch.randn(LANES, plan.units, width, generator=generator)
    speaker = torch.randn(LANES, SPEAKER, generator=generator)
    return plan, units, speaker, torch.randint(256, (LANES, samples), generator=generator)


def eager_logits(
    network: Autoencoder, plan: Plan, units: Tensor, speaker: Tensor, codes: Tensor
) -> Tensor:
    wavenet = network.decoder.wavenet
    previous = torch.cat([torch.full((LANES, 1), wavenet.silence), codes[:, :-1]], dim=1)
    return network.decode(
        units.transpose(1, 2),
        speaker,
        previous,
        wavenet.initial_state(LANES),
        steps=slice(plan.skip, plan.skip + plan.steps),
    )


def test_its_logits_are_the_eager_network_s(network: Autoencoder) -> None:
    plan, units, speaker, codes = work(network, 640)
    decoder = whole_decoder(network)
    with torch.inference_mode():
        wanted = eager_logits(network, plan, units, speaker, codes)
        logits, _ = decoder.score(units, speaker, codes.to(torch.uint8), decoder.initial_state(2))
    assert wanted.std() > 0.5
    torch.testing.assert_close(logits, wanted, rtol=0, atol=1e-4)


def test_its_chunks_give_what_one_shot_gives(network: Autoencoder) -> None:
    """Each chunk is told the units that its plan names."""
    _, units, speaker, codes = work(network, 960)
    hop = network.geometry.unit_hop
    decoder = whole_decoder(network)
    with torch.inference_mode():
        whole, _ = decoder.score(units, speaker, codes, decoder.initial_state(2))
        pieces, state = [], decoder.initial_state(2)
        for first, length in ((0, 320), (320, 640)):
            needed = network.geometry.plan(length).units
            here = units[:, first // hop : first // hop + needed]
            piece, state = decoder.score(here, speaker, codes[:, first : first + length], state)
            pieces.append(piece)
    torch.testing.assert_close(torch.cat(pieces, 1), whole, rtol=0, atol=1e-4)


def test_it_draws_what_the_engine_draws_of_the_same_conditioning(network: Autoencoder) -> None:
    plan, units, speaker, _ = work(network, 320)
    wavenet = network.decoder.wavenet
    weights = {name: tensor.numpy() for name, tensor in wavenet.state_dict().items()}
    engine = create_engine("torchscript", weights, blocks=2, layers=4, kernel_size=2, hop=1)
    decoder = whole_decoder(network)
    uniforms = np.random.default_rng(0).random((LANES, 320), np.float32)
    with torch.inference_mode():
        channels = network.condition(units.transpose(1, 2), speaker)
        used = channels[:, plan.skip : plan.skip + plan.steps]
        drawn, _ = decoder(
            units, speaker, torch.from_numpy(uniforms), 1.0, decoder.initial_state(LANES)
        )
    wanted, _ = engine.generate(used.numpy(), uniforms, 1.0, engine.initial_state(LANES))
    np.testing.assert_array_equal(drawn.numpy(), wanted)
    assert len(np.unique(wanted)) > 10


class Largest(TorchDispatchMode):
    """Counts the elements of the largest tensor made."""

    elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        if isinstance(made, Tensor):
            self.elements = max(self.elements, made.numel())
        return made


def test_it_never_holds_the_projections_of_a_whole_chunk(network: Autoencoder) -> None:
    samples = 640
    plan, units, speaker, _ = work(network, samples)
    decoder = WholeDecoder(network, plan.skip)
    projections = samples * LANES * DECODER.blocks * DECODER.layers * 2 * DECODER.gate_channels
    with Largest() as largest, torch.no_grad():
        decoder(units, speaker, torch.rand(LANES, samples), 1.0, decoder.initial_state(LANES))
    assert largest.elements < projections / 4
