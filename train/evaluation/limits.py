"""What a conversion must reach, as data."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .statistics import Stat

Figures = Mapping[str, Mapping[str, Stat | None]]


def checks(figures: Figures, model: Mapping[str, Any]) -> list[dict[str, Any]]:
    """{name, figure, limit, sense, met} of each; ``met`` is None where a figure is missing."""

    def mean(name: str, kind: str) -> float | None:
        found = figures[name].get(kind)
        return None if found is None else float(found["mean"])

    def made(name: str, figure: float | None, limit: float | None, sense: str) -> dict[str, Any]:
        met = None
        if figure is not None and limit is not None:
            met = figure >= limit if sense == ">=" else figure <= limit
        return {"name": name, "figure": figure, "limit": limit, "sense": sense, "met": met}

    def beside(value: float | None, plus: float = 0.0, times: float = 1.0) -> float | None:
        return None if value is None else value * times + plus

    size = model.get("codebook_size")
    chance = model.get("speaker_probe_chance")
    return [
        made("nearest voice is the target's", mean("nearest", "conversion"), 0.95, ">="),
        made(
            "cosine to the target, beside copy synthesis",
            mean("cosine_target", "conversion"),
            beside(mean("cosine_target", "copy"), -0.05),
            ">=",
        ),
        made(
            "cosine to the target less that to the source",
            mean("cosine_margin", "conversion"),
            0.15,
            ">=",
        ),
        made(
            "word errors on content voices, beside copy synthesis",
            mean("wer", "conversion"),
            beside(mean("wer", "copy"), 0.10),
            "<=",
        ),
        made(
            "word errors of copy synthesis, beside the true target",
            mean("wer", "copy"),
            beside(mean("wer", "target"), 0.10),
            "<=",
        ),
        made(
            "unit errors, beside copy synthesis",
            mean("unit_error", "conversion"),
            beside(mean("unit_error", "copy"), times=1.3),
            "<=",
        ),
        made("share of the distortion closed", mean("mcd_closed", "conversion"), 0.6, ">="),
        made(
            "median F0 off the true target's, semitones",
            mean("semitones_off", "conversion"),
            2.0,
            "<=",
        ),
        made(
            "perplexity of the codebook",
            model.get("perplexity"),
            None if size is None else size / 4,
            ">=",
        ),
        made(
            "linear speaker probe",
            model.get("speaker_probe"),
            None if chance is None else 3 * chance,
            "<=",
        ),
        made("listening probe, latents", model.get("probe_latents"), 0.1, ">="),
        made("listening probe, speaker", model.get("probe_speaker"), 0.1, ">="),
    ]
