"""Blocks of samples at fixed places, replayed: what tests/engines/test_torchscript.py, which holds
this engine to the contract of all, does not ask."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
import pytest
import torch

from vconv.engines import create_engine
from vconv.engines.base import conditioning_steps
from vconv.engines.cudagraphs import MOST_RECORDINGS, CudaGraphsEngine, Replayed, round_lanes
from vconv.engines.torchscript import IncrementalEngine
from vconv.errors import SetupError, UsageError
from vconv.nn.wavenet import WaveNet

OPTIONS: dict[str, int] = {"blocks": 2, "layers": 4, "kernel_size": 2}
HOPS = (20, 1)


def weights(hop: int) -> dict[str, np.ndarray]:
    torch.manual_seed(0)
    network = WaveNet(
        levels=32,
        residual_channels=6,
        gate_channels=5,
        skip_channels=9,
        conditioning_channels=4,
        hop=hop,
        **OPTIONS,
    )
    return {name: 2 * tensor.numpy() for name, tensor in network.state_dict().items()}


def engine(hop: int, device: str = "cpu", kind: type[Any] = CudaGraphsEngine) -> Any:
    return kind(weights(hop), **OPTIONS, hop=hop, device=device)


def work(hop: int, lanes: int, samples: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Conditioning and uniforms."""
    random = np.random.default_rng(seed)
    width = 4 if hop == 1 else 8 * 2 * 5
    steps = conditioning_steps(samples, hop)
    conditioning = random.standard_normal((lanes, steps, width), np.float32)
    return conditioning, random.random((lanes, samples), np.float32)


def replayed(made: CudaGraphsEngine) -> Replayed:
    assert isinstance(made._step, Replayed)
    return made._step


@pytest.mark.parametrize("hop", HOPS)
def test_draws_are_the_eager_step_s(hop: int) -> None:
    """Lanes that fill a round number and lanes that do not, with a rest of a block in the end."""
    mine, eager = engine(hop), engine(hop, kind=IncrementalEngine)
    for lanes in (1, 4, 5):
        conditioning, uniforms = work(hop, lanes, 140 if hop == 1 else 160)
        for temperature in (0.0, 1.0):
            found, state = mine.generate(
                conditioning, uniforms, temperature, mine.initial_state(lanes)
            )
            wanted, after = eager.generate(
                conditioning, uniforms, temperature, eager.initial_state(lanes)
            )
            assert (found == wanted).mean() > 0.99
            assert len(state[0]) == lanes
            assert state[1].shape == after[1].shape
            assert state[1].is_contiguous()
            assert int(state[2]) == int(after[2])
        assert len(np.unique(found)) > 10


@pytest.mark.parametrize("hop", HOPS)
def test_recordings_are_few_and_none_is_another_s(hop: int) -> None:
    """More kinds of calls than recordings are kept, in turns: each says what it said at first."""
    made = engine(hop)
    kinds = [(lanes, 0.5 + step / 20) for lanes in (1, 3, 6) for step in range(7)]
    assert len(kinds) > MOST_RECORDINGS

    def say(lanes: int, temperature: float) -> np.ndarray:
        conditioning, uniforms = work(hop, lanes, 80, seed=lanes)
        return made.generate(conditioning, uniforms, temperature, made.initial_state(lanes))[0]

    first = [say(*kind) for kind in kinds]
    assert len(replayed(made)._blocks) == MOST_RECORDINGS
    for kind, codes in [*zip(kinds, first, strict=True)][::-1]:
        np.testing.assert_array_equal(say(*kind), codes)
    assert len(replayed(made)._blocks) == MOST_RECORDINGS
    made.score(work(hop, 1, 80)[0], first[0], made.initial_state(1))
    assert [key for key in replayed(made)._blocks if key[2]] == [(1, 1.0, True)]


def test_lanes_are_rounded_up_and_few_numbers_are_left() -> None:
    found = [round_lanes(lanes) for lanes in range(1, 1025)]
    assert all(lanes <= computed for lanes, computed in enumerate(found, 1))
    assert sorted(set(found)) == [1, 2, 4, 8, 16, 32, *range(64, 1025, 64)]


def test_threads_do_not_get_into_each_other_s_places() -> None:
    made = engine(20)
    cases = [(lanes, *work(20, lanes, 200, seed=lanes)) for lanes in (1, 2, 3, 4)]

    def say(lanes: int, conditioning: np.ndarray, uniforms: np.ndarray) -> np.ndarray:
        state, parts = made.initial_state(lanes), []
        for first in range(0, 200, 40):
            steps = conditioning[:, first // 20 : first // 20 + 3]
            codes, state = made.generate(steps, uniforms[:, first : first + 40], 1.0, state)
            parts.append(codes)
        return np.concatenate(parts, axis=1)

    alone = [say(*case) for case in cases]
    together: dict[int, np.ndarray] = {}
    threads = [
        threading.Thread(target=lambda i=i: together.update({i: say(*cases[i % 4])}))
        for i in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for i in range(8):
        np.testing.assert_array_equal(together[i], alone[i % 4])


def test_it_is_for_cuda_and_says_so() -> None:
    options = {**OPTIONS, "hop": 20}
    with pytest.raises(UsageError, match="cudagraphs engine runs on CUDA only; use --device cuda"):
        create_engine("cudagraphs", weights(20), **options)
    with pytest.raises(UsageError, match="bf16 is a precision of the native and triton engines"):
        create_engine("cudagraphs", weights(20), **options, device="cuda", precision="bf16")
    with pytest.raises(SetupError, match="cuda:99 was asked for"):
        create_engine("cudagraphs", weights(20), **options, device="cuda:99")


@pytest.mark.gpu
@pytest.mark.parametrize("hop", HOPS)
def test_a_replay_has_the_bits_of_the_launches_one_by_one(hop: int) -> None:
    """Of four lanes, which fill a recording. Then of three in company with nobody."""
    graphs, eager = engine(hop, "cuda"), engine(hop, "cuda", IncrementalEngine)
    conditioning, uniforms = work(hop, 4, 140 if hop == 1 else 160)
    for temperature in (0.0, 1.0):
        found, state = graphs.generate(conditioning, uniforms, temperature, graphs.initial_state(4))
        wanted, after = eager.generate(conditioning, uniforms, temperature, eager.initial_state(4))
        np.testing.assert_array_equal(found, wanted)
        assert all(torch.equal(part, its) for part, its in zip(state, after, strict=True))
        assert all(part.is_cuda for part in state)
    logits, _ = graphs.score(conditioning, found, graphs.initial_state(4))
    expected, _ = eager.score(conditioning, found, eager.initial_state(4))
    np.testing.assert_array_equal(logits, expected)
    three, _ = graphs.score(conditioning[:3], found[:3], graphs.initial_state(3))
    np.testing.assert_allclose(three, expected[:3], atol=1e-5)


@pytest.mark.gpu
@pytest.mark.parametrize("hop", HOPS)
def test_on_a_gpu_chunks_are_the_whole_and_states_stay_as_they_were(hop: int) -> None:
    made = engine(hop, "cuda")
    conditioning, uniforms = work(hop, 3, 320)
    begun = made.initial_state(3)
    before = [part.clone() for part in begun]
    whole, last = made.generate(conditioning, uniforms, 1.0, begun)
    state, parts = begun, []
    for first, stop in ((0, 40), (40, 260), (260, 320)):
        step = first // hop
        steps = conditioning[:, step : step + conditioning_steps(stop - first, hop)]
        # Another recording in between, and lanes of somebody else in this one.
        made.generate(*work(hop, 3, 40, seed=7), 1.0, made.initial_state(3))
        made.generate(*work(hop, 9, 40, seed=8), 0.5, made.initial_state(9))
        codes, state = made.generate(steps, uniforms[:, first:stop], 1.0, state)
        parts.append(codes)
    np.testing.assert_array_equal(np.concatenate(parts, axis=1), whole)
    assert all(torch.equal(a, b) for a, b in zip(state, last, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(begun, before, strict=True))


@pytest.mark.gpu
def test_other_threads_use_the_gpu_while_a_recording_is_made() -> None:
    made = engine(20, "cuda")
    stop = threading.Event()
    products = 0

    def busy() -> None:
        nonlocal products
        while not stop.is_set():
            side = 64 + products % 512  # of ever new sizes: memory is asked for, too
            x = torch.randn(side, side, device="cuda")
            assert bool(torch.isfinite(x @ x).all())
            products += 1

    thread = threading.Thread(target=busy)
    thread.start()
    try:
        for lanes in (1, 2, 3, 5, 9, 17):
            conditioning, uniforms = work(20, lanes, 40)
            codes, _ = made.generate(conditioning, uniforms, 1.0, made.initial_state(lanes))
            assert codes.shape == (lanes, 40)
    finally:
        stop.set()
        thread.join()
    assert products > 0
