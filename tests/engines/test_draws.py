"""Draws against those of the eager network under the same history, 16,000 of every lane.

Bits are promised for one engine, precision and code path. Across them a draw may differ only where
its uniform lies within 1e-4 of a step of the distribution.

Legend: B lanes, T samples, F conditioning steps, Q levels, C conditioning channels.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch

from tiny_model import SPEAKERS, config_of, tensors_of
from vconv.audio import read
from vconv.bundle import Bundle
from vconv.config import DecoderConfig
from vconv.engines import Codes, Engine, create_engine
from vconv.engines.native import NativeEngine
from vconv.export.golden import forced_codes, handed_over
from vconv.export.verify_torch import load_network, network_of
from vconv.nn.wavenet import WaveNet
from vconv.stream import uniforms

Floats = npt.NDArray[np.float32]

HELLO = Path(__file__).parents[2] / "examples" / "hello.wav"
SAMPLES, LANES = 16_000, 3
MARGIN = 1e-4  # of probability
# Distributions of float32 networks lie within 1e-6 or so of each other: 1 of 48,000 draws differs.
MOST_DIFFERENT = 5e-4  # of the draws

# The suite has every case of native with the bundled model; what takes seconds more is slow.
CASES = [
    pytest.param(network, engine, lanes, temperature, marks=[pytest.mark.slow] if slow else [])
    for network in ("demo", "every sample")
    for engine in ("native", "native, generic", "torchscript")
    for lanes, temperature in ((1, 1.0), (LANES, 0.8), (1, 0.8), (LANES, 1.0))
    for crossed in [(lanes == 1) != (temperature == 1)]
    for slow in [engine != "native" and (network == "demo" or crossed)]
]


@dataclass(frozen=True)
class Work:
    """A second of speech to say in several voices, and the eager network that can."""

    eager: WaveNet
    config: DecoderConfig
    channels: torch.Tensor  # [B, F, C], which eager takes
    conditioning: Floats  # [B, F, ...], which engines take
    uniforms: Floats  # [B, T]
    recorded: npt.NDArray[np.uint8]  # [B, T]: the recording's own codes


@functools.cache
def work(network: str) -> Work:
    """For the bundled model, or for a tiny one with conditioning for every sample."""
    if network == "demo":
        bundle = Bundle.find("demo")
        config, model = bundle.config, load_network(bundle)
    else:
        config = config_of("paper").model
        model = network_of(config, len(SPEAKERS), tensors_of(config))
    plan, wavenet = model.geometry.plan(SAMPLES), model.decoder.wavenet
    heard = [np.roll(read(HELLO), -20_000 * lane) for lane in range(LANES)]
    with torch.inference_mode():
        wav = torch.from_numpy(np.stack(heard)[:, : plan.wav_length])
        _, units = model.bottleneck.quantise(model.latents(wav))
        made = model.condition(units, model.speaker_vectors(torch.arange(LANES)))
        channels = made[:, plan.skip : plan.skip + plan.steps]
        conditioning = handed_over(wavenet, channels).numpy()
    said = slice(plan.left, plan.left + SAMPLES)
    return Work(
        wavenet,
        config.decoder,
        channels,
        conditioning,
        np.stack([uniforms(3, lane=lane, chunk=0, count=SAMPLES) for lane in range(LANES)]),
        np.stack([forced_codes(lane, config.audio, said) for lane in heard]),
    )


@functools.cache
def engine_of(network: str, name: str) -> Engine:
    given = work(network)
    weights = {key: tensor.numpy() for key, tensor in given.eager.state_dict().items()}
    options: dict[str, Any] = {
        "blocks": given.config.blocks,
        "layers": given.config.layers,
        "kernel_size": given.config.kernel_size,
        "hop": given.eager.hop,
    }
    if name == "native, generic":
        return NativeEngine(weights, cpu="generic", **options)
    return create_engine(name, weights, **options)


@dataclass(frozen=True)
class Disagreement:
    """Of draws and eager's."""

    share: float
    """Of the draws that differ."""
    farthest: float
    """How far the uniform of a draw lies outside of the code's interval, at most."""


def disagreement(
    given: Work, history: Codes, drawn: Codes, drawn_by: Floats, temperature: float
) -> Disagreement:
    """history, drawn [B, T] for the first B lanes: eager is told the history, sample t being drawn
    after the samples before t, and its distribution cut in float64 by the same uniforms."""
    lanes, samples = history.shape
    silence = np.full((lanes, 1), given.eager.silence)
    previous = np.concatenate((silence, history[:, :-1]), axis=1)
    with torch.inference_mode():
        logits, _ = given.eager(
            torch.from_numpy(previous), given.channels[:lanes], given.eager.initial_state(lanes)
        )
    different, farthest = 0, -1.0
    for lane in range(lanes):
        scaled = logits[lane].double().numpy() / temperature
        p = np.exp(scaled - scaled.max(axis=1, keepdims=True))
        steps = (p / p.sum(axis=1, keepdims=True)).cumsum(axis=1)  # the ends of the intervals
        u = drawn_by[lane].astype(np.float64)
        wanted = np.minimum((steps <= u[:, None]).sum(axis=1), given.eager.levels - 1)
        different += np.count_nonzero(wanted != drawn[lane])
        bounds = np.pad(steps, ((0, 0), (1, 0)))
        at = np.arange(samples), drawn[lane].astype(np.int64)
        outside = np.maximum(bounds[at] - u, u - bounds[at[0], at[1] + 1])
        farthest = max(farthest, float(outside.max()))
    return Disagreement(different / history.size, farthest)


@pytest.mark.parametrize(("network", "engine", "lanes", "temperature"), CASES)
def test_a_draw_is_eager_s_but_for_uniforms_at_a_step(
    network: str, engine: str, lanes: int, temperature: float
) -> None:
    """The engine runs free, so what it drew is its history, and is made eager's: what either draws
    next, it draws after the same samples."""
    given, sampler = work(network), engine_of(network, engine)
    drawn_by = given.uniforms[:lanes]
    codes, _ = sampler.generate(
        given.conditioning[:lanes], drawn_by, temperature, sampler.initial_state(lanes)
    )
    assert len(np.unique(codes)) > 100
    found = disagreement(given, codes, codes, drawn_by, temperature)
    assert found.farthest <= MARGIN
    assert found.share < MOST_DIFFERENT


@pytest.mark.parametrize(("lanes", "temperature"), [(1, 1.0), (LANES, 0.8)])
def test_a_draw_is_eager_s_under_a_history_that_neither_drew(
    lanes: int, temperature: float
) -> None:
    """The recording's own samples. With conditioning for every sample an engine can be asked for
    one, and then be told another."""
    given, sampler = work("every sample"), engine_of("every sample", "native")
    history, state = given.recorded[:lanes], sampler.initial_state(lanes)
    drawn = np.empty_like(history)
    for sample in range(SAMPLES):
        now = slice(sample, sample + 1)
        conditioning = given.conditioning[:lanes, now]
        drawn_by = given.uniforms[:lanes, now]
        drawn[:, now], _ = sampler.generate(conditioning, drawn_by, temperature, state)
        _, state = sampler.score(conditioning, history[:, now], state)
    assert (drawn != history).mean() > 0.9
    found = disagreement(given, history, drawn, given.uniforms[:lanes], temperature)
    assert found.farthest <= MARGIN
    assert found.share < MOST_DIFFERENT


@pytest.mark.parametrize(
    ("moved", "temperature"),
    [pytest.param(2e-4, 1.0, id="uniforms"), pytest.param(0.0, 1.002, id="temperature")],
)
def test_draws_that_are_a_little_off_are_noticed(moved: float, temperature: float) -> None:
    """Or the tests above would pass whatever an engine did."""
    given, sampler = work("demo"), engine_of("demo", "native")
    drawn_by = given.uniforms[:1] * np.float32(1 - moved)
    codes, _ = sampler.generate(
        given.conditioning[:1], drawn_by, temperature, sampler.initial_state(1)
    )
    found = disagreement(given, codes, codes, given.uniforms[:1], 1.0)
    assert found.farthest > MARGIN
