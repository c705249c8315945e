"""One conversion of the page's, step by step: progress, sound as it is made, and the result.

What comes out is what ``vconv convert --lanes 1`` gives. T samples, U units.
"""

from __future__ import annotations

import math
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
    from vconv.speakers import Query

Samples = npt.NDArray[np.float32]

RATE = 16_000
_TELL_SECONDS = 0.2


@dataclass(frozen=True)
class Wish:
    """What is asked for; ``speaker`` as the converter takes it."""

    speaker: Query
    seed: int = 0
    temperature: float = 1.0
    level: Level = "keep"


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
    speaker: Query | None, seed: object = 0, temperature: object = 1.0, level: object = "keep"
) -> Wish:
    """What a form holds, checked; UsageError says what is wrong."""
    from vconv.loudness import checked_level

    if not speaker:
        raise UsageError("No voice is chosen; choose one by its name.")
    checked_level(str(level))
    number, degree = _number(seed, "seed"), _number(temperature, "temperature")
    if number != int(number) or not 0 <= number < 2**53:
        raise UsageError(f"The seed must be a whole number from 0 on, found {number:g}.")
    if not 0 <= degree <= 2:
        raise UsageError(f"The temperature must be 0 to 2, found {degree:g}.")
    return Wish(speaker, int(number), degree, str(level))  # type: ignore[arg-type]


def mixture(voice: str | None, second: str | None, share: object) -> dict[str, float]:
    """Two voices as the converter takes them; a share of 0 is the first alone, 1 the second."""
    if not voice:
        raise UsageError("No voice is chosen; choose one by its name.")
    part = _number(share, "share of the second voice")
    if not 0 <= part <= 1:
        raise UsageError(f"The share of the second voice must be 0 to 1, found {part:g}.")
    if not second or second == voice or part == 0:
        return {voice: 1.0}
    return {second: 1.0} if part == 1 else {voice: 1 - part, second: part}


def _number(value: object, what: str) -> float:
    try:
        number = float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not math.isfinite(number):
        raise UsageError(f"The {what} must be a number.")
    return number


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
