"""The tables of report/index.html: the figures, the voices one by one, who is taken for whom."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from typing import Any

from .report_figures import DASH, KINDS, PER_CENT, bar, dots, heat_map, key, told
from .statistics import Stat

Report = Mapping[str, Any]

_GROUPS = {
    "Voice": "nearest cosine_target cosine_source cosine_margin equal_error_rate",
    "Content": "wer cer closed_wer",
    "Units": "unit_error unit_disagreement",
    "Pitch": "semitones semitones_off f0_correlation voiced",
    "Sound": "mcd mcd_closed level_db dropped floor_db pesq stoi "
    "mos mos_speech mos_background mos_p808",
    "Speed": "real_time_factor",
}
_BY_VOICE = {
    "nearest": "nearest",
    "cosine_target": "cosine to target",
    "cosine_margin": "less to source",
    "wer": "word errors",
    "unit_error": "unit errors",
    "mcd": "distortion, dB",
    "mcd_closed": "closed",
    "semitones_off": "F0 off, semitones",
    "voiced": "still voiced",
}


def why_none(report: Report, figure: str, kind: str) -> str:
    """Why a figure of the main table is null, in a few words."""
    model, content = report["model"], report["content"]
    if figure in ("pesq", "stoi") and kind != "copy":
        return "copy synthesis only"
    if kind == "copy" and not report["list"]["copies"]:
        return "no copy synthesis in the list"
    if kind == "target" and report["figures"]["level_db"]["target"] is None:
        return "no recording of the target"
    if figure in ("perplexity", "codes_used") or figure.startswith("unit_"):
        if model["codebook_size"] is None:
            return "the model has no codebook"
        return "nothing was converted"
    if figure in ("f0_correlation", "voiced", "dropped", "floor_db", "real_time_factor"):
        if kind in ("source", "target"):
            return "nothing was converted"
        return "the input is never silent" if figure == "floor_db" else "too few voiced frames"
    if figure in ("wer", "cer", "closed_wer"):
        if not content["voices"]:
            return "no content voice"
        if content["sentences_scored"]:
            return "none of the content voices"
        return "no sentence could be scored"
    if figure == "mcd_closed":
        return "conversions only" if kind != "conversion" else "no copy synthesis to compare with"
    if figure in ("mcd", "semitones", "semitones_off"):
        if kind == "target":
            return "the reference itself"
        known = report["figures"]["level_db"]["target"] is not None
        return "no voiced frame" if known else "no recording of the target"
    if figure in ("cosine_source", "cosine_margin") and kind in ("target", "copy"):
        return "no other source"
    if figure == "equal_error_rate" and kind == "source":
        return "not a trial"
    if figure == "speaker_probe":
        return "no enrolment of two voices to fit it to"
    if figure in ("probe_latents", "probe_speaker", "heldout_perplexity"):
        return "not in the bundle"
    if figure == "bits_per_second":
        return "nothing bounds them"
    if figure.startswith("mos"):
        return "not among the sentences listened to"
    return "no recording to know the voice by"


def main_table(report: Report) -> str:
    figures = dict(report["figures"])
    figures["equal_error_rate"] = {
        "title": "equal error rate",
        "unit": "share",
        "better": "lower",
        "source": None,
        **report["equal_error_rate"],
    }
    rows = []
    for group, names in _GROUPS.items():
        rows.append(
            '<tr class="group" role="row"><th colspan="6" scope="colgroup" role="rowheader">'
            f"{group}</th></tr>"
        )
        rows += [_figure_row(report, n, figures[n]) for n in names.split() if n in figures]
    heads = "".join(
        f'<th scope="col" class="n" role="columnheader">{key(kind)}{title}</th>'
        for kind, title in KINDS.items()
    )
    legend = ", ".join(f"{key(kind)}{title}" for kind, title in KINDS.items())
    return (
        '<section id="figures"><h2>Figures</h2><p class="soft"><b>Source</b>: the recording as it '
        "is. <b>True target</b>: the target's own recording of the same sentence. <b>Copy "
        "synthesis</b>: that one converted to its own speaker, the best that the model can do. "
        "<b>Conversion</b>: what is judged. Below each mean, and as a whisker, the 95 % interval "
        f'over sentences.</p><p class="soft narrow-only">{legend}</p>'
        '<table class="main" role="table"><thead role="rowgroup"><tr role="row">'
        f'<th scope="col" role="columnheader">figure</th>{heads}'
        '<th scope="col" role="columnheader">mean and interval</th></tr></thead>'
        f'<tbody role="rowgroup">{"".join(rows)}</tbody></table></section>'
    )


def _figure_row(report: Report, name: str, figure: Mapping[str, Any]) -> str:
    unit, cells = figure["unit"], []
    for kind in KINDS:
        found: Stat | None = figure[kind]
        if found is None:
            inside = f"{DASH}<small>{escape(why_none(report, name, kind))}</small>"
        else:
            inside = told(found["mean"], unit)
            if found["low"] is not None:
                low, high = (told(found[end], unit) for end in ("low", "high"))
                inside += f"<small>{low.removesuffix(PER_CENT)} to {high}</small>"
            elif "median" in found:
                inside += "<small>one sentence</small>"
        css = f"n {kind}" + (" why" if found is None else "") + f" {kind}-cell"
        cells.append(f'<td class="{css}" role="cell" data-kind="{kind}">{inside}</td>')
    said = unit if unit not in ("", "share", "x") else ""
    better = {"near 0": "nearer 0"}.get(figure["better"], figure["better"]) + " is better"
    small = ", ".join(filter(None, (said, better)))
    graphic = dots(figure["title"], unit, {kind: figure[kind] for kind in KINDS})
    return (
        f'<tr role="row"><th scope="row" role="rowheader">{escape(figure["title"])}'
        f"<small>{escape(small)}</small></th>{''.join(cells)}"
        f'<td class="graphic" role="cell">{graphic}</td></tr>'
    )


def by_voice(report: Report, by: str) -> str:
    """A table of voices, the farthest from their target first."""
    voices = report[f"per_{by}"]
    title = f'<section id="{by}s"><h2>By {by} voice</h2>'
    if not voices:
        return f'{title}<p class="soft">The list does not name its {by}s.</p></section>'
    names = [name for name in _BY_VOICE if name in report["figures"]]

    def mean(voice: str, figure: str, kind: str) -> float | None:
        found = voices[voice].get(figure, {}).get(kind)
        return None if found is None else float(found["mean"])

    # What is no share of 1 is drawn as one of the highest.
    full = {}
    for figure in names:
        known = [mean(v, figure, kind) or 0.0 for v in voices for kind in ("copy", "conversion")]
        unit = report["figures"][figure]["unit"]
        full[figure] = 1.0 if unit in ("share", "") else max(*known, 1e-9)
    rows = []
    for voice in sorted(voices, key=lambda v: mean(v, "cosine_target", "conversion") or 0.0):
        cells = []
        for figure in names:
            value, copy = mean(voice, figure, "conversion"), mean(voice, figure, "copy")
            if value is None:
                cells.append(f'<td class="n soft" data-v="">{DASH}</td>')
                continue
            unit = report["figures"][figure]["unit"]
            tick = None if copy is None else copy / full[figure]
            aside = "" if copy is None else f'<span class="hidden">, copy {told(copy, unit)}</span>'
            cells.append(
                f'<td class="n" data-v="{value:.6g}">{told(value, unit)}{aside}'
                f"{bar(value / full[figure], tick)}</td>"
            )
        items = next(
            (s["conversion"]["items"] for s in voices[voice].values() if s.get("conversion")), 0
        )
        rows.append(
            f'<tr><th scope="row" data-v="{escape(voice)}">{escape(voice)}'
            f"<small>{items} conversion{'s' * (items != 1)}</small></th>{''.join(cells)}</tr>"
        )
    heads = "".join(
        f'<th scope="col" class="n"><button type="button">{_BY_VOICE[n]}</button></th>'
        for n in names
    )
    judged = "; word errors of content voices only" if "wer" in names else ""
    ticks = " The tick on a bar is copy synthesis." if by == "target" else ""
    return (
        f'{title}<p class="soft">Conversions, mean{judged}.{ticks} A heading sorts.</p>'
        '<div class="scroll" tabindex="0" role="region" aria-label="Table of voices">'
        f'<table class="fixed"><thead><tr><th scope="col"><button type="button">{by}</button></th>'
        f"{heads}</tr></thead><tbody>{''.join(rows)}</tbody></table></div></section>"
    )


def confusion(report: Report) -> str:
    found = report["confusion"]
    title = '<section id="confusion"><h2>Taken for whom</h2>'
    if not found["voices"]:
        return f'{title}<p class="soft">No recordings to know the voices by.</p></section>'
    pairs = [
        (count, sum(line), target, voice)
        for target, line in zip(found["targets"], found["counts"], strict=True)
        for voice, count in zip(found["voices"], line, strict=True)
        if count and voice != target
    ]
    worst = "; ".join(
        f"<b>{escape(target)}</b> for <b>{escape(voice)}</b> ({count} of {all_})"
        for count, all_, target, voice in sorted(pairs, reverse=True)[:5]
    )
    said = (
        f"Most often mistaken: {worst}." if worst else "No conversion is nearer to another voice."
    )
    unseen = sum(
        not any(line[i] for line in found["counts"]) and voice not in found["targets"]
        for i, voice in enumerate(found["voices"])
    )
    left = (
        f" {unseen} voices that are no target and nearest to nothing are left out."
        if unseen
        else ""
    )
    return (
        f'{title}<p>{said}{left}</p><div class="scroll" tabindex="0" role="region" '
        f'aria-label="Nearest voices">{heat_map(found)}</div></section>'
    )
