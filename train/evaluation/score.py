"""One recording, or one item, to a row: what a process does.

A row is JSON: figures, or pairs [sum, weight] of those that are ratios, None where there is none.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import vconv
from vconv.audio import SAMPLE_RATE, read

from ..conversion_figure import Acoustics, acoustics
from . import acoustics as compare
from .content import Recogniser
from .pairs import Item
from .probe import PROBE_SECONDS, means
from .quality import Mos, pesq_wb, stoi
from .units import unit_errors
from .voices import Embedder

Floats = NDArray[np.float32]
Row = dict[str, Any]


@dataclass(frozen=True)
class Settings:
    """What changes a row besides the bundle and the list."""

    seed: int
    temperature: float
    precision: str


@dataclass(frozen=True)
class RecordingTask:
    """A recording as it is; ``scored`` not of the enrolment."""

    path: Path
    text: str | None = None
    scored: bool = True
    mos: bool = False

    @property
    def id(self) -> str:
        return f"{'recording' if self.scored else 'enrolment'}:{self.path}"


@dataclass(frozen=True)
class ItemTask:
    """An item to convert."""

    item: Item
    content: bool
    mos: bool

    @property
    def id(self) -> str:
        return self.item.id


Task = RecordingTask | ItemTask


def convert(
    converter: vconv.Converter, wav: Floats, item: Item, settings: Settings
) -> vconv.Conversion:
    """The item's conversion, the same at every call."""
    return converter.convert(
        wav,
        sample_rate=SAMPLE_RATE,
        speaker=item.target,
        seed=settings.seed,
        temperature=settings.temperature,
        lanes=1,
    )


class Scorer:
    """A loaded model and all instruments; on one thread."""

    def __init__(
        self, bundle: Path, settings: Settings, vocabulary: list[str], sentences: list[str]
    ) -> None:
        self._converter = vconv.load(bundle, device="cpu", precision=settings.precision)
        self._settings = settings
        self._embed = Embedder()
        self._recogniser = Recogniser(vocabulary, sentences) if sentences else None
        self._mos = Mos()
        self._cost: dict[str, float] = {}
        self.heard = lru_cache(64)(self._heard)

    def __call__(self, task: Task) -> Row:
        """The row of a task, with the processor seconds that each instrument took."""
        self._cost = {}
        row = self._recording(task) if isinstance(task, RecordingTask) else self._item(task)
        return {"id": task.id, **row, "cost": self._cost}

    def _heard(self, path: Path) -> tuple[Floats, Acoustics]:
        wav = read(path)
        return wav, acoustics(wav)

    def _recording(self, task: RecordingTask) -> Row:
        wav, sound = self.heard(task.path)
        row = self._sound(wav, sound, task.text if task.scored else None, task.mos)
        with self._timed("encode"):
            row["units"] = self._units(wav)
        return row

    def _item(self, task: ItemTask) -> Row:
        item = task.item
        wav, sound = self.heard(item.source)
        with self._timed("convert"):
            made = convert(self._converter, wav, item, self._settings)
        with self._timed("acoustics"):
            result = acoustics(made.audio)
        row = self._sound(made.audio, result, item.text if task.content else None, task.mos)
        with self._timed("encode"):
            if made.codes is not None:
                again = self._converter.encode(made.audio, sample_rate=SAMPLE_RATE).codes
                assert again is not None
                row |= unit_errors(made.codes, again)
        with self._timed("acoustics"):
            row |= {
                "real_time_factor": made.real_time_factor,
                "f0_correlation": compare.f0_correlation(result, sound),
                "voiced": list(compare.voiced(result, sound)),
                "dropped": list(compare.dropped(wav, made.audio)),
                "floor_db": compare.floor_db(wav, made.audio),
            }
            if item.reference is not None:
                _, true = self.heard(item.reference)
                row["semitones"] = compare.semitones(result, true)
                row["mcd"] = compare.distortion_db(result, true)
                row["source_mcd"] = compare.distortion_db(sound, true)
                row["source_semitones"] = compare.semitones(sound, true)
        if item.kind == "copy":
            with self._timed("pesq"):
                row["pesq"] = pesq_wb(wav, made.audio)
            with self._timed("stoi"):
                row["stoi"] = stoi(wav, made.audio)
        return row

    def _sound(self, wav: Floats, sound: Acoustics, text: str | None, mos: bool) -> Row:
        """What can be said of a sound by itself."""
        with self._timed("voice"), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = self._embed(wav)
        row: Row = {
            "seconds": sound.seconds,
            "level_db": sound.level_db,
            "median_f0_hz": sound.median_f0_hz,
            "embedding": None if found is None else [round(float(x), 5) for x in found],
        }
        if text is not None and self._recogniser is not None:
            with self._timed("content"):
                row |= self._recogniser.score(wav, text)
        if mos:
            with self._timed("mos"):
                row |= self._mos(wav)
        return row

    def _units(self, wav: Floats) -> Row:
        units = self._converter.encode(wav, sample_rate=SAMPLE_RATE)
        if units.codes is not None:
            return {"codes": units.codes.tolist()}
        assert units.latents is not None
        length = round(PROBE_SECONDS * self._converter.info.unit_rate)
        return {"means": [np.round(m, 5).tolist() for m in means(units.latents, length)]}

    @contextmanager
    def _timed(self, what: str) -> Iterator[None]:
        begun = time.process_time()
        yield
        self._cost[what] = self._cost.get(what, 0.0) + time.process_time() - begun
