"""Calls of several streams as one: who is put together, who waits, and what becomes of errors.

With an engine that is slow, whose lanes say what their own numbers say, and which knows who came
together.
"""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from vconv.engines import Joining
from vconv.engines.base import conditioning_steps
from vconv.engines.shared import SharedEngine
from vconv.errors import ModelError

HOP = 20


class Slow:
    """A state is what each lane has drawn so far, summed up; a lane whose conditioning is NaN is an
    error of all."""

    name, precision, levels, hop = "slow", "fp32", 256, HOP

    def __init__(self, seconds: float = 0.0) -> None:
        self.seconds = seconds
        self.calls: list[tuple[str, int, int]] = []  # kind, lanes, samples
        self.joins = 0
        self.before: list[Any] = []  # called in turn at the beginning of a call

    def initial_state(self, lanes: int) -> Any:
        return np.zeros(lanes, np.int64)

    def join(self, states: Sequence[Any]) -> Any:
        self.joins += 1
        return np.concatenate(states)

    def split(self, state: Any, counts: Sequence[int]) -> list[Any]:
        return np.split(state, np.cumsum(counts)[:-1])

    def generate(self, conditioning: Any, uniforms: Any, temperature: float, state: Any) -> Any:
        codes = state[:, None] + np.floor(uniforms * 100 * temperature)
        codes = (codes + np.repeat(np.nan_to_num(conditioning[:, :-1, 0]), HOP, 1)).astype(
            np.int64
        ) % 256
        return codes.astype(np.uint8), self._after("draw", conditioning, codes, state)

    def score(self, conditioning: Any, codes: Any, state: Any) -> Any:
        logits = np.repeat((codes + state[:, None]).astype(np.float32)[..., None], 3, 2)
        return logits, self._after("follow", conditioning, codes, state)

    def _after(self, kind: str, conditioning: Any, codes: Any, state: Any) -> Any:
        lanes, samples = codes.shape
        assert len(state) == lanes
        assert conditioning.shape[:2] == (lanes, conditioning_steps(samples, HOP))
        self.calls.append((kind, lanes, samples))
        if self.before:
            self.before.pop(0)()
        time.sleep(self.seconds)
        if not np.isfinite(conditioning).all():
            raise ModelError("not finite")
        return state + codes.sum(1)


def work(lanes: int, samples: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    steps = conditioning_steps(samples, HOP)
    conditioning = random.integers(0, 50, (lanes, steps, 3)).astype(np.float32)
    return conditioning, random.random((lanes, samples), np.float32)


def say(engine: Any, seed: int, chunks: int, *, temperature: float = 1.0, rest: float = 0) -> Any:
    """A recording of so many chunks: led in, then drawn; what was told and where it ended."""
    lanes = 1 + seed % 3
    state = engine.initial_state(lanes)
    conditioning, _ = work(lanes, HOP, seed)
    told, state = engine.score(conditioning, np.full((lanes, HOP), seed, np.uint8), state)
    parts = [told[..., 0]]
    for chunk in range(chunks):
        time.sleep(rest * (seed % 4))
        codes, state = engine.generate(*work(lanes, 2 * HOP, seed + chunk), temperature, state)
        parts.append(codes)
    return np.concatenate(parts, axis=1)


def at_once(*calls: Any, wait: float = 60.0) -> list[Any]:
    """What calls in a thread each come to: a result or an exception."""
    found: list[Any] = [None] * len(calls)

    def run(index: int) -> None:
        try:
            found[index] = calls[index]()
        except BaseException as error:
            found[index] = error.with_traceback(None)  # a frame would keep the stream

    threads = [threading.Thread(target=run, args=(i,), daemon=True) for i in range(len(calls))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(wait)
        assert not thread.is_alive(), "deadlock"
    return found


def until(condition: Any) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.001)


def test_streams_in_company_say_what_each_says_alone_in_few_calls() -> None:
    """Ten recordings of ten chunks, whose threads take unlike time in between."""
    inner = Slow(0.04)
    shared = SharedEngine(inner)
    assert isinstance(inner, Joining)
    made = at_once(*(lambda i=i: say(shared, i, 10, rest=0.003) for i in range(10)))
    for seed, found in enumerate(made):
        np.testing.assert_array_equal(found, say(Slow(), seed, 10))
    drawn = [lanes for kind, lanes, _ in inner.calls if kind == "draw"]
    assert sum(drawn) == 10 * sum(1 + seed % 3 for seed in range(10))
    assert len(drawn) < 40, "of 100 calls"
    assert not shared._waiting


def test_only_calls_of_one_length_and_temperature_are_put_together() -> None:
    inner = Slow()
    shared = SharedEngine(inner)
    gate = threading.Event()
    inner.before.append(gate.wait)
    first = threading.Thread(target=lambda: say(shared, 0, 0))
    first.start()
    until(lambda: inner.calls)

    def one(lanes: int, samples: int, temperature: float | None) -> Any:
        conditioning, uniforms = work(lanes, samples, lanes)
        state = shared.initial_state(lanes)
        if temperature is None:
            return shared.score(conditioning, np.zeros((lanes, samples), np.uint8), state)[0]
        return shared.generate(conditioning, uniforms, temperature, state)[0]

    cases = [(1, 40, 1.0), (2, 40, 1.0), (3, 40, 0.5), (4, 20, 1.0), (5, 40, None), (6, 40, None)]
    opener = threading.Thread(
        target=lambda: (until(lambda: len(shared._waiting) == len(cases)), gate.set())
    )
    opener.start()
    found = at_once(*(lambda case=case: one(*case) for case in cases))
    opener.join()
    first.join()
    assert [len(each) for each in found] == [1, 2, 3, 4, 5, 6]
    assert sorted(inner.calls[1:]) == [
        ("draw", 3, 40),
        ("draw", 3, 40),
        ("draw", 4, 20),
        ("follow", 11, 40),
    ]


def test_a_stream_that_is_alone_neither_waits_nor_is_copied() -> None:
    inner = Slow()
    shared = SharedEngine(inner)
    shared._seconds_per_sample = 10.0
    begun = time.monotonic()
    say(shared, 1, 20)
    assert time.monotonic() - begun < 0.5
    assert inner.joins == 0
    assert len(inner.calls) == 21


def test_one_bad_lane_fails_alone() -> None:
    inner = Slow()
    shared = SharedEngine(inner)

    def bad() -> Any:
        conditioning, uniforms = work(2, 40, 0)
        state = shared.initial_state(2)
        conditioning[1, 1] = np.nan
        return shared.generate(conditioning, uniforms, 1.0, state)

    def good(seed: int) -> Any:
        return shared.generate(*work(1, 40, seed), 1.0, shared.initial_state(1))[0]

    gate = threading.Event()
    inner.before.append(gate.wait)
    first = threading.Thread(target=lambda: good(9))
    first.start()
    until(lambda: inner.calls)
    opener = threading.Thread(target=lambda: (until(lambda: len(shared._waiting) == 3), gate.set()))
    opener.start()
    found = at_once(lambda: good(1), bad, lambda: good(2))
    opener.join()
    first.join()
    assert ("draw", 4, 40) in inner.calls, "they were together"
    assert isinstance(found[1], ModelError)
    for result, seed in ((found[0], 1), (found[2], 2)):
        alone, _ = Slow().generate(*work(1, 40, seed), 1.0, np.zeros(1, np.int64))
        np.testing.assert_array_equal(result, alone)


def test_an_engine_that_fails_fails_all_who_call() -> None:
    inner = Slow(0.01)
    shared = SharedEngine(inner)
    inner.join = lambda states: 1 / 0  # type: ignore[method-assign, assignment, return-value]

    def broken(*_: Any) -> Any:
        raise MemoryError("no more")

    inner.generate = broken  # type: ignore[method-assign]
    found = at_once(*(lambda i=i: say(shared, i, 3) for i in range(6)))
    assert [type(each) for each in found] == [MemoryError] * 6
    assert not shared._waiting
    assert not shared._led


def test_nobody_waits_for_a_stream_that_has_ended_or_died() -> None:
    shared = SharedEngine(Slow())
    other = [shared.initial_state(1)]
    shared._seconds_per_sample = 10.0  # a second's patience
    conditioning, uniforms = work(1, 40, 0)
    state = shared.initial_state(1)
    begun = time.monotonic()
    threading.Timer(0.1, other.clear).start()
    shared.generate(conditioning, uniforms, 1.0, state)
    assert 0.1 <= time.monotonic() - begun < 0.9
    assert len(shared._streams) == 1


def test_a_stream_that_is_stuck_costs_its_share_once_and_is_welcome_again() -> None:
    inner = Slow(0.3)
    shared = SharedEngine(inner)
    stuck, state = shared.initial_state(1), shared.initial_state(1)
    conditioning, uniforms = work(1, 40, 0)
    _, state = shared.generate(conditioning, uniforms, 1.0, state)  # how long it takes is learned
    stuck.stream.awaited = True
    waits = []
    for _ in range(4):
        begun = time.monotonic()
        _, state = shared.generate(conditioning, uniforms, 1.0, state)
        waits.append(time.monotonic() - begun - 0.3)
    assert waits[0] > 0.14
    assert max(waits[1:]) < 0.1
    assert not stuck.stream.awaited
    at_once(
        lambda: shared.generate(conditioning, uniforms, 1.0, state),
        lambda: shared.generate(conditioning, uniforms, 1.0, stuck),
    )
    assert stuck.stream.awaited


def test_streams_that_take_turns_in_one_thread_do_not_wait_for_each_other() -> None:
    shared = SharedEngine(Slow(0.2))
    states = [shared.initial_state(1) for _ in range(3)]
    conditioning, uniforms = work(1, 40, 0)
    for index in range(3):
        _, states[index] = shared.generate(conditioning, uniforms, 1.0, states[index])
    begun = time.monotonic()
    for index in (0, 1, 2, 0, 1, 2):
        _, states[index] = shared.generate(conditioning, uniforms, 1.0, states[index])
    assert time.monotonic() - begun < 6 * 0.2 + 3 * 0.1


def test_an_interrupted_leader_leaves_the_others_to_another() -> None:
    inner = Slow()
    shared = SharedEngine(inner)

    def interrupted() -> None:
        until(lambda: len(shared._waiting) == 2)
        raise KeyboardInterrupt

    def lead() -> Any:
        return say(shared, 0, 1)

    def follow(seed: int) -> Any:
        until(lambda: inner.calls)
        return say(shared, seed, 3)

    inner.before.append(interrupted)
    found = at_once(lead, lambda: follow(1), lambda: follow(2))
    assert isinstance(found[0], KeyboardInterrupt)
    np.testing.assert_array_equal(found[1], say(Slow(), 1, 3))
    np.testing.assert_array_equal(found[2], say(Slow(), 2, 3))


def test_a_leader_interrupted_in_company_hands_the_company_on() -> None:
    inner = Slow()
    shared = SharedEngine(inner)
    gate = threading.Event()

    def interrupt_the_first() -> None:
        raise KeyboardInterrupt

    inner.before += [gate.wait, interrupt_the_first]
    first = threading.Thread(target=lambda: say(shared, 0, 0))
    first.start()
    until(lambda: inner.calls)
    opener = threading.Thread(target=lambda: (until(lambda: len(shared._waiting) == 3), gate.set()))
    opener.start()
    found = at_once(*(lambda i=i: say(shared, i, 2) for i in (1, 2, 4)))
    opener.join()
    first.join()
    assert ("follow", 7, HOP) in inner.calls
    stopped = [isinstance(each, KeyboardInterrupt) for each in found]
    assert sum(stopped) == 1
    for each, seed, gone in zip(found, (1, 2, 4), stopped, strict=True):
        if not gone:
            np.testing.assert_array_equal(each, say(Slow(), seed, 2))


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="needs a timer that sends signals")
def test_a_caller_interrupted_while_it_waits_takes_its_call_back() -> None:
    class Interrupted(BaseException):
        pass

    def interrupt(*_: object) -> None:
        raise Interrupted

    inner = Slow()
    shared = SharedEngine(inner)
    gate = threading.Event()
    inner.before.append(gate.wait)
    leader = threading.Thread(target=lambda: say(shared, 0, 2))
    leader.start()
    until(lambda: inner.calls)
    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.1)
        with pytest.raises(Interrupted):
            say(shared, 1, 2)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert not shared._waiting
    gate.set()
    leader.join(30)
    assert not leader.is_alive()
    assert {lanes for _, lanes, _ in inner.calls} == {1}
