"""HTML of what is heard and seen: players whose picture is the time axis, and the curves below.

All text that comes from people or models is escaped here.
"""

from __future__ import annotations

import html
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]

_PLAY = (
    '<svg viewBox="0 0 24 24" aria-hidden="true"><path class="vc-i-play" d="M8 5.5v13l11-6.5z"/>'
    '<path class="vc-i-pause" d="M7 5.5h3.6v13H7zM13.4 5.5H17v13h-3.6z"/></svg>'
)
_GET = (
    '<svg viewBox="0 0 24 24" aria-hidden="true"><path d="M11 4h2v9l3.5-3.5 1.4 1.4L12 16.8 '
    '6.1 10.9l1.4-1.4L11 13zM5 18.5h14v2H5z"/></svg>'
)
_TICKS_HZ = (60, 80, 100, 150, 200, 300, 400, 500)


@dataclass(frozen=True)
class Track:
    """A sound to play: its address, a picture (data URI) or none, and how a download is called."""

    label: str
    url: str
    seconds: float
    picture: str | None = None
    download: str | None = None
    kind: str = ""
    titled: bool = True


def escape(text: object) -> str:
    return html.escape(str(text), quote=True)


def play_button(label: str, url: str) -> str:
    """A round button that plays a short sound, and the sound."""
    return (
        f'<span class="vc-player vc-small"><audio preload="none" src="{escape(url)}"></audio>'
        f'<button type="button" class="vc-play" aria-label="Play {escape(label)}">{_PLAY}</button>'
        "</span>"
    )


def track(each: Track) -> str:
    """A player whose picture shows, and sets, the position."""
    picture = (
        f'<img src="{each.picture}" alt="Mel spectrogram: {escape(each.label)}">'
        if each.picture
        else '<span class="vc-bar"></span>'
    )
    name = f'<span class="vc-name">{escape(each.label)}</span>' if each.titled else ""
    get = ""
    if each.download:
        get = (
            f'<a class="vc-get" href="{escape(each.url)}?download=1" '
            f'download="{escape(each.download)}" aria-label="Download {escape(each.label)}" '
            f'title="Download">{_GET}</a>'
        )
    return (
        f'<div class="vc-player vc-track {escape(each.kind)}" data-seconds="{each.seconds:.3f}">'
        f'<audio preload="metadata" src="{escape(each.url)}"></audio>'
        f'<button type="button" class="vc-play" aria-label="Play {escape(each.label)}">'
        f"{_PLAY}</button>"
        f'<div class="vc-scene" role="slider" tabindex="0" aria-valuemin="0" aria-valuenow="0" '
        f'aria-valuemax="{each.seconds:.2f}" aria-label="Position in {escape(each.label)}">'
        f"{picture}{name}"
        f'<i class="vc-cursor"></i></div>{get}</div>'
    )


def stage(
    tracks: Sequence[Track],
    *,
    pitches: Sequence[tuple[str, str, Floats, Floats]] = (),
    units: tuple[str, int] | None = None,
    seconds: float,
    range_hz: tuple[float, float] | None = None,
) -> str:
    """Players one above the other, F0 of all in one plot, the units as a strip, one time axis.

    ``pitches``: label, class, seconds [F], Hz [F] with NaN where unvoiced; ``units``: the strip
    (a data URI) and how many they are.
    """
    parts = ["".join(map(track, tracks))]
    if pitches:
        plot, legend = _pitch_plot(pitches, seconds, range_hz)
        parts.append(_row(plot, "Hz", "vc-pitch", legend))
    if units is not None:
        image, count = units
        parts.append(
            _row(
                f'<img src="{image}" alt="{count} units, a colour for each code">'
                '<i class="vc-cursor"></i>',
                "units",
                "vc-units",
            )
        )
    parts.append(_row(_seconds_axis(seconds), "s", "vc-axis"))
    return f'<div class="vc-stage">{"".join(parts)}</div>'


def facts(pairs: Sequence[tuple[str, str]]) -> str:
    """Figures with what they are, in a row."""
    cells = "".join(
        f"<div><dd>{escape(value)}</dd><dt>{escape(name)}</dt></div>" for name, value in pairs
    )
    return f'<dl class="vc-facts">{cells}</dl>'


def progress(text: str, part: float | None, detail: str = "") -> str:
    """A bar with what is going on; None is work without a known end."""
    value = "" if part is None else f' aria-valuenow="{100 * part:.0f}"'
    width = 100.0 if part is None else 100 * min(1.0, part)
    kind = " vc-endless" if part is None else ""
    return (
        f'<div class="vc-status"><div class="vc-line"><b>{escape(text)}</b>'
        f"<span>{escape(detail)}</span></div>"
        f'<div class="vc-progress{kind}" role="progressbar" aria-label="{escape(text)}" '
        f'aria-valuemin="0" aria-valuemax="100"{value}><i style="width:{width:.1f}%"></i></div>'
        "</div>"
    )


def message(text: str, kind: str = "note") -> str:
    """A sentence: "note", "done" or "error"."""
    role = "alert" if kind == "error" else "status"
    return f'<div class="vc-message vc-{kind}" role="{role}">{escape(text)}</div>'


def hint(title: str, lines: Sequence[str]) -> str:
    """What stands where there is nothing yet."""
    items = "".join(f"<li>{escape(line)}</li>" for line in lines)
    return (
        f'<div class="vc-hint"><div class="vc-waves" aria-hidden="true">{"<i></i>" * 24}</div>'
        f"<h3>{escape(title)}</h3><ol>{items}</ol></div>"
    )


def _row(content: str, label: str, kind: str, above: str = "") -> str:
    return (
        f'<div class="vc-row {kind}">{above}<span class="vc-side">{escape(label)}</span>'
        f'<div class="vc-field">{content}</div></div>'
    )


def _pitch_plot(
    pitches: Sequence[tuple[str, str, Floats, Floats]],
    seconds: float,
    range_hz: tuple[float, float] | None,
) -> tuple[str, str]:
    """The plot, and its legend."""
    voiced = np.concatenate([hz[np.isfinite(hz)] for _, _, _, hz in pitches])
    low, high = range_hz or (80.0, 300.0)
    if range_hz is None and len(voiced):
        low = float(np.percentile(voiced, 1)) / 1.15
        high = float(np.percentile(voiced, 99)) * 1.15
    scale = 100 / np.log(high / low)

    def height(hz: float) -> float:
        return float(100 - scale * np.log(np.clip(hz, low, high) / low))

    lines, legend = [], []
    for label, kind, times, hz in pitches:
        lines.append(f'<path class="{escape(kind)}" d="{_path(times / seconds, hz, height)}"/>')
        finite = hz[np.isfinite(hz)]
        median = f"{np.median(finite):.0f} Hz" if len(finite) else "no voice"
        legend.append(f'<span class="{escape(kind)}">{escape(label)} {median}</span>')
    ticks = [hz for hz in _TICKS_HZ if low * 1.06 < hz < high / 1.06]
    while len(ticks) > 4:
        ticks = ticks[::2]
    grid = "".join(
        f'<line x1="0" x2="1000" y1="{height(hz):.1f}" y2="{height(hz):.1f}"/>' for hz in ticks
    )
    names = "".join(f'<em style="top:{height(hz):.1f}%">{hz}</em>' for hz in ticks)
    what = "; ".join(f"{label}" for label, *_ in pitches)
    return (
        f'<svg viewBox="0 0 1000 100" preserveAspectRatio="none" role="img" '
        f'aria-label="Fundamental frequency of {escape(what)}">{grid}{"".join(lines)}</svg>'
        f'<div class="vc-ticks">{names}</div><i class="vc-cursor"></i>',
        f'<div class="vc-legend">{"".join(legend)}</div>',
    )


def _path(where: Floats, hz: Floats, height: object) -> str:
    assert callable(height)
    steps, drawing, before = [], False, 0.0
    for x, value in zip(where.tolist(), hz.tolist(), strict=True):
        if value != value:
            drawing = False
            continue
        # A jump of a third within a frame is no melody, but a slip of the estimate.
        if drawing and abs(np.log2(value / before)) > 0.4:
            drawing = False
        steps.append(f"{'L' if drawing else 'M'}{1000 * x:.1f} {height(value):.1f}")
        if not drawing:
            steps.append(f"h0.1L{1000 * x + 0.1:.1f} {height(value):.1f}")
        drawing, before = True, value
    return "".join(steps)


def _seconds_axis(seconds: float) -> str:
    step = next((s for s in (0.5, 1, 2, 5, 10, 20, 30, 60) if seconds / s <= 8), 120)
    count = int(seconds / step + 1e-6) + 1
    return "".join(
        f'<em style="left:{100 * i * step / seconds:.2f}%">{i * step:g}</em>' for i in range(count)
    )
