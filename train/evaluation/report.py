"""report/index.html: the report as one page that needs nothing beside it.

It is made of report.json and of report/audio, and whatever they say is escaped.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

import numpy as np

from vconv.audio import replacing

from .figures import Row, Voices, sounds
from .pairs import PairList
from .report_examples import examples
from .report_figures import DASH, KINDS, histogram, told
from .report_style import framed
from .report_tables import by_voice, confusion, main_table, why_none

PAGE = "index.html"
Report = Mapping[str, Any]

# (What is drawn, its title, the width of a bar, the ends that what lies beyond is counted at.)
_DISTRIBUTIONS = (
    ("cosine_target", "Cosine to the target", 0.025, (-1.0, 1.0)),
    ("semitones", "Median F0 above the true target's, semitones", 1.0, (-24.0, 24.0)),
)
_CHECKS = {  # how a limit's name begins: the figure that it is about
    "nearest": "nearest",
    "cosine to the target less": "cosine_margin",
    "cosine": "cosine_target",
    "word errors": "wer",
    "unit errors": "unit_error",
    "share of the distortion": "mcd_closed",
    "median F0": "semitones_off",
    "perplexity": "perplexity",
    "linear speaker probe": "speaker_probe",
    "listening probe": "probe_latents",
}


def distributions(pairs: PairList, rows: Mapping[str, Row]) -> dict[str, Any]:
    """Histograms of single items, for report.json: edges, and counts of each kind that has any."""
    made = sounds(pairs, rows, Voices(pairs, rows))
    found: dict[str, Any] = {}
    for name, _, width, ends in _DISTRIBUTIONS:
        known = [s for s in made if name in s.figures]
        values = {
            kind: np.clip([s.figures[name][0] for s in known if s.kind == kind], *ends)
            for kind in KINDS
            if any(s.kind == kind for s in known)
        }
        if values:
            every = np.concatenate(list(values.values()))
            low, high = int(np.floor(every.min() / width)), int(np.ceil(every.max() / width))
            edges = np.arange(low, max(high, low + 1) + 1) * width
            found[name] = {
                "edges": edges.tolist(),
                "counts": {k: np.histogram(v, edges)[0].tolist() for k, v in values.items()},
            }
    return found


def write_page(folder: Path, report: Report) -> Path:
    """Write index.html beside report.json; ``report`` is what that holds."""
    body = "\n".join(
        [
            _header(report),
            "<main>",
            _verdict(report),
            main_table(report),
            by_voice(report, "target"),
            by_voice(report, "source"),
            confusion(report),
            _distributions(report),
            _units(report),
            examples(report["examples"], folder),
            _notes(report),
            "</main>",
        ]
    )
    path = folder / PAGE
    with replacing(path) as beside:
        beside.write_text(framed(f"{report['bundle']['name']}: voice conversion", body), "utf-8")
    return path


def _header(report: Report) -> str:
    listed, settings = report["list"], report["settings"]
    facts = {
        "date": report.get("date"),
        "items": f"{listed['conversions']} conversions, {listed['copies']} copies",
        "voices": f"{len(listed['sources']) or 'unnamed'} sources, "
        f"{len(listed['targets'])} targets",
        "sentences": len(listed["sentences"]),
        "list": listed["digest"][:16],
        "model": f"{report['bundle']['bottleneck']['kind']}, {report['bundle']['digest'][:16]}",
        "settings": f"seed {settings['seed']}, temperature {settings['temperature']:g}, "
        f"{settings['precision']}",
        "vconv": report["versions"].get("vconv"),
    }
    cells = "".join(
        f"<div><dt>{name}</dt><dd>{escape(str(value or DASH))}</dd></div>"
        for name, value in facts.items()
    )
    warnings = "".join(
        f'<p class="warning" role="note"><b>Warning:</b> {escape(each)}.</p>'
        for each in report["warnings"]
    )
    parts = "verdict figures targets sources confusion distributions units listening notes"
    links = "".join(f'<a href="#{part}">{part}</a>' for part in parts.split())
    return (
        '<header><p class="soft">Voice conversion, measured</p>'
        f"<h1>{escape(report['bundle']['name'])}</h1>"
        f'<dl>{cells}</dl>{warnings}<nav aria-label="Parts">{links}</nav></header>'
    )


def _verdict(report: Report) -> str:
    checks = report["checks"]
    met, missed = (sum(c["met"] is each for c in checks) for each in (True, False))
    rows = []
    for check in checks:
        found = next(f for begin, f in _CHECKS.items() if check["name"].startswith(begin))
        unit = report["figures"].get(found, {"unit": ""})["unit"]
        unit = "share" if found == "speaker_probe" else unit
        sign, word, css = {
            True: ("\N{CHECK MARK}", "met", "met"),
            False: ("\N{BALLOT X}", "missed", "missed"),
            None: (DASH, "not judged", "soft"),
        }[check["met"]]
        reason = ""
        if check["met"] is None:
            kinds = ("conversion", "copy") if "copy" in check["name"] else ("conversion",)
            reason = (
                f"<small>{escape(why_none(report, found, _lacking(report, found, kinds)))}</small>"
            )
        sense = {">=": "\N{GREATER-THAN OR EQUAL TO}", "<=": "\N{LESS-THAN OR EQUAL TO}"}[
            check["sense"]
        ]
        limit = DASH if check["limit"] is None else f"{sense} {told(check['limit'], unit)}"
        rows.append(
            f'<tr><td class="verdict {css}">{sign} {word}</td>'
            f'<th scope="row">{escape(check["name"])}{reason}</th>'
            f'<td class="n">{told(check["figure"], unit)}</td><td class="n">{limit}</td></tr>'
        )
    rest = len(checks) - met - missed
    unjudged = f", {rest} could not be judged" if rest else ""
    return (
        f'<section id="verdict"><h2>{met} of {len(checks)} limits are met, {missed} missed'
        f'{unjudged}</h2><table><thead><tr><th scope="col">verdict</th><th scope="col">what</th>'
        '<th scope="col" class="n">figure</th><th scope="col" class="n">limit</th></tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table></section>"
    )


def _lacking(report: Report, figure: str, kinds: Sequence[str]) -> str:
    found = report["figures"].get(figure, {})
    return next((kind for kind in kinds if not found.get(kind)), kinds[0])


def _distributions(report: Report) -> str:
    found, plots = report.get("distributions", {}), []
    for name, title, _, ends in _DISTRIBUTIONS:
        if name not in found:
            reason = why_none(report, name, "conversion")
            plots.append(f'<div><h3>{title}</h3><p class="soft">{DASH} {reason}</p></div>')
            continue
        edges, counts = found[name]["edges"], found[name]["counts"]
        medians = {kind: report["figures"][name][kind]["median"] for kind in counts}
        drawn = histogram(title, edges, counts, medians)
        beyond = ends != (-1.0, 1.0) and (edges[0] == ends[0] or edges[-1] == ends[1])
        note = "<small>The outermost bars hold what lies beyond.</small>" if beyond else ""
        plots.append(f"<figure><h3>{title}</h3>{drawn}{note}</figure>")
    return (
        '<section id="distributions"><h2>Distributions over items</h2><p class="soft">The line is '
        "the median, the number how many there are; every row has its own height.</p>"
        f'<div class="plots">{"".join(plots)}</div></section>'
    )


def _units(report: Report) -> str:
    model = report["model"]
    size, chance = model["codebook_size"], model["speaker_probe_chance"]
    of = "" if size is None else f"of {size} codes"
    rows = (
        ("perplexity", "perplexity of these recordings", "", of),
        ("codes_used", "codes in use", "share", of),
        ("heldout_perplexity", "perplexity at export", "", of),
        ("bits_per_second", "bits a second", "", "at most"),
        (
            "speaker_probe",
            "speaker named from a second of units",
            "share",
            f"by the {model['speaker_probe_of']}"
            + ("" if chance is None else f"; chance {told(chance, 'share')}"),
        ),
        ("probe_latents", "listening probe, latents", "", "nats lost with other latents"),
        ("probe_speaker", "listening probe, speaker", "", "nats lost with another speaker"),
    )
    cells = []
    for name, title, unit, aside in rows:
        value = model[name]
        small = why_none(report, name, "conversion") if value is None else aside
        cells.append(
            f"<div><dt>{title}</dt><dd><b>{told(value, unit)}</b>"
            f"<small>{escape(small)}</small></dd></div>"
        )
    return (
        '<section id="units"><h2>Units and model</h2>'
        f'<dl class="big">{"".join(cells)}</dl></section>'
    )


def _notes(report: Report) -> str:
    content, gate = report["content"], report["identification"]
    judged = ", ".join(map(escape, content["voices"])) or "none"
    heard = "".join(
        f'<tr><th scope="row">{escape(voice)}</th><td class="n">{told(rate, "share")}</td>'
        f"<td>{'judged' if voice in content['voices'] else 'not judged'}</td></tr>"
        for voice, rate in sorted(content["wer_of_recordings"].items(), key=lambda each: each[1])
    )
    table = (
        "<details><summary>Words of the voices' own recordings that the recogniser gets wrong"
        '</summary><table><thead><tr><th scope="col">voice</th><th scope="col" class="n">word '
        'errors</th><th scope="col">as target</th></tr></thead>'
        f"<tbody>{heard}</tbody></table></details>"
    )
    missed = "".join(
        f"<li>{escape(str(name))}: {escape(str(text or 'no text'))}</li>"
        for name, text in content["sentences_not_scored"].items()
    )
    unscored = f"<details><summary>Sentences not scored</summary><ul>{missed}</ul></details>"
    passed = "no enrolment recordings"
    if gate["recordings"]:
        passed = (
            f"{gate['right']} of {gate['recordings']} enrolment recordings are nearest to their "
            f"own voice ({told(gate['share'], 'share')}; {told(gate['limit'], 'share')} wanted)"
        )
    versions = ", ".join(f"{escape(n)} {escape(v)}" for n, v in report["versions"].items())
    count = len(content["texts"])
    return f"""<section id="notes"><h2>Notes</h2>
<p><b>Voice</b>: cosines of Resemblyzer's embeddings to a voice's mean over its enrolment. Its gate:
{passed}.</p>
<p><b>Content</b>: pocketsphinx, a free loop over the words of the texts. Content voices, whose own
recordings it understands: {judged}. {content["sentences_scored"]} of {count} sentences scored; the
others have a word that its dictionary lacks, or no text.</p>
{table if heard else ""}{unscored if missed else ""}
<p><b>Units</b>: the codes of the input beside those of the output encoded anew. <b>Distortion</b>:
mel cepstra 1 to 13 along the path of dynamic time warping. <b>F0</b> is decided frame by frame:
read it beside the share of voiced frames. <b>DNSMOS</b> hears a few sentences only. A speed
counts only where nothing else runs.</p>
<p class="soft">List {escape(report["list"]["digest"])}
<br>Model {escape(report["bundle"]["digest"])}
<br>{versions}</p></section>"""
