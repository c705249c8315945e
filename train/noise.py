"""Counter-based noise: what a training sample is given depends on (seed, sample number) alone.

A step is then a function of its batch, however the batch is composed, and no generator has a
state to save.
"""

from collections.abc import Iterable
from enum import IntEnum

import numpy as np
import numpy.typing as npt

JITTER_PROBABILITY = 0.12  # in total, Chorowski et al. 2019, section II-C


class Stream(IntEnum):
    """Independent streams of one sample."""

    JITTER = 1
    BOTTLENECK = 2
    DROPOUT = 3
    DITHER = 4
    AUGMENT = 5
    TAKES = 6


def generator(seed: int, g: int, stream: Stream) -> np.random.Generator:
    """The random generator of one stream of sample number `g` (Philox, Salmon et al. 2011)."""
    # The stream sits in the counter's highest word, which no draw ever carries into.
    return np.random.Generator(np.random.Philox(key=[seed, g], counter=[0, 0, 0, int(stream)]))


def jitter_sources(
    seed: int, gs: Iterable[int], units: int, probability: float = JITTER_PROBABILITY
) -> npt.NDArray[np.int64]:
    """The unit each unit is taken from under time jitter, gs [B] -> sources [B, units].

    Each of a unit's two neighbours replaces it with half of `probability`; at an end the missing
    neighbour is the unit itself. No source is used three times running: where a unit would repeat
    its left neighbour's source a third time, it takes its right neighbour's instead.
    """
    draws = np.stack([generator(seed, int(g), Stream.JITTER).random(units) for g in gs])
    offsets = (draws >= 1 - probability / 2).astype(np.int64) - (draws < probability / 2)
    sources = np.arange(units) + offsets
    # Only source j at units j - 1, j, j + 1 can be three in a row. From left to right, since a
    # redirected unit changes what its right neighbours may do.
    for i in range(2, units):
        third = (sources[:, i] == sources[:, i - 1]) & (sources[:, i] == sources[:, i - 2])
        sources[third, i] = i + 1
    clipped: npt.NDArray[np.int64] = np.clip(sources, 0, units - 1)
    return clipped


def normals(seed: int, gs: Iterable[int], shape: tuple[int, ...]) -> npt.NDArray[np.float32]:
    """Standard normal draws [B, *shape] for the bottleneck, for each of gs [B]."""
    return np.stack(
        [
            generator(seed, int(g), Stream.BOTTLENECK).standard_normal(shape, dtype=np.float32)
            for g in gs
        ]
    )


def dither(seed: int, gs: Iterable[int], samples: int, level_db: float) -> npt.NDArray[np.float32]:
    """White noise [B, samples] of an RMS of ``level_db`` re full scale, for each of gs [B]."""
    noise: npt.NDArray[np.float32] = np.stack(
        [
            generator(seed, int(g), Stream.DITHER).standard_normal(samples, dtype=np.float32)
            for g in gs
        ]
    )
    noise *= np.float32(10 ** (level_db / 20))
    return noise
