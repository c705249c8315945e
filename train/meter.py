"""What is measured between two log lines."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor


@dataclass
class Meter:
    """Sums of the steps' figures since the last log line, and the clock.

    The sums are part of a checkpoint, so that a line whose steps fall to both sides of an
    interruption says what it would have said without. The clock is not: it starts anew.
    """

    steps: int = 0
    sums: dict[str, Tensor] = field(default_factory=dict)
    timed: int = 0  # steps since the clock was started
    waited: float = 0.0
    started: float = field(default_factory=time.perf_counter)

    def add(self, figures: Mapping[str, Tensor]) -> None:
        """A step's figures; they stay on their device until they are read."""
        self.steps += 1
        self.timed += 1
        for name, value in figures.items():
            value = value.detach()
            self.sums[name] = self.sums[name] + value if name in self.sums else value

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Around what only waits for data."""
        before = time.perf_counter()
        yield
        self.waited += time.perf_counter() - before

    @contextmanager
    def standing(self) -> Iterator[None]:
        """Around what is no training: the clock stands."""
        before = time.perf_counter()
        yield
        self.started += time.perf_counter() - before

    def read(self, samples_per_step: int, sample_rate: int) -> dict[str, float]:
        """Means, throughput and share of time spent waiting; begins anew."""
        figures = {name: float(value) / self.steps for name, value in self.sums.items()}
        elapsed = time.perf_counter() - self.started  # once the figures are there, on any device
        rate = self.timed * samples_per_step / elapsed
        figures["samples_per_second"] = rate
        figures["times_real_time"] = rate / sample_rate
        figures["data_wait"] = self.waited / elapsed
        self.steps, self.timed, self.waited, self.sums = 0, 0, 0.0, {}
        self.started = time.perf_counter()
        return figures

    def to_json(self) -> dict[str, Any]:
        """Exact: a float32 is a JSON number."""
        return {"steps": self.steps, "sums": {name: float(v) for name, v in self.sums.items()}}

    @classmethod
    def of(cls, stored: Mapping[str, Any], device: torch.device) -> Meter:
        """From what ``to_json`` gave."""
        sums = {name: torch.tensor(v, device=device) for name, v in stored["sums"].items()}
        return cls(steps=int(stored["steps"]), sums=sums)
