"""A figure of training runs: a panel for each group of metrics, a colour for each run.

B runs of N logged steps each; a column [N] has NaN where a step's line lacks the metric.
"""

from __future__ import annotations

import difflib
import fnmatch
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any, Literal

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import EngFormatter, MaxNLocator, PercentFormatter, StrMethodFormatter
from numpy.typing import NDArray

from vconv.errors import UsageError

Column = NDArray[np.float64]

STYLE = {
    "font.size": 10,
    "axes.titlesize": 11,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#888888",
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#E4E4E4",
    "legend.frameon": False,
    "figure.constrained_layout.w_pad": 0.1,  # inches
    "figure.constrained_layout.h_pad": 0.08,
    "figure.dpi": 100,
    "savefig.dpi": 100,
    "svg.hashsalt": "vconv",  # the same metrics give the same bytes
}
# Okabe & Ito's colours, which people with any colour vision tell apart; yellow is too light.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_DASHES: tuple[Literal["-", "--", ":", "-."], ...] = ("-", "--", ":", "-.")
_MARKERS = ("o", "s", "^", "D", "v", "P", "X")
_GREY = "#555555"
MAX_RUNS = len(_COLOURS) * len(_DASHES)
_MAX_METRICS = len(_MARKERS)  # a panel
_POINTS = 120  # drawn of a curve at most; of a longer one the mean and the range of each stretch


@dataclass(frozen=True)
class Curves:
    """A run's name, its metrics as columns [N], and the horizontal axis [N] to draw them over."""

    name: str
    x: Column
    columns: Mapping[str, Column]

    @property
    def metrics(self) -> list[str]:
        """What can be drawn; the ends of an interval belong to their metric."""
        return [
            name
            for name in self.columns
            if name != "step"
            and not (name.endswith(("_low", "_high")) and name[: name.rindex("_")] in self.columns)
        ]


@dataclass(frozen=True)
class _Panel:
    """Metrics that share an axis. Scales: from zero, shares of 1, logarithmic where the range is
    wide, or ``late``: as far up as needed after the first twentieth."""

    title: str
    unit: str
    metrics: tuple[str, ...]
    scale: Literal["free", "late", "zero", "share", "log"] = "free"
    labels: tuple[str, ...] = ("training", "held out")


# Rows of the standard figure; a panel is left out where no run has its figures.
_STANDARD = (
    (
        _Panel("Negative log-likelihood", "nats a sample", ("nll", "heldout_nll"), "late"),
        _Panel(
            "Probe: another utterance's units", "nats a sample worse", ("probe_latents",), "zero"
        ),
        _Panel("Probe: another speaker", "nats a sample worse", ("probe_speaker",), "zero"),
    ),
    (
        _Panel("Codebook perplexity", "codes", ("perplexity", "heldout_perplexity"), "zero"),
        _Panel("Codes in use, held out", "", ("heldout_codes_used",), "share"),
        _Panel("KL divergence", "nats a unit", ("kl", "heldout_kl"), "zero"),
        _Panel("Active dimensions", "", ("active_dimensions", "heldout_active_dimensions"), "zero"),
    ),
    (
        _Panel("Expected error, held out", "mu-law classes", ("heldout_mulaw_error",), "late"),
        _Panel(
            "Dead channels, held out",
            "",
            ("dead_encoder", "dead_conditioner", "dead_gated", "dead_output"),
            "share",
            ("encoder", "conditioner", "gated layers", "output"),
        ),
        _Panel(
            "Change of the weights in a step",
            "of their norm",
            (
                "update_encoder",
                "update_bottleneck",
                "update_speakers",
                "update_conditioner",
                "update_wavenet",
            ),
            "log",
            ("encoder", "bottleneck", "speakers", "conditioner", "WaveNet"),
        ),
    ),
    (
        _Panel("Learning rate", "", ("learning_rate",), "zero"),
        _Panel("Gradient norm", "", ("gradient_norm",), "log"),
        _Panel("Throughput", "samples a second", ("samples_per_second",), "zero"),
    ),
)
_KNOWN = {metric: panel for panel in chain(*_STANDARD) for metric in panel.metrics}


def draw(
    runs: Sequence[Curves],
    *,
    keys: Sequence[str] = (),
    x: Literal["steps", "samples", "hours"] = "steps",
    title: str | None = None,
    x_label: str,
    y_label: str | None = None,
) -> Figure:
    """The runs' standard figure, or one with a panel for each of ``keys`` (metrics separated by
    commas, ``*`` and ``?`` as in file names).

    ``x`` is how the horizontal axis is written. ``title`` None is a single run's name, ``y_label``
    None the panels' own units. Raises UsageError for metrics that no run has.
    """
    rows = _chosen(runs, keys) if keys else _standard(runs)
    widest = max(map(len, rows))
    alone = len(rows) == widest == 1
    size = (8.0, 5.0) if alone else (max(8.0, 4.2 * min(widest, 3)), 1.0 + 2.7 * len(rows))
    reach = max(float(run.x.max()) for run in runs) or 1.0
    figure = Figure(figsize=size, layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.add_gridspec(len(rows), 12)
    for number, row in enumerate(rows):
        # A row of the standard figure fills the width; panels that were chosen are all alike.
        width = 12 // (widest if keys else len(row))
        for place, panel in enumerate(row):
            axes = figure.add_subplot(grid[number, place * width : (place + 1) * width])
            _draw_panel(axes, panel, runs)
            axes.set_xlim(-0.02 * reach, 1.02 * reach)
            axes.xaxis.set_major_locator(MaxNLocator(5, integer=x == "steps"))
            axes.xaxis.set_major_formatter(
                EngFormatter(sep="\N{NO-BREAK SPACE}")
                if x == "samples"
                else StrMethodFormatter("{x:,.0f}" if x == "steps" else "{x:g}")
            )
            if y_label is None:
                axes.set_ylabel(_literal(panel.unit))
    figure.supxlabel(_literal(x_label), fontsize="medium")
    if y_label:
        figure.supylabel(_literal(y_label), fontsize="medium")
    if len(runs) > 1:
        _legend_of_runs(figure, [run.name for run in runs], title or "")
    else:
        figure.suptitle(_literal(runs[0].name if title is None else title), fontsize=13)
    return figure


def _standard(runs: Sequence[Curves]) -> list[list[_Panel]]:
    there = {metric for run in runs for metric in run.metrics}
    rows = []
    for row in _STANDARD:
        panels = [_restricted(panel, there) for panel in row if there.intersection(panel.metrics)]
        if panels:
            rows.append(panels)
    if not rows:
        raise UsageError(
            "None of the runs has the metrics of the standard figure; choose some with --keys: "
            f"{', '.join(sorted(there)) or 'there are none'}."
        )
    return rows


def _restricted(panel: _Panel, there: set[str]) -> _Panel:
    kept = [pair for pair in zip(panel.metrics, panel.labels, strict=False) if pair[0] in there]
    return replace(panel, metrics=tuple(m for m, _ in kept), labels=tuple(word for _, word in kept))


def _chosen(runs: Sequence[Curves], keys: Sequence[str]) -> list[list[_Panel]]:
    there = list(dict.fromkeys(metric for run in runs for metric in run.metrics))
    panels = []
    for key in keys:
        metrics: dict[str, None] = {}
        for pattern in filter(None, map(str.strip, key.split(","))):
            matches = fnmatch.filter(there, pattern)
            if not matches:
                near = difflib.get_close_matches(pattern, there, n=1, cutoff=0.5)
                hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(there)}."
                raise UsageError(f"No run has the metric {pattern}; {hint}")
            metrics |= dict.fromkeys(matches)
        if not 0 < len(metrics) <= _MAX_METRICS:
            raise UsageError(
                f"--keys {key!r} names {len(metrics)} metrics for one panel; 1 to {_MAX_METRICS} "
                "can be told apart."
            )
        names = tuple(metrics)
        known = [_KNOWN.get(name) for name in names]
        alike = known[0] if len({(p.unit, p.scale) if p else None for p in known}) == 1 else None
        unit, scale = (alike.unit, alike.scale) if alike else ("", "free")
        panels.append(_Panel(", ".join(names[:2]), unit, names, scale, names))
        if len(names) > 2:
            panels[-1] = replace(panels[-1], title=key)
    return [panels[i : i + 3] for i in range(0, len(panels), 3)]


def _draw_panel(axes: Axes, panel: _Panel, runs: Sequence[Curves]) -> None:
    handles = []
    for turn, metric in enumerate(panel.metrics):
        style: dict[str, Any] = {"linewidth": 1.7, "marker": _MARKERS[turn], "markersize": 4}
        if f"heldout_{metric}" in panel.metrics:  # which is to stand out
            style |= {"linewidth": 1.0, "alpha": 0.8}
        if not (_validated(metric, runs) or (len(runs) > 1 and turn)):
            style["marker"] = ""
        for place, run in enumerate(runs):
            if metric in run.columns:
                which = place if len(runs) > 1 else turn
                style["color"] = _COLOURS[which % len(_COLOURS)]
                style["linestyle"] = _DASHES[which // len(_COLOURS)]
                _draw_curve(axes, run, metric, style)
        if len(runs) > 1:
            style |= {"color": _GREY, "linestyle": "-"}
        handles.append(Line2D([], [], **style))
    axes.set_title(_literal(panel.title))
    _scale(axes, panel, runs)
    if len(handles) > 1:
        _legend(axes, handles, panel.labels, fontsize="small")


def _validated(metric: str, runs: Sequence[Curves]) -> bool:
    """Whether it is known at some steps only, which are then marked."""
    shares = [np.isfinite(run.columns[metric]).mean() for run in runs if metric in run.columns]
    return bool(min(shares) < 0.5)


def _draw_curve(axes: Axes, run: Curves, metric: str, style: Mapping[str, Any]) -> None:
    there = np.isfinite(run.columns[metric])
    x, y = run.x[there], run.columns[metric][there]
    ends = [run.columns[name][there] for end in ("low", "high")
            if (name := f"{metric}_{end}") in run.columns]  # fmt: skip
    if len(x) > _POINTS:
        first = np.linspace(0, len(x), _POINTS, endpoint=False).astype(int)
        count = np.diff(first, append=len(x))
        if len(ends) == 2:
            ends = [np.add.reduceat(end, first) / count for end in ends]
        else:
            ends = [np.minimum.reduceat(y, first), np.maximum.reduceat(y, first)]
        x, y = (np.add.reduceat(values, first) / count for values in (x, y))
    # A single point has no line that could be seen.
    marker = style["marker"] or ("." if len(x) == 1 else "")
    axes.plot(x, y, **{**style, "marker": marker}, markevery=max(1, len(x) // 12))
    if len(ends) == 2 and len(x) == 1:
        axes.vlines(x, ends[0], ends[1], color=style["color"], alpha=0.6)
    elif len(ends) == 2:
        axes.fill_between(x, ends[0], ends[1], color=style["color"], alpha=0.18, linewidth=0)


def _scale(axes: Axes, panel: _Panel, runs: Sequence[Curves]) -> None:
    bands = [f"{metric}_low" for metric in panel.metrics]
    columns = [
        (run.x[there], run.columns[name][there])
        for run in runs
        for name in (*panel.metrics, *bands)
        if name in run.columns
        for there in [np.isfinite(run.columns[name])]
    ]
    y = np.concatenate([column for _, column in columns])
    if not len(y):
        return
    if panel.scale == "log" and y.min() > 0 and y.max() > 30 * np.median(y):
        axes.set_yscale("log")
    elif panel.scale == "share":
        axes.set_ylim(0, 1.05)
        axes.yaxis.set_major_formatter(PercentFormatter(1.0))
    elif panel.scale in ("zero", "log"):
        axes.axhline(0, color=_GREY, linewidth=0.8)
        if y.min() >= 0 and y.max() > 0:
            axes.set_ylim(bottom=0)
    elif panel.scale == "late":
        start = max(float(run.x.max()) for run in runs) / 20
        late = np.concatenate([column[x >= start] for x, column in columns])
        if len(late) and y.max() > late.max():
            low, high = float(y.min()), float(late.max())
            axes.set_ylim(low - 0.05 * (high - low), high + 0.05 * (high - low))
    if panel.unit == "samples a second":
        axes.yaxis.set_major_formatter(EngFormatter(sep="\N{NO-BREAK SPACE}"))
    elif panel.metrics == ("learning_rate",):
        axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))


def _legend_of_runs(figure: Figure, names: Sequence[str], title: str) -> None:
    names = [name if len(name) <= 40 else f"{name[:19]}…{name[-20:]}" for name in names]
    handles = [
        Line2D(
            [], [], color=_COLOURS[i % len(_COLOURS)], linestyle=_DASHES[i // len(_COLOURS)], lw=2
        )
        for i in range(len(names))
    ]
    room = int(figure.get_figwidth() * 13)  # characters in a line
    columns = min(len(names), max(1, room // (max(map(len, names)) + 6)))
    # The title is the legend's: one of the figure would lie upon it.
    heading = {"title": _literal(title), "title_fontsize": 13} if title else {}
    _legend(figure, handles, names, loc="outside upper center", ncols=columns, **heading)


def _legend(
    where: Axes | Figure, handles: Sequence[Line2D], names: Sequence[str], **options: Any
) -> None:
    legend = where.legend(list(handles), ["-"] * len(names), **options)
    # Given as labels, names that begin with "_" would be left out.
    for text, name in zip(legend.get_texts(), names, strict=False):
        text.set_text(_literal(name))


def _literal(text: str) -> str:
    """No formulas: a name may have dollar signs."""
    return text.replace("$", r"\$")
