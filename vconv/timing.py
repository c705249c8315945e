"""Timing work that takes turns, and two probes of the machine that are timed like it.

What else a machine does meets all alike that take turns. A figure is the median of its turns, with
the quartiles around it, and counts the processor time of the threads that work: what others take
from them does not count, though a colder cache and a lower clock do.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

TURNS = 9
_FEWEST_TURNS = 3
_WARM_UPS = 3  # buffers touched, scripts optimised

# Windows counts a thread's time in steps of 16 ms, half a turn.
processor_clock = time.perf_counter if os.name == "nt" else time.thread_time


@dataclass(frozen=True)
class Spread:
    """A figure's median and quartiles."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        low, median, high = np.percentile(values, [25, 50, 75]).tolist()
        return cls(median, low, high)

    @property
    def width(self) -> float:
        """The distance of the quartiles, as a share of the median."""
        return (self.high - self.low) / self.median


@dataclass
class Trial:
    """Work that is done again and again: every call of a step does ``amount`` of it.

    Of several steps each has a thread of its own, and they work at the same time.
    """

    amount: float
    steps: Sequence[Callable[[], object]]
    repeats: int = 1  # calls in a turn
    processor: list[float] = field(default_factory=list)  # of each turn, all threads together
    wall: list[float] = field(default_factory=list)

    def turn(self) -> None:
        if len(self.steps) == 1:
            times = [self._timed(self.steps[0])]
        else:
            with ThreadPoolExecutor(len(self.steps)) as pool:
                times = list(pool.map(self._timed, self.steps))
        self.processor.append(sum(processor for processor, _ in times))
        self.wall.append(sum(wall for _, wall in times))

    @property
    def rate(self) -> Spread:
        """Amount a second; the rates of several threads add up."""
        threads = len(self.steps)
        done = self.amount * self.repeats * threads * threads
        return Spread.of([done / seconds for seconds in self.processor])

    def _timed(self, step: Callable[[], object]) -> tuple[float, float]:
        processor, wall = processor_clock(), time.perf_counter()
        for _ in range(self.repeats):
            step()
        return processor_clock() - processor, time.perf_counter() - wall


def take_turns(trials: Sequence[Trial], seconds: float, turns: int = TURNS) -> None:
    """Give every trial so many turns, which together last about so many seconds; fewer, but three
    at least, where the shortest turn is too long for that."""
    for trial in trials:
        for _ in range(_WARM_UPS):
            trial.turn()
        step = trial.processor[-1] / len(trial.steps)
        trial.repeats = max(1, round(seconds / turns / max(step, 1e-7)))
        trial.processor.clear()
        trial.wall.clear()
    for turn in range(turns):
        for trial in trials:
            spent = sum(trial.processor) / len(trial.steps)
            if turn < _FEWEST_TURNS or spent < 1.5 * seconds:
                trial.turn()


def waiting(trials: Sequence[Trial]) -> float:
    """The share of their time in which the trials' threads were kept from working."""
    wall = sum(sum(trial.wall) for trial in trials)
    return max(0.0, 1 - sum(sum(trial.processor) for trial in trials) / wall)


def multiplying(threads: int = 1) -> Trial:
    """Multiply-adds: numpy's product of two matrices of 384 x 384 floats.

    This is what the BLAS that numpy brings makes of a core with everything in its second cache:
    about nine tenths of what a loop of nothing but multiply-adds reaches (AVX2, OpenBLAS).
    """
    size = 384
    ones = np.ones((size, size), np.float32)
    results = [np.empty((size, size), np.float32) for _ in range(threads)]

    def step(result: npt.NDArray[np.float32]) -> Callable[[], object]:
        return lambda: np.matmul(ones, ones, out=result)

    return Trial(size**3, [step(result) for result in results])


def reading(count: int, threads: int = 1) -> Trial:
    """Bytes read: numpy's maximum of an array of so many bytes, from whatever cache they fit.

    Its loop does more with a vector than to load it, and numpy's call counts where the array is
    small: on the machine of docs/performance.md it reaches three fifths of what a loop that only
    adds vectors does with 160 kB, and more with more. benchmarks/sampler.py prints both.
    """
    array = np.ones(max(1, count // 4), np.uint32)
    # Enough of a small array that calling numpy does not count.
    passes = max(1, 1_000_000 // array.nbytes)

    def step() -> None:
        for _ in range(passes):
            array.max()

    return Trial(array.nbytes * passes, [step] * threads)


def products_take_one_thread() -> bool:
    """Whether numpy's product works in the calling thread alone, as ``multiplying`` wants it."""
    step = multiplying().steps[0]
    step()
    thread, process = time.thread_time(), time.process_time()
    for _ in range(10):
        step()
    return time.process_time() - process < 1.5 * (time.thread_time() - thread)
