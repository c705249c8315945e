"""The mean and spread of the features over a corpus, by which the network normalises them."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt

from .corpus import FULL_SCALE

Span = tuple[int, int]
Sums = tuple[int, npt.NDArray[np.float64], npt.NDArray[np.float64]]

_SHARD_SAMPLES = 60 * 16_000  # about a minute of audio for one task
_BLOCK_FRAMES = 1_000
MIN_STD = 1e-2  # a band that never moves (band-limited sources) must not be blown up


def feature_statistics(
    audio: Path,
    spans: Sequence[Span],
    run: Callable[..., Iterator[Sums]],
    advance: Callable[[int, int], None],
) -> dict[str, dict[str, list[float]]]:
    """{feature kind: {"mean": [D], "std": [D]}} over all frames of the spans of an int16 file.

    A span is (start, length) in samples; those of a corpus are its training recordings without
    the silence around them, which would otherwise set the scale. `run` maps a function over
    arguments and gives the results in their order, so the sums do not depend on the workers.
    """
    shards = list(_shards(spans))
    count, total, squares = 0, np.zeros(1), np.zeros(1)
    for done, (n, first, second) in enumerate(run(partial(_sums, audio), shards)):
        count, total, squares = count + n, total + first, squares + second
        advance(len(shards), done + 1)
    mean = total / count
    std = np.sqrt(np.maximum(squares / count - mean**2, MIN_STD**2))
    return {"logmel80": {"mean": mean.tolist(), "std": std.tolist()}}


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


def _sums(audio: Path, spans: Sequence[Span]) -> Sums:
    """(frames, their sum [D], the sum of their squares [D]) of some spans."""
    # Imported here: the processes that only convert recordings need no torch.
    import torch

    from vconv.geometry import FRAME_HOP, FRAME_LENGTH
    from vconv.nn.features import LogMel

    torch.set_num_threads(1)  # the processes share the cores already
    features = LogMel()
    samples: npt.NDArray[np.int16] = np.memmap(audio, "<i2", mode="r")
    count, total, squares = 0, np.zeros(features.channels), np.zeros(features.channels)
    step = _BLOCK_FRAMES * FRAME_HOP
    with torch.inference_mode():
        for start, length in spans:
            for begin in range(0, length - FRAME_LENGTH + 1, step):
                end = min(begin + step + FRAME_LENGTH - FRAME_HOP, length)
                block = samples[start + begin : start + end] / np.float32(FULL_SCALE)
                frames = features.log_mel(torch.from_numpy(block)[None])[0].double().numpy()
                count += frames.shape[1]
                total += frames.sum(axis=1)
                squares += np.square(frames).sum(axis=1)
    return count, total, squares
