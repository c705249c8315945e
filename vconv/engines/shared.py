"""One engine for many streams: what several threads ask for at the same time is one call.

A GPU draws a sample for hundreds of lanes in about the time that it needs for one. So the lanes of
all recordings that are being converted go into the same call. No thread is added: of those that
call, one at a time leads. It takes all calls that wait and can be answered together, makes the one
call for them, and hands out what each is owed; the others wait for it.

How long a leader waits for company. A stream is there from its first state to the loss of its last
one, and between two calls its thread prepares the next chunk. While some stream is neither waiting
here nor given up, the leader waits, but for no longer than a share of what the call will take:
together, a call costs about the same for all as for one, so to go without a stream that comes a
moment later would cost that stream a whole call, and to wait in vain costs a share of one. A stream
that was waited for in vain is given up until it calls at the same time as another, so one that is
stuck (a slow disk, a listener who pauses), or that has its turns in the same thread, costs its
share once. A stream that is alone never waits.

B lanes, T samples, F conditioning steps, Q levels.
"""

from __future__ import annotations

import threading
import time
import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vconv.engines.base import Codes, Joining, State

_PATIENCE = 0.5  # of the seconds that the call will take
_MOST_PATIENCE_SECONDS = 1.0
_GLANCE_SECONDS = 0.002  # until a leader looks again whether a stream has gone


class _Stream:
    """A chain of states, of which somebody holds one."""

    def __init__(self) -> None:
        self.calls = 0  # that wait or are being answered
        self.awaited = True


@dataclass(frozen=True, eq=False)
class _State:
    inner: State
    lanes: int
    stream: _Stream


@dataclass(eq=False)
class _Call:
    conditioning: NDArray[np.float32]  # [B, F, C]
    numbers: NDArray[Any]  # [B, T]: uniforms, or codes to follow
    temperature: float | None  # None where codes are followed
    state: _State
    answer: tuple[NDArray[Any], _State] | None = None
    error: Exception | None = None

    @property
    def over(self) -> bool:
        return self.answer is not None or self.error is not None

    @property
    def kind(self) -> tuple[float | None, int]:
        """Calls of one kind can be answered together."""
        return self.temperature, self.numbers.shape[1]


class SharedEngine:
    """An engine (``Engine``) whose concurrent calls become one of ``inner``.

    Calls that wait at the same time are put together if they have the same length and the same
    temperature, or all follow codes. A call that fails in company is made again alone, so an
    exception reaches the caller whose it is, or all of them if it is the engine's. Whether a lane's
    bits depend on its company is the inner engine's to say; a stream that is alone has those of the
    inner engine.
    """

    def __init__(self, inner: Joining) -> None:
        self.inner = inner
        self._turn = threading.Condition()
        self._waiting: list[_Call] = []
        self._led = False
        self._streams: weakref.WeakSet[_Stream] = weakref.WeakSet()
        self._seconds_per_sample = 0.0  # of the last call, of all its lanes together

    @property
    def name(self) -> str:
        return self.inner.name

    @property
    def precision(self) -> str:
        return self.inner.precision

    @property
    def levels(self) -> int:
        return self.inner.levels

    @property
    def hop(self) -> int:
        return self.inner.hop

    def initial_state(self, lanes: int) -> _State:
        """The state after silence, and with it a new stream."""
        stream = _Stream()
        with self._turn:
            self._streams.add(stream)
        return _State(self.inner.initial_state(lanes), lanes, stream)

    def generate(
        self,
        conditioning: NDArray[np.float32],
        uniforms: NDArray[np.float32],
        temperature: float,
        state: State,
    ) -> tuple[Codes, _State]:
        """Draws uniforms' T samples of every lane; see Engine."""
        assert isinstance(state, _State)
        return self._answered(_Call(conditioning, uniforms, temperature, state))

    def score(
        self, conditioning: NDArray[np.float32], codes: Codes, state: State
    ) -> tuple[NDArray[np.float32], _State]:
        """Logits [B, T, Q] of the given codes' predecessors; see Engine."""
        assert isinstance(state, _State)
        return self._answered(_Call(conditioning, codes, None, state))

    def _answered(self, call: _Call) -> tuple[NDArray[Any], _State]:
        stream = call.state.stream
        with self._turn:
            stream.awaited |= self._led or bool(self._waiting)
            self._waiting.append(call)
            stream.calls += 1
            self._turn.notify_all()
            try:
                while not call.over:
                    if self._led:
                        self._turn.wait()
                    else:
                        self._lead()
            finally:
                stream.calls -= 1
                if call in self._waiting:  # its thread was interrupted
                    self._waiting.remove(call)
        if call.error is not None:
            raise call.error
        assert call.answer is not None
        return call.answer

    def _lead(self) -> None:
        """Answer the call that has waited for longest, and those that can be answered with it. The
        lock is held, but not while the inner engine is at work."""
        self._led = True
        batch: list[_Call] = []
        try:
            self._gather()
            batch = [call for call in self._waiting if call.kind == self._waiting[0].kind]
            self._waiting = [call for call in self._waiting if call not in batch]
            for call in batch:
                call.state.stream.awaited |= len(batch) > 1
            self._turn.release()
            try:
                self._answer(batch)
            finally:
                self._turn.acquire()
        finally:
            # If this thread was interrupted, somebody else leads those that it leaves.
            self._waiting[:0] = [call for call in batch if not call.over]
            self._led = False
            self._turn.notify_all()

    def _gather(self) -> None:
        """Wait until all streams wait here that will soon."""
        samples = self._waiting[0].numbers.shape[1]
        patience = min(_MOST_PATIENCE_SECONDS, _PATIENCE * self._seconds_per_sample * samples)
        deadline = time.monotonic() + patience
        while absent := [s for s in self._streams if s.awaited and not s.calls]:
            left = deadline - time.monotonic()
            if left <= 0:
                for stream in absent:
                    stream.awaited = False
                return
            del absent  # or it would keep a stream whose last state is lost
            self._turn.wait(min(left, _GLANCE_SECONDS))

    def _answer(self, batch: Sequence[_Call]) -> None:
        try:
            self._together(batch)
        except Exception as error:
            if len(batch) == 1:
                batch[0].error = error
                return
            for call in batch:
                if not call.over:
                    self._answer([call])

    def _together(self, batch: Sequence[_Call]) -> None:
        begun = time.perf_counter()
        if len(batch) == 1:
            (call,) = batch
            values, after = self._run(call.conditioning, call, call.numbers, call.state.inner)
            call.answer = values, _State(after, call.state.lanes, call.state.stream)
        else:
            counts = [call.state.lanes for call in batch]
            values, after = self._run(
                np.concatenate([call.conditioning for call in batch]),
                batch[0],
                np.concatenate([call.numbers for call in batch]),
                self.inner.join([call.state.inner for call in batch]),
            )
            states = self.inner.split(after, counts)
            stops = np.cumsum(counts)
            for call, state, stop in zip(batch, states, stops, strict=True):
                # A copy: whoever keeps it does not keep the others'.
                own = values[stop - call.state.lanes : stop].copy()
                call.answer = own, _State(state, call.state.lanes, call.state.stream)
        samples = batch[0].numbers.shape[1]
        self._seconds_per_sample = (time.perf_counter() - begun) / max(1, samples)

    def _run(
        self,
        conditioning: NDArray[np.float32],
        call: _Call,
        numbers: NDArray[Any],
        state: State,
    ) -> tuple[NDArray[Any], State]:
        if call.temperature is None:
            return self.inner.score(conditioning, numbers, state)
        return self.inner.generate(conditioning, numbers, call.temperature, state)
