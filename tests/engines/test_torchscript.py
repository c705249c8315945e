"""The step, scripted and in blocks: against the eager network, the definition of a draw, and itself
in pieces.

The engine of CUDA graphs is here without a GPU: its blocks at fixed places, run one by one instead
of replayed. tests/engines/test_cudagraphs.py has the rest of it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
import torch

from vconv.engines import create_engine
from vconv.engines.base import conditioning_steps
from vconv.engines.cudagraphs import CudaGraphsEngine
from vconv.engines.torchscript import IncrementalEngine, TorchScriptEngine
from vconv.errors import ModelError, SetupError
from vconv.nn.wavenet import WaveNet

# What test_chunks cuts the work into, in samples. With hop 1 no length is a number of blocks or
# frames, and one fills a block and no more.
CUTS = {20: (20, 80, 40, 100), 1: (1, 77, 64, 3, 104)}


@dataclass
class Case:
    """An eager network, the engine of its weights, and work for it."""

    network: WaveNet
    engine: IncrementalEngine
    channels: torch.Tensor
    conditioning: np.ndarray  # as the engine takes it
    codes: np.ndarray

    @property
    def lanes(self) -> int:
        return len(self.codes)

    @property
    def hop(self) -> int:
        return self.network.hop

    @property
    def options(self) -> dict[str, int]:
        kernel = self.network.gated_layers[0].kernel
        return {"blocks": 2, "layers": 5, "kernel_size": kernel, "hop": self.hop}

    @property
    def weights(self) -> dict[str, np.ndarray]:
        return {name: tensor.numpy().copy() for name, tensor in self.network.state_dict().items()}

    def eager_logits(self, codes: np.ndarray) -> np.ndarray:
        previous = np.pad(codes.astype(np.int64), ((0, 0), (1, 0)), constant_values=16)[:, :-1]
        with torch.inference_mode():
            logits, _ = self.network(
                torch.from_numpy(previous), self.channels, self.network.initial_state(self.lanes)
            )
        return logits.numpy()


ENGINES = (TorchScriptEngine, CudaGraphsEngine)


@pytest.fixture(
    scope="module",
    params=[(kind, kernel, hop) for kind in ENGINES for kernel in (2, 3) for hop in CUTS],
    ids=lambda param: f"{param[0].name}-kernel-{param[1]}-hop-{param[2]}",
)
def case(request: pytest.FixtureRequest) -> Case:
    lanes, (kind, kernel, hop) = 3, request.param
    samples = sum(CUTS[hop])
    torch.manual_seed(0)
    network = WaveNet(
        levels=32,
        residual_channels=7,
        gate_channels=5,
        skip_channels=9,
        conditioning_channels=4,
        blocks=2,
        layers=5,
        kernel_size=kernel,
        hop=hop,
    ).eval()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.mul_(2)  # so that the logits spread and every layer matters
    weights = {name: tensor.numpy().copy() for name, tensor in network.state_dict().items()}
    engine = kind(weights, blocks=2, layers=5, kernel_size=kernel, hop=hop, device="cpu")
    channels = torch.randn(lanes, conditioning_steps(samples, hop), 4)
    with torch.inference_mode():
        conditioning = (channels if hop == 1 else network.project(channels)).numpy()
    codes = np.random.default_rng(0).integers(0, 32, (lanes, samples)).astype(np.uint8)
    return Case(network, engine, channels, conditioning, codes)


def test_teacher_forced_logits_are_the_eager_network_s(case: Case) -> None:
    logits, _ = case.engine.score(case.conditioning, case.codes, case.engine.initial_state(3))
    wanted = case.eager_logits(case.codes)
    assert wanted.std() > 0.5
    np.testing.assert_allclose(logits, wanted, atol=1e-4)


def test_chunks_give_what_one_shot_gives(case: Case) -> None:
    engine, uniforms = case.engine, np.random.default_rng(1).random(case.codes.shape, np.float32)
    whole, last = engine.score(case.conditioning, case.codes, engine.initial_state(3))
    drawn, _ = engine.generate(case.conditioning, uniforms, 1.0, engine.initial_state(3))
    state, drawing = engine.initial_state(3), engine.initial_state(3)
    first = 0
    for length in CUTS[case.hop]:
        samples, step = slice(first, first + length), first // case.hop
        steps = case.conditioning[:, step : step + conditioning_steps(length, case.hop)]
        logits, state = engine.score(steps, case.codes[:, samples], state)
        np.testing.assert_array_equal(logits, whole[:, samples])
        codes, drawing = engine.generate(steps, uniforms[:, samples], 1.0, drawing)
        np.testing.assert_array_equal(codes, drawn[:, samples])
        first += length
    for part, wanted in zip(state, last, strict=True):
        assert torch.equal(part, wanted)


def test_lanes_do_not_touch_one_another(case: Case) -> None:
    whole, _ = case.engine.score(case.conditioning, case.codes, case.engine.initial_state(3))
    for lane in range(3):
        one = slice(lane, lane + 1)
        logits, _ = case.engine.score(
            case.conditioning[one], case.codes[one], case.engine.initial_state(1)
        )
        np.testing.assert_allclose(logits[0], whole[lane], atol=1e-5)


def test_a_call_leaves_its_state_and_arguments_alone(case: Case) -> None:
    _, state = case.engine.score(case.conditioning, case.codes, case.engine.initial_state(3))
    before = [part.clone() for part in state]
    conditioning, codes = case.conditioning.copy(), case.codes.copy()
    once, _ = case.engine.score(conditioning, codes, state)
    again, _ = case.engine.score(conditioning, codes, state)
    np.testing.assert_array_equal(once, again)
    np.testing.assert_array_equal(conditioning, case.conditioning)
    np.testing.assert_array_equal(codes, case.codes)
    assert all(torch.equal(a, b) for a, b in zip(before, state, strict=True))


def steps_of(case: Case, first: int, samples: int) -> np.ndarray:
    """The conditioning of so many samples from the first on."""
    step = first // case.hop
    return case.conditioning[:, step : step + conditioning_steps(samples, case.hop)]


def test_states_at_any_positions_are_joined_and_parted_to_the_bit(case: Case) -> None:
    """A lane that was in company goes on with the very bits that it has without: moving rows of a
    ring buffer changes no number. Positions lie below and beyond the longest ring."""
    engine, first = case.engine, 2 * CUTS[case.hop][1]
    states = [engine.initial_state(3)]
    for samples in (case.hop, first):
        steps, codes = steps_of(case, 0, samples), case.codes[:, :samples]
        states.append(engine.score(steps, codes, engine.initial_state(3))[1])
    for leader in states:
        joined = engine.join([leader, *states])
        assert torch.equal(joined[2], leader[2])
        assert len(joined[0]) == 12
        parts = engine.split(joined, [3, 3, 3, 3])
        for part, alone in zip(parts[1:], states, strict=True):
            assert part[1].is_contiguous()
            rest = slice(first, first + CUTS[case.hop][0])
            steps = steps_of(case, first, CUTS[case.hop][0])
            wanted, after = engine.score(steps, case.codes[:, rest], alone)
            found, moved = engine.score(steps, case.codes[:, rest], part)
            np.testing.assert_array_equal(found, wanted)
            # Back at their positions the contexts are the same, too.
            back = engine.split(engine.join([after, moved]), [3, 3])[1]
            assert all(torch.equal(a, b) for a, b in zip(back, after, strict=True))


def test_joined_lanes_say_what_they_say_alone(case: Case) -> None:
    """But for the last bits, which depend on how many lanes a product has."""
    engine, length = case.engine, CUTS[case.hop][1]
    whole = sum(CUTS[case.hop]) - length
    whole -= whole % case.hop
    _, later = engine.score(
        steps_of(case, 0, length), case.codes[:, :length], (engine.initial_state(3))
    )
    begun = engine.initial_state(2)
    steps = np.concatenate((steps_of(case, 0, whole)[:2], steps_of(case, length, whole)))
    codes = np.concatenate((case.codes[:2, :whole], case.codes[:, length : length + whole]))
    logits, after = engine.score(steps, codes, engine.join([begun, later]))
    alone = [
        engine.score(steps[:2], codes[:2], begun),
        engine.score(steps[2:], codes[2:], later),
    ]
    parts = engine.split(after, [2, 3])
    for rows, part, (wanted, state) in zip((logits[:2], logits[2:]), parts, alone, strict=True):
        np.testing.assert_allclose(rows, wanted, atol=1e-5)
        moved = engine.split(engine.join([state, part]), [len(wanted)] * 2)[1]
        np.testing.assert_allclose(moved[1], state[1], atol=1e-5)


@pytest.mark.parametrize("temperature", [0.0, 0.6, 1.0])
def test_draws_follow_the_eager_distribution(case: Case, temperature: float) -> None:
    """Under its own history: the smallest code whose cumulative probability exceeds the uniform,
    computed in float64, except within 1e-4 of a step of the distribution."""
    uniforms = np.random.default_rng(2).random(case.codes.shape, np.float32)
    uniforms[0, :5] = [0, 0, 1 - 2**-24, 1 - 2**-24, 0]
    codes, _ = case.engine.generate(
        case.conditioning, uniforms, temperature, case.engine.initial_state(3)
    )
    assert codes.dtype == np.uint8
    logits = case.eager_logits(codes).astype(np.float64)
    if temperature == 0:
        best = np.take_along_axis(logits, codes[..., None].astype(int), 2)[..., 0]
        assert (best >= logits.max(2) - 1e-4).all()
        return
    odds = np.exp((logits - logits.max(2, keepdims=True)) / temperature)
    steps = (odds / odds.sum(2, keepdims=True)).cumsum(2)
    wanted = np.minimum((steps <= uniforms[..., None]).sum(2), 31)
    clear = np.abs(steps - uniforms[..., None]).min(2) > 1e-4
    assert clear.mean() > 0.9
    np.testing.assert_array_equal(codes[clear], wanted[clear])
    assert len(np.unique(codes)) > 10


def test_the_native_engine_agrees(case: Case) -> None:
    native = create_engine("native", case.weights, **case.options)
    ours, _ = case.engine.score(case.conditioning, case.codes, case.engine.initial_state(3))
    theirs, _ = native.score(case.conditioning, case.codes, native.initial_state(3))
    np.testing.assert_allclose(ours, theirs, atol=1e-4)


def test_weights_that_do_not_fit_are_refused_by_name(case: Case) -> None:
    def refusal(**changes: np.ndarray | None) -> str:
        weights = {k: v for k, v in (case.weights | changes).items() if v is not None}
        with pytest.raises(ModelError) as caught:
            create_engine("torchscript", weights, **case.options)
        return str(caught.value)

    assert "lacks the tensor skip.bias" in refusal(**{"skip.bias": None})
    assert "odd is not one of" in refusal(odd=np.zeros(3, np.float32))
    assert "skip.bias has shape [4]" in refusal(**{"skip.bias": np.zeros(4, np.float32)})
    nan = np.full(9, np.nan, np.float32)
    assert "skip.bias has numbers that are NaN" in refusal(**{"skip.bias": nan})


def test_condition_tensors_are_needed_with_hop_1_only(case: Case) -> None:
    for name in ("layers.0.condition.weight", "layers.0.condition.bias", "layers.7.condition.bias"):
        lacking = {k: v for k, v in case.weights.items() if k != name}
        if case.hop > 1:
            create_engine("torchscript", lacking, **case.options)
        else:
            with pytest.raises(ModelError, match=f"lacks the tensor {name}"):
                create_engine("torchscript", lacking, **case.options)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_an_output_that_is_not_finite_is_an_error_not_noise(case: Case, value: float) -> None:
    conditioning = case.conditioning.copy()
    conditioning[0, 3, 2] = value
    uniforms = np.full(case.codes.shape, 0.5, np.float32)
    with pytest.raises(ModelError, match="not finite"):
        case.engine.score(conditioning, case.codes, case.engine.initial_state(3))
    with pytest.raises(ModelError, match="not finite"):
        case.engine.generate(conditioning, uniforms, 1.0, case.engine.initial_state(3))


def test_a_gpu_that_is_not_there_is_an_error(case: Case) -> None:
    with pytest.raises(SetupError, match="cuda:99 was asked for"):
        type(case.engine)(case.weights, **case.options, device="cuda:99")


@pytest.mark.gpu
def test_a_gpu_gives_the_same_logits(case: Case) -> None:
    engine = type(case.engine)(case.weights, **case.options, device="cuda")
    logits, _ = engine.score(case.conditioning, case.codes, engine.initial_state(3))
    np.testing.assert_allclose(logits, case.eager_logits(case.codes), atol=1e-4)
