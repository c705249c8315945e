"""The mean and spread of the features over a corpus, by which the network normalises them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt

from .corpus import FULL_SCALE

Span = tuple[int, int]

_SHARD_SAMPLES = 60 * 16_000  # about a minute of audio for one task
_BLOCK_FRAMES = 1_000
MIN_STD = 1e-2  # a band that never moves (band-limited sources) must not be blown up


@dataclass(frozen=True)
class Sums:
    """Frames of one feature kind: how many, their sum [D], the sum of their squares [D]."""

    count: int
    total: npt.NDArray[np.float64]
    squares: npt.NDArray[np.float64]

    @classmethod
    def of(cls, frames: npt.NDArray[np.float64]) -> Sums:
        """The sums of frames [D, F]."""
        return cls(frames.shape[1], frames.sum(axis=1), np.square(frames).sum(axis=1))

    def __add__(self, other: Sums) -> Sums:
        return Sums(
            self.count + other.count, self.total + other.total, self.squares + other.squares
        )

    def statistics(self) -> dict[str, list[float]]:
        mean = self.total / self.count
        std = np.sqrt(np.maximum(self.squares / self.count - mean**2, MIN_STD**2))
        return {"mean": mean.tolist(), "std": std.tolist()}


def feature_statistics(
    audio: Path,
    spans: Sequence[Span],
    run: Callable[..., Iterator[Mapping[str, Sums]]],
    advance: Callable[[int, int], None],
) -> dict[str, dict[str, list[float]]]:
    """{feature kind: {"mean": [D], "std": [D]}} over all frames of the spans of an int16 file.

    A span is (start, length) in samples; those of a corpus are its training recordings without
    the silence around them, which would otherwise set the scale. A kind of which no span is long
    enough for a frame is left out. `run` maps a function over arguments and gives the results in
    their order, so the sums do not depend on the workers.
    """
    shards = list(_shards(spans))
    totals: dict[str, Sums] = {}
    for done, sums in enumerate(run(partial(_sums, audio), shards)):
        for kind, value in sums.items():
            _add(totals, kind, value)
        advance(len(shards), done + 1)
    return {kind: total.statistics() for kind, total in sorted(totals.items())}


def _add(totals: dict[str, Sums], kind: str, sums: Sums) -> None:
    totals[kind] = totals[kind] + sums if kind in totals else sums


def _shards(spans: Sequence[Span]) -> Iterator[list[Span]]:
    shard: list[Span] = []
    size = 0
    for span in spans:
        shard.append(span)
        size += span[1]
        if size >= _SHARD_SAMPLES:
            yield shard
            shard, size = [], 0
    if shard:
        yield shard


def _sums(audio: Path, spans: Sequence[Span]) -> dict[str, Sums]:
    """The sums of every feature kind over some spans."""
    # Imported here: the processes that only convert recordings need no torch.
    import torch

    from vconv.geometry import DELTAS, FRAMING
    from vconv.geometry import Span as Steps
    from vconv.nn.features import MFCC, LogMel

    torch.set_num_threads(1)  # the processes share the cores already
    log_mel, mfcc = LogMel(), MFCC()
    samples: npt.NDArray[np.int16] = np.memmap(audio, "<i2", mode="r")
    totals: dict[str, Sums] = {}

    with torch.inference_mode():
        for start, length in spans:
            frames = len(FRAMING.outputs(Steps(0, length)))
            for first in range(0, frames, _BLOCK_FRAMES):
                # The block's frames, and those after it that its last deltas read.
                read = DELTAS.inputs(Steps(first, first + _BLOCK_FRAMES))
                read = Steps(first, min(read.stop, frames))
                wav = FRAMING.inputs(read).shift(start)
                block = samples[wav.start : wav.stop] / np.float32(FULL_SCALE)
                mel = log_mel.raw(torch.from_numpy(block)[None])
                _add(totals, "logmel80", Sums.of(mel[0, :, :_BLOCK_FRAMES].double().numpy()))
                if DELTAS.outputs(Steps(0, len(read))):
                    _add(totals, "mfcc39", Sums.of(mfcc.cepstra(mel)[0].double().numpy()))
    return totals
