"""The engine `triton`, through Triton's interpreter or on a GPU; test_triton.py runs this file.

It does so in processes of their own, because TRITON_INTERPRET is one decision for a process. With
VCONV_TRITON_DEVICE=cuda the kernel is compiled. Everything is small: the interpreter takes a tenth
of a second for a sample and more.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np
import pytest
import torch

from triton_interpreter import DEVICE
from vconv.engines.base import conditioning_steps
from vconv.engines.triton import Launch, TritonEngine
from vconv.errors import ModelError
from vconv.nn.wavenet import WaveNet

LEVELS, LAYERS, LANES, FRAMES = 24, 2, 3, 3
IN_REGISTERS = Launch(16, wide=False, tile=0, depth=0, warps=4, stages=2)
IN_TILES = Launch(16, wide=True, tile=16, depth=16, warps=4, stages=2)


@dataclass(frozen=True)
class Case:
    launch: Launch
    hop: int
    kernel: int
    precision: str
    residual: int
    gate: int
    skip: int
    blocks: int = 1


CASES = {
    "registers, frames, kernel 3": Case(IN_REGISTERS, 4, 3, "fp32", 12, 20, 24, blocks=2),
    "registers, every sample": Case(IN_REGISTERS, 1, 2, "bf16", 24, 12, 20),
    "tiles, every sample": Case(IN_TILES, 1, 2, "bf16", 24, 20, 12),
    "tiles, frames, kernel 3": Case(IN_TILES, 4, 3, "fp32", 12, 24, 20),
}


class Work:
    """An eager network, the engine of its weights, and work for both."""

    def __init__(self, case: Case) -> None:
        torch.manual_seed(0)
        self.hop, self.precision = case.hop, case.precision
        self.network = WaveNet(
            levels=LEVELS,
            residual_channels=case.residual,
            gate_channels=case.gate,
            skip_channels=case.skip,
            conditioning_channels=5,
            blocks=case.blocks,
            layers=LAYERS,
            kernel_size=case.kernel,
            hop=case.hop,
        ).eval()
        with torch.no_grad():
            for parameter in self.network.parameters():
                parameter.mul_(2)  # so that the logits spread and every layer matters
        self.samples = 4 * FRAMES
        weights = {name: t.numpy().copy() for name, t in self.network.state_dict().items()}
        self.engine = TritonEngine(
            weights,
            blocks=case.blocks,
            layers=LAYERS,
            kernel_size=case.kernel,
            hop=case.hop,
            device=DEVICE,
            precision=case.precision,
            launch=case.launch,
        )
        steps = conditioning_steps(self.samples, case.hop)
        self.channels = torch.randn(LANES, steps, 5)
        with torch.inference_mode():
            given = self.channels if case.hop == 1 else self.network.project(self.channels)
        self.conditioning = given.numpy()
        random = np.random.default_rng(0)
        self.codes = random.integers(0, LEVELS, (LANES, self.samples)).astype(np.uint8)
        self.uniforms = random.random(self.codes.shape, np.float32)
        self.uniforms[0, :3] = [0, 1 - 2**-24, 0]

    def steps(self, first: int, samples: int) -> np.ndarray:
        """The conditioning of these samples."""
        step = first // self.hop
        return self.conditioning[:, step : step + conditioning_steps(samples, self.hop)]

    def eager_logits(self, codes: np.ndarray) -> np.ndarray:
        silence = self.network.silence
        previous = np.pad(codes.astype(np.int64), ((0, 0), (1, 0)), constant_values=silence)
        with torch.inference_mode():
            logits, _ = self.network(
                torch.from_numpy(previous[:, :-1]),
                self.channels,
                self.network.initial_state(LANES),
            )
        return logits.numpy()

    @functools.cached_property
    def scored(self) -> np.ndarray:
        return self.engine.score(self.conditioning, self.codes, self.engine.initial_state(LANES))[0]

    @functools.cached_property
    def drawn(self) -> np.ndarray:
        start = self.engine.initial_state(LANES)
        return self.engine.generate(self.conditioning, self.uniforms, 1.0, start)[0]


@functools.cache
def work_of(name: str) -> Work:
    return Work(CASES[name])


@pytest.fixture(params=list(CASES))
def work(request: pytest.FixtureRequest) -> Work:
    return work_of(request.param)


def test_teacher_forced_logits_are_the_eager_network_s(work: Work) -> None:
    wanted = work.eager_logits(work.codes)
    assert wanted.std() > 0.3
    if work.precision == "fp32":
        np.testing.assert_allclose(work.scored, wanted, atol=2e-5)
    else:
        # A rounding to bfloat16 is of 2 in a thousand at most.
        away = np.linalg.norm(work.scored - wanted) / np.linalg.norm(wanted)
        assert 1e-4 < away < 1e-2


def test_draws_are_the_smallest_code_whose_cumulative_probability_exceeds_the_uniform(
    work: Work,
) -> None:
    """Under its own history; except within 1e-4 of a step of the distribution, in float64."""
    assert work.drawn.dtype == np.uint8
    if work.precision == "fp32":
        logits = work.eager_logits(work.drawn)
    else:
        start = work.engine.initial_state(LANES)
        logits = work.engine.score(work.conditioning, work.drawn, start)[0]
    odds = np.exp(logits.astype(np.float64))
    steps = (odds / odds.sum(2, keepdims=True)).cumsum(2)
    uniforms = work.uniforms[..., None]
    wanted = np.minimum((steps <= uniforms).sum(2), LEVELS - 1)
    clear = np.abs(steps - uniforms).min(2) > 1e-4
    clear[0, :3] = True
    assert clear.mean() > 0.9
    np.testing.assert_array_equal(work.drawn[clear], wanted[clear])
    assert len(np.unique(work.drawn)) > 5


def test_temperature_0_takes_the_most_likely_code(work: Work) -> None:
    steps, uniforms = work.steps(0, 4), work.uniforms[:, :4]
    codes, _ = work.engine.generate(steps, uniforms, 0.0, work.engine.initial_state(LANES))
    logits, _ = work.engine.score(steps, codes, work.engine.initial_state(LANES))
    best = np.take_along_axis(logits, codes[..., None].astype(int), 2)[..., 0]
    assert (best >= logits.max(2) - 1e-6).all()


def test_a_low_temperature_narrows_the_distribution(work: Work) -> None:
    steps, uniforms = work.steps(0, 4), work.uniforms[:, :4]
    codes, _ = work.engine.generate(steps, uniforms, 0.3, work.engine.initial_state(LANES))
    logits, _ = work.engine.score(steps, codes, work.engine.initial_state(LANES))
    odds = np.exp(logits.astype(np.float64) / 0.3)
    ends = (odds / odds.sum(2, keepdims=True)).cumsum(2)
    wanted = np.minimum((ends <= uniforms[..., None]).sum(2), LEVELS - 1)
    clear = np.abs(ends - uniforms[..., None]).min(2) > 1e-4
    np.testing.assert_array_equal(codes[clear], wanted[clear])


def test_a_cut_does_not_show_in_a_bit(work: Work) -> None:
    scoring = drawing = work.engine.initial_state(LANES)
    first = 0
    for length in (4, 8) if work.hop > 1 else (1, 7, 4):
        here, steps = slice(first, first + length), work.steps(first, length)
        logits, scoring = work.engine.score(steps, work.codes[:, here], scoring)
        np.testing.assert_array_equal(logits, work.scored[:, here])
        codes, drawing = work.engine.generate(steps, work.uniforms[:, here], 1.0, drawing)
        np.testing.assert_array_equal(codes, work.drawn[:, here])
        first += length


def test_company_does_not_change_a_bit(work: Work) -> None:
    """17 lanes are two programs, of which the second has one; and one lane is alone."""
    samples = 4
    random = np.random.default_rng(3)
    steps, uniforms = work.steps(0, samples), work.uniforms[:, :samples]
    company = random.standard_normal((17, *steps.shape[1:])).astype(np.float32)
    their_uniforms = random.random((17, samples), np.float32)
    theirs = random.integers(0, LEVELS, (17, samples)).astype(np.uint8)
    places = [5, 0, 16]
    company[places], their_uniforms[places] = steps, uniforms
    theirs[places] = work.codes[:, :samples]
    logits, _ = work.engine.score(company, theirs, work.engine.initial_state(17))
    np.testing.assert_array_equal(logits[places], work.scored[:, :samples])
    codes, _ = work.engine.generate(company, their_uniforms, 1.0, work.engine.initial_state(17))
    np.testing.assert_array_equal(codes[places], work.drawn[:, :samples])
    alone, _ = work.engine.score(steps[1:2], work.codes[1:2, :4], work.engine.initial_state(1))
    np.testing.assert_array_equal(alone[0], work.scored[1, :samples])


def test_lanes_of_different_ages_are_joined_and_parted(work: Work) -> None:
    engine, one = work.engine, slice(1, 2)
    old = engine.initial_state(LANES)
    _, old = engine.score(work.steps(0, 4), work.codes[:, :4], old)
    old = engine.split(old, [1, 1, 1])[1]
    both = engine.join([engine.initial_state(1), old])
    steps = np.concatenate([work.steps(0, 4)[:1], work.steps(4, 4)[one]])
    logits, after = engine.score(
        steps, np.concatenate([work.codes[:1, :4], work.codes[one, 4:8]]), both
    )
    np.testing.assert_array_equal(logits[0], work.scored[0, :4])
    np.testing.assert_array_equal(logits[1], work.scored[1, 4:8])
    young, older = engine.split(after, [1, 1])
    assert [part.time.tolist() for part in (young, older)] == [[4], [8]]
    logits, _ = engine.score(work.steps(8, 4)[one], work.codes[one, 8:], older)
    np.testing.assert_array_equal(logits[0], work.scored[1, 8:])


def test_a_call_leaves_its_state_and_arguments_alone(work: Work) -> None:
    _, state = work.engine.score(
        work.steps(0, 4), work.codes[:, :4], work.engine.initial_state(LANES)
    )
    before = [part.clone() for part in state]
    steps, uniforms = work.steps(4, 4).copy(), work.uniforms[:, 4:8].copy()
    _, after = work.engine.generate(steps, uniforms, 1.0, state)
    assert all(torch.equal(a, b) for a, b in zip(before, state, strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(state, after, strict=True))
    np.testing.assert_array_equal(steps, work.steps(4, 4))
    np.testing.assert_array_equal(uniforms, work.uniforms[:, 4:8])


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # numpy's, in the interpreter
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_an_output_that_is_not_finite_is_an_error_not_noise(work: Work, value: float) -> None:
    steps, start = work.steps(0, 4).copy(), work.engine.initial_state(LANES)
    steps[1, 1, 2] = value
    with pytest.raises(ModelError, match="not finite"):
        work.engine.generate(steps, work.uniforms[:, :4], 1.0, start)


def test_time_may_wrap_around(work: Work) -> None:
    """After 37 hours of a lane."""
    start = work.engine.initial_state(LANES)
    start.time.fill_(2**31 - 2)
    logits, _ = work.engine.score(work.steps(0, 4), work.codes[:, :4], start)
    np.testing.assert_array_equal(logits, work.scored[:, :4])


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_an_infinite_context_is_an_error_though_a_gate_would_hide_it(work: Work) -> None:
    state = work.engine.initial_state(LANES)
    state.ring.fill_(torch.inf)
    with pytest.raises(ModelError, match="not finite"):
        work.engine.score(work.steps(0, 4), work.codes[:, :4], state)
