"""From rows to the terms of every figure, of each of the four kinds of sound.

"source" is the recording that is converted, "target" the target's own of the same sentence, "copy"
that one converted to its own speaker, "conversion" what is evaluated.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .pairs import PairList
from .statistics import Term
from .voices import centroid

Floats = NDArray[np.floating]
Row = Mapping[str, Any]
KINDS = ("source", "target", "copy", "conversion")


@dataclass(frozen=True)
class Measure:
    """What a figure is called, its unit, and which way is better."""

    title: str
    unit: str
    better: str  # "higher", "lower", "near 0" or "like the source's"


MEASURES: dict[str, Measure] = {
    "nearest": Measure("nearest voice is the target's", "share", "higher"),
    "cosine_target": Measure("cosine to the target", "", "higher"),
    "cosine_source": Measure("cosine to the source", "", "lower"),
    "cosine_margin": Measure("cosine to the target less that to the source", "", "higher"),
    "wer": Measure("word errors, free loop", "share", "lower"),
    "cer": Measure("character errors, free loop", "share", "lower"),
    "closed_wer": Measure("word errors, closed set", "share", "lower"),
    "unit_error": Measure("unit error rate", "share", "lower"),
    "unit_disagreement": Measure("units that differ in place", "share", "lower"),
    "mcd": Measure("mel-cepstral distortion to the true target", "dB", "lower"),
    "mcd_closed": Measure("share of the distortion closed", "share", "higher"),
    "semitones": Measure("median F0 above the true target's", "semitones", "near 0"),
    "semitones_off": Measure("the same, its size", "semitones", "lower"),
    "f0_correlation": Measure("correlation of log F0 with the source's", "", "higher"),
    "voiced": Measure("voiced frames that still are", "share", "higher"),
    "level_db": Measure("level", "dB", "like the source's"),
    "dropped": Measure("loud frames that are gone", "share", "lower"),
    "floor_db": Measure("level where the input is silent", "dB", "lower"),
    "pesq": Measure("PESQ, wide band", "", "higher"),
    "stoi": Measure("STOI", "", "higher"),
    "mos": Measure("DNSMOS, overall", "", "higher"),
    "mos_speech": Measure("DNSMOS, speech", "", "higher"),
    "mos_background": Measure("DNSMOS, background", "", "higher"),
    "mos_p808": Measure("DNSMOS, P.808", "", "higher"),
    "real_time_factor": Measure("seconds of sound in a second", "x", "higher"),
}
_PLAIN = (
    *("f0_correlation", "floor_db", "level_db", "pesq", "stoi", "real_time_factor"),
    *("mos", "mos_speech", "mos_background", "mos_p808"),
)
_RATIOS = ("wer", "cer", "closed_wer", "unit_error", "unit_disagreement", "voiced", "dropped")


@dataclass(frozen=True)
class Sound:
    """One sound of one kind, beside the item that it belongs to, and its figures as terms."""

    kind: str
    sentence: str
    source: str | None
    target: str
    path: str
    figures: Mapping[str, tuple[float, float]]
    cosines: Floats | None  # to every voice [V]

    def term(self, figure: str) -> Term | None:
        found = self.figures.get(figure)
        return None if found is None else (self.sentence, *found)


class Voices:
    """The centroids [V, 256] of the voices; without enrolment, of a list's references, from which
    a sound's own sentence is left out."""

    def __init__(self, pairs: PairList, rows: Mapping[str, Row]) -> None:
        self._by_voice: dict[str, list[tuple[str | None, Floats]]] = {}
        self.enrolment: dict[str, list[Floats]] = {}
        for name, paths in pairs.enrolment.items():
            made = [embedding(rows[f"enrolment:{path}"]) for path in paths]
            heard = [each for each in made if each is not None]
            if heard:
                self.enrolment[name] = heard
        if not self.enrolment:
            seen: dict[str, set[str]] = {}
            for item in pairs.items:
                path = str(item.reference)
                if item.reference is None or path in seen.setdefault(item.target, set()):
                    continue
                seen[item.target].add(path)
                made_here = embedding(rows[f"recording:{path}"])
                if made_here is not None:
                    self._by_voice.setdefault(item.target, []).append((item.sentence, made_here))
        self.names = list(self.enrolment or self._by_voice)
        self._fixed = {name: centroid(heard) for name, heard in self.enrolment.items()}

    def cosines(self, vector: Floats | None, sentence: str) -> Floats | None:
        """[V], NaN for a voice that has no recording of another sentence."""
        if vector is None:
            return None
        made = np.full(len(self.names), np.nan)
        for index, name in enumerate(self.names):
            middle = self._fixed.get(name)
            if middle is None:
                others = [e for s, e in self._by_voice.get(name, ()) if s != sentence]
                middle = centroid(others) if others else None
            if middle is not None:
                made[index] = middle @ vector
        return made


def embedding(row: Row) -> Floats | None:
    """[256], of unit length."""
    found = row.get("embedding")
    if found is None:
        return None
    vector = np.array(found)
    return np.asarray(vector / np.linalg.norm(vector))


def sounds(pairs: PairList, rows: Mapping[str, Row], voices: Voices) -> list[Sound]:
    """All sounds; a recording stands once for each voice that it belongs to, as source and as
    target."""
    copies = {
        (item.target, item.sentence): rows[item.id] for item in pairs.items if item.kind == "copy"
    }
    made: list[Sound] = []
    seen: set[tuple[str, str]] = set()
    for item in pairs.items:
        where = (item.sentence, item.source_speaker, item.target)
        row = rows[item.id]
        figures = _figures(row, voices, where)
        copy = copies.get((item.target, item.sentence))
        if item.kind == "conversion" and copy and copy.get("mcd") is not None and "mcd" in row:
            gained = row["source_mcd"] - row["mcd"]
            figures["mcd_closed"] = (gained, row["source_mcd"] - copy["mcd"])
        made.append(_sound(item.kind, where, str(item.source), figures, row, voices))
        if item.kind == "conversion":
            row = rows[f"recording:{item.source}"]
            figures = _figures(row, voices, where)
            for figure in ("mcd", "semitones"):
                found = rows[item.id].get(f"source_{figure}")
                if found is not None:
                    figures[figure] = (found, 1.0)
            if "semitones" in figures:
                figures["semitones_off"] = (abs(figures["semitones"][0]), 1.0)
            made.append(_sound("source", where, str(item.source), figures, row, voices))
        if item.reference is not None and (item.target, str(item.reference)) not in seen:
            seen.add((item.target, str(item.reference)))
            row = rows[f"recording:{item.reference}"]
            where = (item.sentence, None, item.target)
            figures = _figures(row, voices, where)
            made.append(_sound("target", where, str(item.reference), figures, row, voices))
    return made


def _sound(
    kind: str,
    where: tuple[str, str | None, str],
    path: str,
    figures: dict[str, tuple[float, float]],
    row: Row,
    voices: Voices,
) -> Sound:
    cosines = voices.cosines(embedding(row), where[0])
    return Sound(kind, *where, path, figures, cosines)


def _figures(
    row: Row, voices: Voices, where: tuple[str, str | None, str]
) -> dict[str, tuple[float, float]]:
    sentence, source, target = where
    made = {name: (float(row[name]), 1.0) for name in _PLAIN if row.get(name) is not None}
    for name in _RATIOS:
        if row.get(name) is not None:
            errors, among = row[name]
            made[name] = (float(errors), float(among))
    if row.get("mcd") is not None:
        made["mcd"] = (row["mcd"], 1.0)
    if row.get("semitones") is not None:
        made["semitones"] = (row["semitones"], 1.0)
        made["semitones_off"] = (abs(row["semitones"]), 1.0)
    cosines = voices.cosines(embedding(row), sentence)
    if cosines is None:  # no speech in it: nobody's
        return made | ({"nearest": (0.0, 1.0)} if target in voices.names else {})
    at = {name: float(c) for name, c in zip(voices.names, cosines, strict=True) if c == c}
    if target in at:
        made["cosine_target"] = (at[target], 1.0)
        made["nearest"] = (float(max(at, key=lambda n: at[n]) == target), 1.0)
    if source in at and source != target:
        made["cosine_source"] = (at[source], 1.0)
        if target in at:
            made["cosine_margin"] = (at[target] - at[source], 1.0)
    return made


def terms(found: Sequence[Sound], figure: str) -> list[Term]:
    """Of all sounds that have the figure."""
    return [term for sound in found if (term := sound.term(figure)) is not None]
