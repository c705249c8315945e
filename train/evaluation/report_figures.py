"""The pictures of report/index.html: dots with whiskers, bars, histograms, a heat map, mels.

All take figures as report.json has them and give markup; every text in it is escaped.
"""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

import matplotlib
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from .statistics import Stat

KINDS = {
    "source": "source",
    "target": "true target",
    "copy": "copy synthesis",
    "conversion": "conversion",
}
DASH, PER_CENT = "\N{EN DASH}", "\N{NO-BREAK SPACE}%"
_WIDTH, _LANE = 240, 11  # of the dots, in units of the drawing
_DECIMALS = {"dB": 2, "semitones": 2, "x": 2}
_MEL_RANGE_DB = 70
_MEL_COLOURS, _MEL_COLUMNS = 32, 600


def told(value: float | None, unit: str) -> str:
    """A number as text: shares in per cent."""
    if value is None:
        return DASH
    decimals = _DECIMALS.get(unit, 3 if abs(value) < 10 else 1)
    text = f"{100 * value:.1f}{PER_CENT}" if unit == "share" else f"{value:.{decimals}f}"
    return text.replace("-", "\N{MINUS SIGN}")


def mark(kind: str, x: float, y: float) -> str:
    """A kind's shape, so that colour is not all that tells it: ring, diamond, square, disc."""
    drawn = {
        "source": f'<circle class="mark hollow" cx="{x:.1f}" cy="{y:.1f}" r="3.4"/>',
        "target": f'<path class="mark" d="M{x:.1f} {y - 4.6:.1f}l4.6 4.6-4.6 4.6-4.6-4.6z"/>',
        "copy": f'<path class="mark" d="M{x - 3.6:.1f} {y - 3.6:.1f}h7.2v7.2h-7.2z"/>',
        "conversion": f'<circle class="mark" cx="{x:.1f}" cy="{y:.1f}" r="4.4"/>',
    }
    return drawn[kind]


def key(kind: str) -> str:
    """The shape for a legend."""
    shape = mark(kind, 6, 6)
    return f'<svg class="key {kind}" width="12" height="12" aria-hidden="true">{shape}</svg>'


def dots(title: str, unit: str, stats: Mapping[str, Stat | None]) -> str:
    """A lane for each kind that has the figure: its mean, its 95 % interval."""
    known = {kind: found for kind, found in stats.items() if found is not None}
    if not known:
        return ""
    ends = [e for s in known.values() for e in (s["mean"], s["low"], s["high"]) if e is not None]
    low, high = float(min(ends)), float(max(ends))
    if unit == "share":
        low, high = min(low, 0.0), max(high, 1.0)
    elif unit == "semitones":
        low, high = min(low, 0.0), max(high, 0.0)
    if unit != "share":
        step = _step(high - low or abs(high) / 10 or 1.0)
        first = math.floor(low / step)
        low, high = step * first, step * max(math.ceil(high / step), first + 1)

    def x(value: float) -> float:
        return 6 + (_WIDTH - 12) * (value - low) / (high - low)

    bottom = _LANE * len(known) + 3
    parts = [f'<path class="axis" d="M6 {bottom}H{_WIDTH - 6}"/>']
    if low < 0 < high:
        parts.append(f'<path class="zero" d="M{x(0):.1f} 0V{bottom}"/>')
    for lane, (kind, found) in enumerate(known.items()):
        y = _LANE * (lane + 0.5)
        whisker = ""
        if found["low"] is not None:
            ends_at = f"M{x(found['low']):.1f} {y}H{x(found['high']):.1f}"
            whisker = f'<path class="whisker" d="{ends_at}"/>'
        parts.append(f'<g class="{kind}">{whisker}{mark(kind, x(found["mean"]), y)}</g>')
    for place, anchor, value in ((6, "start", low), (_WIDTH - 6, "end", high)):
        text = f"{100 * value:.0f}{PER_CENT}" if unit == "share" else f"{value:.4g}"
        text = text.replace("-", "\N{MINUS SIGN}")
        parts.append(f'<text x="{place}" y="{bottom + 12}" text-anchor="{anchor}">{text}</text>')
    said = "; ".join(f"{KINDS[kind]} {told(s['mean'], unit)}" for kind, s in known.items())
    return (
        f'<svg class="dots" viewBox="0 0 {_WIDTH} {bottom + 15}" role="img" '
        f'aria-label="{escape(title)}: {said}">{"".join(parts)}</svg>'
    )


def bar(share: float, tick: float | None = None) -> str:
    """A bar of 0 to 1 and, where there is one to compare with, a tick."""
    shown = f'<i style="width:{100 * min(max(share, 0.0), 1.0):.1f}%"></i>'
    if tick is not None:
        shown += f'<b style="left:{100 * min(max(tick, 0.0), 1.0):.1f}%"></b>'
    return f'<span class="bar conversion" aria-hidden="true">{shown}</span>'


def histogram(
    title: str,
    edges: Sequence[float],
    counts: Mapping[str, Sequence[int]],
    medians: Mapping[str, float],
) -> str:
    """A row of bars for each kind on one axis, each kind's own highest bar of the same height; a
    line at its median."""
    left, width, row, space = 4.0, 352.0, 46.0, 18.0
    low, high = edges[0], edges[-1]

    def x(value: float) -> float:
        return left + width * (min(max(value, low), high) - low) / (high - low)

    parts = []
    for lane, (kind, found) in enumerate(counts.items()):
        base = (lane + 1) * (row + space)
        top = max(found)
        bars = [
            f"M{x(edges[i]):.1f} {base}v{-row * n / top:.1f}H{x(edges[i + 1]) - 0.6:.1f}V{base}"
            for i, n in enumerate(found)
            if n
        ]
        name = f"{KINDS[kind]}, {sum(found)}"
        parts.append(
            f'<g class="{kind}"><path class="mark" stroke="none" d="{"".join(bars)}"/></g>'
            f'<path class="axis" d="M{left} {base}h{width}"/>'
            f'<path class="median" d="M{x(medians[kind]):.1f} {base + 4}V{base - row}"/>'
            f'<text x="{left}" y="{base - row - 4}">{name}</text>'
        )
    bottom = len(counts) * (row + space)
    for value in _ticks(low, high):
        text = f"{value:g}".replace("-", "\N{MINUS SIGN}")
        parts.append(
            f'<text x="{x(value):.1f}" y="{bottom + 16}" text-anchor="middle">{text}</text>'
        )
    said = "; ".join(f"{KINDS[kind]}, median {medians[kind]:.3g}" for kind in counts)
    return (
        f'<svg viewBox="0 0 360 {bottom + 22:g}" role="img" '
        f'aria-label="{escape(title)}: {said}">{"".join(parts)}</svg>'
    )


def _ticks(low: float, high: float) -> list[float]:
    """Round numbers within, about six."""
    step = _step(high - low)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [round(i * step, 9) for i in range(first, last + 1)]


def _step(span: float) -> float:
    """1, 2 or 5 times a power of ten: about a fifth of the span."""
    ten = 10.0 ** math.floor(math.log10(span / 5))
    return next(ten * m for m in (1, 2, 5, 10) if ten * m >= span / 5 * 0.8)


def heat_map(confusion: Mapping[str, Any]) -> str:
    """Targets by nearest voice as a table; a cell's shade is its share of the row."""
    targets, voices = confusion["targets"], confusion["voices"]
    counts = np.array(confusion["counts"])
    # The targets in their order make a diagonal; then the others that were ever the nearest.
    order = [voices.index(t) for t in targets if t in voices]
    order += [i for i, v in enumerate(voices) if v not in targets and counts[:, i].any()]
    head = "".join(f'<th scope="col">{escape(voices[i])}</th>' for i in order)
    rows = []
    for target, line in zip(targets, counts, strict=True):
        cells = []
        for i in order:
            share = line[i] / max(line.sum(), 1)
            names = [*(["own"] * (voices[i] == target)), *(["strong"] * int(share > 0.55))]
            style = f' style="--v:{share:.2f}"' if line[i] else ""
            marked = f' class="{" ".join(names)}"' if names else ""
            cells.append(f"<td{marked}{style}>{line[i] or ''}</td>")
        rows.append(f'<tr><th scope="row">{escape(target)}</th>{"".join(cells)}</tr>')
    return (
        f'<table class="heat fixed"><caption>Conversions of each target (rows) by the voice that '
        f"is nearest to them (columns); outlined: its own.</caption>"
        f'<thead><tr><th scope="col">target</th>{head}</tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table>"
    )


def mel_pictures(mels: Sequence[NDArray[np.floating]]) -> list[bytes]:
    """Log-mel power [80, F] of some sounds as PNG files, on one scale."""
    top = max(float(mel.max()) for mel in mels)
    low = top - _MEL_RANGE_DB * np.log(10) / 10  # a natural logarithm of power
    map_ = matplotlib.colormaps["magma"](np.linspace(0, 1, _MEL_COLOURS))[:, :3]
    palette = np.round(255 * map_).astype(np.uint8).tobytes()
    made = []
    for mel in mels:
        step = -(-mel.shape[1] // _MEL_COLUMNS)
        shade = (np.clip(mel[::-1, ::step], low, top) - low) / (top - low)
        levels = np.ascontiguousarray(np.round(shade * (_MEL_COLOURS - 1)).astype(np.uint8))
        image = Image.fromarray(levels, "L")
        image.putpalette(palette)
        file = io.BytesIO()
        image.save(file, "png", optimize=True)
        made.append(file.getvalue())
    return made


def data_uri(mime: str, content: bytes) -> str:
    return f"data:{mime};base64,{base64.b64encode(content).decode()}"
