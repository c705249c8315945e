"""A recording in lanes: pieces of it that are generated side by side and joined where it is quiet.

B lanes, T samples. One lane of the sampler reads every weight for every sample; lanes that are
computed together share the reading, and several groups of lanes the processor's cores.

The recording is taken in rounds, so that memory is bounded. A round is cut near equal distances,
each time at the quietest chunk around. A lane begins before its piece as a recording begins, in
silence, and speaks beyond its end, so that neighbours overlap. In the overlap both say the same
units with the same uniforms, which are counted by sample, not by lane: so in fp32 they mostly draw
the same codes, and once they have done so for a receptive field they are one and the same. In int8
they seldom do. Where they differ least they are crossfaded.

On a GPU the lanes of all recordings that are on their way are computed together, by the engine
itself (``engines.shared``).
"""

from __future__ import annotations

import itertools
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from typing import Literal

import numpy as np

from .audio import SAMPLE_RATE, resampled_length
from .engines import Codes
from .errors import UsageError
from .reading import Samples
from .stream import Chunk, ChunkEncoder, Output, Sampling, Voice

Lanes = int | Literal["auto"]
MAX_LANES = 64

# All in chunks, of 0.2 s.
_PIECE = 50  # the longest
_ROUND = 1600  # of all lanes together: with 64 lanes pieces are half as long
_SHORTEST = 12  # piece, and three times the warm-up more, whatever was asked for
_SEARCH = 5  # how far from its place a cut may lie
_BEFORE = 2, 6  # how long a lane that begins in a quiet or a loud place warms up, once it hears
_AFTER = 1, 1  # and how long the lane before goes on

# A piece of `auto`, and how many there are at most. Not the number of cores: it must not change
# what is said.
_AUTO_PIECE = 20
_AUTO_LANES = 8

QUIET = 0.1  # of the round's RMS: -20 dB
FADE = 640  # samples of a crossfade: 40 ms
_SEAM_HOP = 160

_TELL_SECONDS = 0.2


def checked_lanes(lanes: int | str) -> Lanes:
    """The lanes, if there can be so many; UsageError otherwise."""
    if lanes == "auto":
        return "auto"
    try:
        found = int(lanes)
    except (TypeError, ValueError):
        found = 0
    if not 1 <= found <= MAX_LANES or str(found) != str(lanes):
        raise UsageError(f"The lanes must be auto or 1 to {MAX_LANES}, found {lanes!r}.")
    return found


class LaneSession:
    """One recording on its way through, in lanes: push blocks at its own rate, then flush.

    What comes out depends on the recording, the voice and the lanes, not on the cores.
    """

    def __init__(
        self,
        voice: Voice,
        *,
        lanes: Lanes,
        name: str,
        in_hz: int,
        out_hz: int,
        heard: list[Chunk] | None = None,
        tell: Callable[[], None],
        cores: Callable[[], int] | None = None,
    ) -> None:
        """``heard``: a list to which all chunks of the recording are added; ``tell``: called
        several times a second while lanes are generated; it may raise to end that; ``cores``:
        asked in every round how many to use, by default all of the process's."""
        self.encoder = ChunkEncoder(voice.model, rate=in_hz, name=name)
        self.lanes = 1
        """The most that were generated side by side."""
        self._model = voice.model
        self._voice = voice
        self._wanted = lanes
        self._rates = (in_hz, out_hz)
        self._output = Output(out_hz)
        self._heard = heard
        self._tell = tell
        self._cores = cores
        self._done = 0.0  # seconds
        most = _AUTO_LANES if lanes == "auto" else lanes
        self._round = most * min(_PIECE, _ROUND // most)
        self._settle = -voice.model.grid.first_chunk  # chunks: a receptive field
        self._lead: list[Chunk] = []
        self._waiting: list[Chunk] = []  # from the next lane's first on
        self._cut = 0  # the chunk with which the next round begins, its warm-up aside
        self._tail = np.zeros(0, np.float32)  # from the next lane's beginning on

    @property
    def seconds(self) -> float:
        """How much of the recording is generated, about."""
        return min(self._done, self.encoder.pushed / self._rates[0])

    def push(self, block: Samples) -> Iterator[Samples]:
        """The next input block [T] -> the output that it completes, in blocks [T']."""
        return self._take(self.encoder.push(block))

    def flush(self) -> Iterator[Samples]:
        """The end of the input -> the rest of the output; raises as ``ChunkEncoder.push``."""
        yield from self._take(self.encoder.push(np.zeros(0, np.float32), last=True))
        yield from self._say(last=True)
        yield self._output.finish(resampled_length(self.encoder.pushed, *self._rates))

    def _take(self, chunks: Sequence[Chunk]) -> Iterator[Samples]:
        if self._heard is not None:
            self._heard += chunks
        for chunk in chunks:
            (self._lead if chunk.index < 0 else self._waiting).append(chunk)
            # A cut may lie late, and another lane must hear what follows it.
            if chunk.index == self._cut + self._round + _SEARCH + max(_AFTER):
                yield from self._say(last=False)

    def _say(self, *, last: bool) -> Iterator[Samples]:
        """A round: from the last cut to the end of what waits, or to a cut near it."""
        first, stop = self._waiting[0].index, self._waiting[-1].index + 1
        levels = np.stack([chunk.levels for chunk in self._waiting])
        quiet = QUIET * float(np.sqrt(np.square(levels).mean()))
        lowest = levels.min(1)

        length = stop - self._cut if last else self._round
        lanes = self._count(length)
        found = cuts(lowest[self._cut - first :], length, lanes, last=last)
        edges = [self._cut, *(self._cut + cut for cut in found)]
        loud = [bool(lowest[cut - first] > quiet) for cut in edges[1:-1] + [edges[-1]] * (not last)]
        settle = self._settle
        starts = [first] + [
            max(first, cut - settle - _BEFORE[each])
            for cut, each in zip(edges[1:], loud, strict=False)
        ]
        stops = [
            min(stop, cut + 1 + _AFTER[each]) for cut, each in zip(edges[1:], loud, strict=False)
        ]
        stops += [stop] * last
        # All lanes are computed as long as the longest; the others may as well speak on.
        steps = max(after - before for before, after in zip(starts, stops, strict=False))

        self.lanes = max(self.lanes, lanes)
        chunk = self._model.grid.chunk
        made = self._generate(starts[:lanes], steps, edges[-1] * chunk / SAMPLE_RATE)
        starts += [stop] * last
        for lane, codes in enumerate(made):
            start = starts[lane]
            # No further than the lane after the next begins: three never meet.
            end = min(start + steps, *starts[lane + 2 : lane + 3], stop)
            yield from self._join(codes[: end - start], (starts[lane + 1] - start) * chunk)
        self._cut = edges[-1]
        del self._waiting[: starts[lanes] - first]

    def _count(self, length: int) -> int:
        if self._wanted == "auto":
            return min(max(1, length // _AUTO_PIECE), _AUTO_LANES)
        return min(max(1, length // (_SHORTEST + 3 * self._settle)), self._wanted)

    def _generate(self, starts: Sequence[int], steps: int, settled: float) -> list[list[Codes]]:
        """Lanes from these chunks on -> the codes of each of so many steps, after which so many
        seconds of the recording are done."""
        groups = shared_out(starts, self._threads(len(starts)))
        first = self._waiting[0].index
        before = self._done
        silence = self._model.silence(self._model.grid.plan.units)
        stop = threading.Event()
        done: list[None] = []  # appending is atomic

        def chunk_at(index: int) -> Chunk:
            there = index - first < len(self._waiting)
            return self._waiting[index - first] if there else Chunk(index, silence)

        def run(group: Sequence[int]) -> list[list[Codes]]:
            sampling = Sampling(self._voice, len(group))
            for lead in self._lead:
                sampling([lead if start == 0 else Chunk(lead.index, silence) for start in group])
            made: list[list[Codes]] = [[] for _ in group]
            for step in range(steps):
                if stop.is_set():
                    break
                codes = sampling([chunk_at(start + step) for start in group])
                for lane, each in zip(made, codes, strict=True):
                    lane.append(each)
                done.append(None)
            return made

        with ThreadPoolExecutor(len(groups)) as pool:
            running = [pool.submit(run, group) for group in groups]
            pending = set(running)
            try:
                while pending:
                    over, pending = wait(pending, _TELL_SECONDS, FIRST_COMPLETED)
                    for each in over:
                        each.result()
                    part = len(done) / (steps * len(groups))
                    self._done = before + part * (settled - before)
                    self._tell()
            finally:
                stop.set()
        return [lane for each in running for lane in each.result()]

    def _threads(self, lanes: int) -> int:
        # Other engines have threads of their own, and may round a lane differently in company.
        if lanes == 1 or self._model.engine.name != "native":
            return 1
        return usable_cores() if self._cores is None else self._cores()

    def _join(self, codes: Sequence[Codes], length: int) -> Iterator[Samples]:
        """A lane's codes, chunk by chunk, and after how many samples the next begins -> the audio
        up to there."""
        blocks = []
        carry = 0.0  # forgotten by the time that the lane is heard
        for each in codes:
            wav, carry = self._voice.decoded(each, carry)
            blocks.append(wav)
        wav = np.concatenate(blocks)
        if len(self._tail):
            wav = crossfaded(self._tail, wav, self._settle * self._model.grid.chunk)
        self._tail = wav[length:]
        yield self._output.push(wav[:length], self.encoder.samples)


def cuts(quietest: Samples, length: int, lanes: int, *, last: bool) -> list[int]:
    """Where so many chunks part into lanes: their ends, each the quietest chunk near its place.

    ``quietest`` [T]: the RMS of every chunk's quietest place. What follows the last end is another
    round's; without one (``last``) it is ``length`` itself.
    """
    found: list[int] = []
    for lane in range(1, lanes + (not last)):
        before = found[-1] if found else 0
        # The rest in equal parts, whatever the last cut was.
        place = before + round((length - before) / (lanes - lane + 1))
        reach = min(_SEARCH, (place - before) // 4)
        near = range(place - reach, place + reach + 1)
        found.append(min(near, key=lambda chunk: (quietest[chunk], abs(chunk - place))))
    return [*found, length] if last else found


def shared_out(starts: Sequence[int], threads: int) -> list[Sequence[int]]:
    """Lanes in their order, in as many equal groups as there are threads for."""
    groups = min(threads, len(starts))
    bounds = [len(starts) * group // groups for group in range(groups + 1)]
    return [starts[a:b] for a, b in itertools.pairwise(bounds)]


def crossfaded(before: Samples, after: Samples, settled: int) -> Samples:
    """Two lanes' samples from one point on -> the first, then the second, which is to be trusted
    after so many: crossfaded in the 40 ms in which they differ least.

    With w the second's share and r the correlation there, the power of the sum is divided out,
    (1 - w)^2 + w^2 + 2 r w (1 - w): a linear fade of equal signals, and one of equal power of
    independent ones.
    """
    length = min(len(before), len(after))
    difference = np.square(before[:length] - after[:length], dtype=np.float64)
    sums = np.concatenate(([0.0], np.cumsum(difference)))
    places = np.arange(settled, length - FADE + 1, _SEAM_HOP)
    at = int(places[np.argmin(sums[places + FADE] - sums[places])])
    first, second = (x[at : at + FADE].astype(np.float64) for x in (before, after))
    if not (first == second).all():
        scale = np.sqrt((first**2).sum() * (second**2).sum())
        r = max(0.0, float((first * second).sum() / scale)) if scale else 0.0
        w = (np.arange(FADE) + 0.5) / FADE
        power = (1 - w) ** 2 + w**2 + 2 * r * w * (1 - w)
        second = ((1 - w) * first + w * second) / np.sqrt(power)
    return np.concatenate((before[:at], second.astype(np.float32), after[at + FADE :]))


def usable_cores() -> int:
    """The cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
