"""Curves of a training run as HTML: one plot for each group of figures."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from .stage import escape

_POINTS = 240  # drawn of a curve at most


@dataclass(frozen=True)
class Curve:
    """A metric: its key, what it is called, and whether it has ``_low`` and ``_high``."""

    key: str
    label: str
    banded: bool = False


@dataclass(frozen=True)
class Plot:
    """A plot's title and curves (two at most); ``from_zero`` has the axis begin there."""

    title: str
    unit: str
    curves: tuple[Curve, ...]
    from_zero: bool = False


PLOTS = (
    Plot(
        "Likelihood",
        "nats a sample, lower is better",
        (Curve("nll", "training"), Curve("heldout_nll", "held out")),
    ),
    Plot(
        "Is anybody listening?",
        "nats lost with others' units or voice; above zero is good",
        (
            Curve("probe_latents", "to the units", banded=True),
            Curve("probe_speaker", "to the voice", banded=True),
        ),
        from_zero=True,
    ),
    Plot(
        "Codebook: perplexity",
        "how many codes it is as if there were",
        (Curve("perplexity", "of a batch"), Curve("heldout_perplexity", "held out")),
        from_zero=True,
    ),
    Plot(
        "Codebook: codes in use",
        "share of all, on held-out speech",
        (Curve("heldout_codes_used", "in use"), Curve("restarts", "restarted a step")),
        from_zero=True,
    ),
    Plot(
        "KL divergence", "nats a unit", (Curve("kl", "training"), Curve("heldout_kl", "held out"))
    ),
    Plot(
        "Learning rate",
        "",
        (Curve("learning_rate", "learning rate"),),
        from_zero=True,
    ),
    Plot("Gradient norm", "", (Curve("gradient_norm", "before clipping"),), from_zero=True),
    Plot(
        "Speed",
        "seconds of sound a second",
        (Curve("times_real_time", "times real time"),),
        from_zero=True,
    ),
)


def charts(steps: Mapping[int, Mapping[str, float]]) -> str:
    """All plots of which there are figures."""
    made = [_plot(plot, steps) for plot in PLOTS]
    return f'<div class="vc-charts">{"".join(filter(None, made))}</div>'


def _plot(plot: Plot, steps: Mapping[int, Mapping[str, float]]) -> str:
    columns = {curve.key: _column(steps, curve.key) for curve in plot.curves}
    curves = [curve for curve in plot.curves if columns[curve.key]]
    if not curves:
        return ""
    right = max(steps)
    low, high = _range(plot, curves, columns, steps)

    def point(step: float, value: float) -> str:
        y = 100 * (1 - (min(max(value, low), high) - low) / (high - low))
        return f"{1000 * step / max(right, 1):.1f} {y:.2f}"

    shapes, legend = [], []
    for number, curve in enumerate(curves):
        points = _thinned(columns[curve.key])
        if curve.banded:
            lows, highs = (_column(steps, f"{curve.key}_{end}") for end in ("low", "high"))
            if lows and highs:
                outline = [point(*each) for each in [*lows, *reversed(highs)]]
                kind = "vc-band1" if number else "vc-band"
                shapes.append(f'<path class="{kind}" d="M{"L".join(outline)}z"/>')
        drawn = [point(*each) for each in points]
        if len(drawn) == 1:
            drawn.append(point(points[0][0] + right / 100, points[0][1]))
        shapes.append(f'<path class="vc-c{number}" d="M{"L".join(drawn)}"/>')
        last = columns[curve.key][-1][1]
        legend.append(
            f'<span class="vc-c{number}">{escape(curve.label)} <b>{_short(last)}</b></span>'
        )
    ticks = _ticks(low, high)
    grid = "".join(
        f'<line x1="0" x2="1000" y1="{at:.1f}" y2="{at:.1f}"/>'
        for at in (100 * (1 - (tick - low) / (high - low)) for tick in ticks)
    )
    names = "".join(
        f'<em style="top:{100 * (1 - (tick - low) / (high - low)):.1f}%">{_short(tick)}</em>'
        for tick in ticks
    )
    across = "".join(
        f'<em style="left:{100 * tick / max(right, 1):.1f}%">{_short(tick)}</em>'
        for tick in _ticks(0, right)
    )
    said = ", ".join(f"{curve.label} {_short(columns[curve.key][-1][1])}" for curve in curves)
    return (
        f'<div class="vc-chart"><h4>{escape(plot.title)}</h4><div class="vc-sub">{"".join(legend)}'
        f'</div><div class="vc-plot" role="img" aria-label="{escape(plot.title)}, last: '
        f'{escape(said)}"><svg viewBox="0 0 1000 100" preserveAspectRatio="none" '
        f'aria-hidden="true">{grid}{"".join(shapes)}</svg><div class="vc-y">{names}</div>'
        f'<div class="vc-x">{across}</div></div>'
        f'<div class="vc-sub">{escape(plot.unit)}</div></div>'
    )


def _column(steps: Mapping[int, Mapping[str, float]], key: str) -> list[tuple[float, float]]:
    return [(step, row[key]) for step, row in steps.items() if key in row]


def _range(
    plot: Plot,
    curves: Sequence[Curve],
    columns: Mapping[str, Sequence[tuple[float, float]]],
    steps: Mapping[int, Mapping[str, float]],
) -> tuple[float, float]:
    """As far as the values reach after the first twentieth: before it, they tell nothing."""
    values = []
    for curve in curves:
        column = columns[curve.key]
        begun = column[-1][0] / 20
        values += [value for step, value in column if step >= begun]
        if curve.banded:
            values += [
                v for end in ("low", "high") for _, v in _column(steps, f"{curve.key}_{end}")
            ]
    low, high = min(values), max(values)
    if plot.from_zero:
        low, high = min(low, 0.0), max(high, 0.0)
    margin = (high - low or abs(high) or 1.0) * 0.05
    return (low if plot.from_zero and low == 0 else low - margin), high + margin


def _thinned(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Of many points, the mean of each stretch."""
    size = math.ceil(len(points) / _POINTS)
    groups = [points[at : at + size] for at in range(0, len(points), size)]
    return [
        (sum(step for step, _ in each) / len(each), sum(value for _, value in each) / len(each))
        for each in groups
    ]


def _ticks(low: float, high: float) -> list[float]:
    span = high - low
    if span <= 0:
        return [low]
    rough = span / 4
    power = 10 ** math.floor(math.log10(rough))
    step = next(m * power for m in (1, 2, 2.5, 5, 10) if m * power >= rough)
    first = math.ceil(low / step - 1e-9)
    return [i * step for i in range(first, math.floor(high / step + 1e-9) + 1)]


def _short(value: float) -> str:
    if abs(value) >= 10_000:
        return f"{value / 1000:.4g}k"
    return f"{value:.3g}" if abs(value) < 1000 else f"{value:.0f}"
