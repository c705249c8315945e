"""Rows to report.json: figures of every kind of sound, by target and source, and the limits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from .figures import KINDS, MEASURES, Row, Sound, Voices, sounds, terms
from .limits import checks
from .pairs import PairList
from .statistics import Stat, resampled, stat
from .voices import equal_error_rate, identified

_EER_DRAWS = 200
_CONTENT = ("wer", "cer", "closed_wer")
IDENTIFIED = 0.99


def summarise(
    pairs: PairList,
    rows: Mapping[str, Row],
    content_voices: Sequence[str],
    model: Mapping[str, Any],
) -> dict[str, Any]:
    """The part of the report that follows from the rows and from what the model is.

    Content is judged on the content voices alone, in all four kinds.
    """
    voices = Voices(pairs, rows)
    made = sounds(pairs, rows, voices)
    by_kind = {kind: [s for s in made if s.kind == kind] for kind in KINDS}
    figures = {name: _row_of(name, by_kind, content_voices) for name in MEASURES}
    right, count = identified(voices.enrolment) if voices.enrolment else (0, 0)
    eer = {kind: _eer(by_kind[kind], voices) for kind in ("target", "copy", "conversion")}
    return {
        "figures": {
            name: {
                "title": MEASURES[name].title,
                "unit": MEASURES[name].unit,
                "better": MEASURES[name].better,
                **figures[name],
            }
            for name in MEASURES
        },
        "equal_error_rate": eer,
        "identification": {
            "recordings": count,
            "right": right,
            "share": right / count if count else None,
            "limit": IDENTIFIED,
        },
        "per_target": _split(by_kind, "target", content_voices),
        "per_source": _split(by_kind, "source", content_voices),
        "confusion": _confusion(by_kind["conversion"], voices),
        "content": _content(pairs, rows, content_voices),
        "model": dict(model),
        "checks": checks(figures, model),
        "cost_seconds": _costs(rows),
        "warnings": _warnings(right, count, content_voices, rows),
    }


def voice_errors(pairs: PairList, rows: Mapping[str, Row]) -> dict[str, float]:
    """The word-loop WER of each target's own recordings, of those that were scored."""
    sums: dict[str, list[float]] = {}
    seen = {(item.target, item.reference) for item in pairs.items if item.reference is not None}
    for target, path in seen:
        found = rows[f"recording:{path}"].get("wer")
        if found is not None:
            both = sums.setdefault(target, [0.0, 0.0])
            both[0] += found[0]
            both[1] += found[1]
    return {name: sums[name][0] / sums[name][1] for name in pairs.targets if name in sums}


def worst(pairs: PairList, rows: Mapping[str, Row], count: int) -> list[str]:
    """The ids of the conversions that are farthest from their target's voice."""
    made = sounds(pairs, rows, Voices(pairs, rows))
    cosines = {
        f"conversion:{s.path}:{s.target}": s.figures["cosine_target"][0]
        for s in made
        if s.kind == "conversion" and "cosine_target" in s.figures
    }
    return sorted(cosines, key=lambda each: cosines[each])[:count]


def _row_of(
    figure: str, by_kind: Mapping[str, Sequence[Sound]], content_voices: Sequence[str]
) -> dict[str, Stat | None]:
    row = {}
    for kind, found in by_kind.items():
        if figure in _CONTENT:
            found = [
                s for s in found if (s.source if kind == "source" else s.target) in content_voices
            ]
        if kind == "source":  # a source stands beside each of its targets
            once = {s.path: s for s in found} if figure in _OF_THE_SOUND else None
            found = found if once is None else list(once.values())
        row[kind] = stat(terms(found, figure))
    return row


_OF_THE_SOUND = {*_CONTENT, "level_db", "mos", "mos_speech", "mos_background", "mos_p808"}


def _split(
    by_kind: Mapping[str, Sequence[Sound]], by: str, content_voices: Sequence[str]
) -> dict[str, Any]:
    kinds = ("copy", "conversion") if by == "target" else ("conversion",)
    names = dict.fromkeys(getattr(s, by) for s in by_kind["conversion"])
    made: dict[str, Any] = {}
    for name in filter(None, names):
        here = {kind: [s for s in by_kind[kind] if getattr(s, by) == name] for kind in kinds}
        made[name] = {figure: _row_of(figure, here, content_voices) for figure in MEASURES}
    return made


def _eer(found: Sequence[Sound], voices: Voices) -> dict[str, Any] | None:
    known = [s for s in found if s.cosines is not None and s.target in voices.names]
    if not known or len(voices.names) < 2:
        return None
    names = list(dict.fromkeys(s.sentence for s in known))
    genuine: list[list[float]] = [[] for _ in names]
    impostor: list[list[float]] = [[] for _ in names]
    place = {name: index for index, name in enumerate(names)}
    for sound in known:
        assert sound.cosines is not None
        for name, cosine in zip(voices.names, sound.cosines, strict=True):
            if cosine == cosine:
                trials = genuine if name == sound.target else impostor
                trials[place[sound.sentence]].append(float(cosine))
    if not any(genuine) or not any(impostor):
        return None

    def rate(drawn: Any) -> float:
        pair = [np.concatenate([each[i] for i in drawn]) for each in (genuine, impostor)]
        return equal_error_rate(*pair) if all(map(len, pair)) else 0.0

    low, high = resampled(rate, len(names), _EER_DRAWS)
    everything = range(len(names))
    return {
        "items": len(known),
        "sentences": len(names),
        "mean": rate(everything),
        "low": low,
        "high": high,
    }


def _confusion(found: Sequence[Sound], voices: Voices) -> dict[str, Any]:
    """How many of a target's conversions (rows) are nearest to each voice (columns)."""
    targets = list(dict.fromkeys(s.target for s in found))
    counts = np.zeros((len(targets), len(voices.names)), int)
    for sound in found:
        if sound.cosines is not None and not np.isnan(sound.cosines).all():
            counts[targets.index(sound.target), int(np.nanargmax(sound.cosines))] += 1
    return {"targets": targets, "voices": voices.names, "counts": counts.tolist()}


def _content(
    pairs: PairList, rows: Mapping[str, Row], content_voices: Sequence[str]
) -> dict[str, Any]:
    texts = {item.sentence: item.text for item in pairs.items}
    scored = {
        sentence
        for path, (_, sentence, _) in pairs.recordings.items()
        if "wer" in rows[f"recording:{path}"]
    }
    return {
        "voices": list(content_voices),
        "wer_of_recordings": voice_errors(pairs, rows),
        "sentences_scored": sum(s in scored for s in texts),
        "sentences_not_scored": {s: t for s, t in texts.items() if s not in scored},
        "texts": texts,
    }


def _costs(rows: Mapping[str, Row]) -> dict[str, dict[str, float]]:
    """Processor seconds of each instrument: in all, and of a row that it was used on."""
    spent: dict[str, list[float]] = {}
    for row in rows.values():
        for name, seconds in row.get("cost", {}).items():
            spent.setdefault(name, []).append(seconds)
    return {n: {"sum": sum(each), "mean": sum(each) / len(each)} for n, each in spent.items()}


def _warnings(
    right: int, count: int, content_voices: Sequence[str], rows: Mapping[str, Row]
) -> list[str]:
    made = []
    if not count:
        made.append("no enrolment: voices are known from the references only")
    elif right < IDENTIFIED * count:
        made.append(
            f"only {right} of {count} enrolment recordings are nearest to their own voice: the "
            "embeddings do not tell these voices apart well enough to judge conversions"
        )
    if not content_voices:
        made.append("no content voice: what is understood was not judged")
    mute = sum(row.get("embedding", 0) is None for row in rows.values())
    if mute:
        made.append(f"{mute} sounds have no speech in them")
    return made
