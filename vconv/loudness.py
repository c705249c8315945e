"""How loud a signal is, and bringing a finished conversion to a wanted level."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np

from .errors import UsageError
from .reading import Samples

Level = Literal["keep", "match", "peak"]
LEVELS = ("keep", "match", "peak")

SILENT_PEAK = 1e-4  # -80 dB: three steps of 16 bits
PEAK = 10 ** (-1 / 20)  # -1 dB leaves room for what a lossy coder adds
_BLOCK = 1 << 16


@dataclass
class Loudness:
    """Energy and peak of the blocks added so far."""

    samples: int = 0
    energy: float = 0.0
    peak: float = 0.0

    def add(self, block: Samples) -> None:
        self.samples += len(block)
        self.energy += float(np.square(block, dtype=np.float64).sum())
        self.peak = max(self.peak, float(np.abs(block).max(initial=0.0)))

    @property
    def rms(self) -> float:
        return float((self.energy / max(self.samples, 1)) ** 0.5)

    @property
    def silent(self) -> bool:
        return self.peak < SILENT_PEAK


def checked_level(level: str) -> None:
    """UsageError unless it is one of LEVELS."""
    if level not in LEVELS:
        raise UsageError(f"The level must be one of {', '.join(LEVELS)}, found {level!r}.")


def gain(level: Level, source: Loudness, made: Loudness) -> float:
    """What to multiply a conversion by: to the source's RMS (never beyond full scale), or to a
    peak of -1 dB."""
    if level == "keep" or made.silent:
        return 1.0
    if level == "peak":
        return PEAK / made.peak
    return min(source.rms / made.rms, 1.0 / made.peak)


def levelled(blocks: Iterable[Samples], level: Level, source: Loudness) -> Iterator[Samples]:
    """The blocks at the wanted level, in constant memory: all must be known before the first.

    ``source`` is complete once the blocks are.
    """
    if level == "keep":
        yield from blocks
        return
    made = Loudness()
    with tempfile.TemporaryFile() as spool:
        for block in blocks:
            made.add(block)
            spool.write(block.tobytes())
        factor = np.float32(gain(level, source, made))
        spool.seek(0)
        while piece := spool.read(4 * _BLOCK):
            yield np.frombuffer(piece, np.float32) * factor
