"""One conversion of the page's, step by step: progress, sound as it is made, and the result.

What comes out is what ``vconv convert --lanes 1`` gives. T samples, U units.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from vconv.errors import UsageError, VconvError

from .jobs import Job

if TYPE_CHECKING:
    from vconv import Converter
    from vconv.inputs import Recording
    from vconv.loudness import Level

Samples = npt.NDArray[np.float32]

RATE = 16_000
_TELL_SECONDS = 0.2


@dataclass(frozen=True)
class Wish:
    """What is asked for: ``share`` of 0 to 1 of the second voice, where there is one."""

    voice: str
    second: str | None = None
    share: float = 0.0
    seed: int = 0
    temperature: float = 1.0
    level: Level = "keep"

    @property
    def speaker(self) -> dict[str, float]:
        """A mixture as the converter takes it; a single voice is one of weight 1."""
        if not self.second or self.second == self.voice or self.share <= 0:
            return {self.voice: 1.0}
        if self.share >= 1:
            return {self.second: 1.0}
        return {self.voice: 1 - self.share, self.second: self.share}


@dataclass(frozen=True)
class Doing:
    """So many seconds of the recording are converted, of so many (None: it does not say)."""

    done: float
    seconds: float | None


@dataclass(frozen=True, eq=False)
class Done:
    """The recording [T] and its conversion [T] at 16 kHz; ``notes`` are sentences."""

    name: str
    source: Samples
    result: Samples
    speaker: str
    elapsed_seconds: float
    notes: tuple[str, ...]

    @property
    def seconds(self) -> float:
        return len(self.result) / RATE

    @property
    def real_time_factor(self) -> float:
        return self.seconds / max(self.elapsed_seconds, 1e-9)


class Stopped(VconvError):
    """Somebody pressed Cancel, or left."""


def wish(
    voice: object,
    second: object = None,
    share: object = 0.0,
    seed: object = 0,
    temperature: object = 1.0,
    level: object = "keep",
) -> Wish:
    """What a form holds, checked; UsageError says what is missing."""
    from vconv.loudness import checked_level

    if not isinstance(voice, str) or not voice:
        raise UsageError("No voice is chosen; choose one by its name.")
    checked_level(str(level))
    try:
        number = int(float(str(seed or 0)))
        degree = float(str(1.0 if temperature is None else temperature))
        part = float(str(share or 0))
    except (ValueError, OverflowError):
        raise UsageError("Seed, temperature and mixture must be numbers.") from None
    if not 0 <= degree <= 2:
        raise UsageError(f"The temperature must be 0 to 2, found {degree:g}.")
    if not 0 <= part <= 1:
        raise UsageError(f"The share of the second voice must be 0 to 1, found {part:g}.")
    other = second if isinstance(second, str) and second else None
    return Wish(voice, other, part, number, degree, str(level))  # type: ignore[arg-type]


def convert(
    converter: Converter, path: str, wanted: Wish, job: Job, folder: Path, *, max_seconds: float
) -> Iterator[Doing | Done]:
    """Convert a recording; raises Stopped soon after the job was stopped, and VconvError for
    what cannot be used. ``job.live`` is the sound that is made so far."""
    from vconv.inputs import open_input
    from vconv.loudness import Loudness, gain

    name = Path(path).name
    begun = time.perf_counter()
    made_loudness = Loudness()
    live = folder / "live.f32"
    made: list[Samples] = []
    try:
        if job.stopped.is_set():
            raise Stopped(f"{name}: stopped before it began.")
        with open_input(path, max_seconds=max_seconds) as recording, live.open("wb") as spool:
            job.live = live
            listener = _Listener(recording, job)
            told = 0.0
            yield Doing(0.0, recording.seconds)
            for block in converter.stream(
                listener.blocks(),
                speaker=wanted.speaker,
                sample_rate=recording.rate,
                seed=wanted.seed,
                temperature=wanted.temperature,
            ):
                made.append(block)
                made_loudness.add(block)
                spool.write(block.tobytes())
                spool.flush()
                if job.stopped.is_set():
                    raise Stopped(f"{name}: stopped.")
                if time.perf_counter() - told > _TELL_SECONDS:
                    told = time.perf_counter()
                    yield Doing(made_loudness.samples / RATE, recording.seconds)
            notes = listener.notes()
    except VconvError as error:
        raise type(error)(named(str(error), path)) from None
    finally:
        job.over.set()
    result = np.concatenate(made)
    result = result * np.float32(gain(wanted.level, listener.loudness, made_loudness))
    yield Done(
        name=name,
        source=listener.heard(),
        result=result,
        speaker=converter.speakers.label(converter.speakers.resolve(wanted.speaker)),
        elapsed_seconds=time.perf_counter() - begun,
        notes=notes,
    )


def named(sentence: str, path: str) -> str:
    """A sentence about a recording, with the name that its owner knows."""
    name = Path(path).name
    for unknown in (path, str(Path(path)), "<stream>", "<samples>", "<bytes>"):
        sentence = sentence.replace(unknown, name)
    return sentence


class _Listener:
    """A recording's blocks on their way to the converter: what they are at 16 kHz, how loud."""

    def __init__(self, recording: Recording, job: Job) -> None:
        from vconv.audio import Resampler
        from vconv.loudness import Loudness

        self._recording = recording
        self._job = job
        self._resampler = Resampler(recording.rate, RATE)
        self._heard: list[Samples] = []
        self.loudness = Loudness()

    def blocks(self) -> Iterator[Samples]:
        for block in self._recording.blocks:
            if self._job.stopped.is_set():
                raise Stopped(f"{self._recording.name}: stopped.")
            self._add(self._resampler.push(block))
            yield block
        self._add(self._resampler.push(np.zeros(0, np.float32), last=True))

    def heard(self) -> Samples:
        return np.concatenate(self._heard) if self._heard else np.zeros(0, np.float32)

    def notes(self) -> tuple[str, ...]:
        if self._recording.mix_cancels:
            return ("The channels cancel each other in their mean, so nothing was heard.",)
        if self.loudness.silent:
            return ("The recording is silent.",)
        return ()

    def _add(self, block: Samples) -> None:
        self._heard.append(block)
        self.loudness.add(block)
