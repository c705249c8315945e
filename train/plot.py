"""``vconv plot``: curves of one or several runs, from their ``metrics.jsonl``, as figures."""

from __future__ import annotations

import difflib
import json
import os
import secrets
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.style import context as style_context
from pydantic import BeforeValidator

from vconv.config import Section, load_config
from vconv.config_file import parse, read_mapping
from vconv.errors import InputError, UsageError
from vconv.messages import say
from vconv.reading import printable, reason_of

from .figure import MAX_RUNS, STYLE, Column, Curves, draw

FORMATS = ("png", "svg", "pdf", "jpg", "webp")
_METRICS = "metrics.jsonl"
_RUNS = Path("runs")  # run.py's, which would bring torch
_AXIS = {"steps": "step", "samples": "samples trained on", "hours": "hours of training"}
# Without the time of day, the same metrics give the same bytes.
_METADATA: dict[str, dict[str, Any]] = {"svg": {"Date": None}, "pdf": {"CreationDate": None}}

Names = Annotated[
    tuple[str, ...], BeforeValidator(lambda value: [value] if isinstance(value, str) else value)
]


class PlotConfig(Section):
    """What to draw: the keys of a ``--config`` file, named like the command's options.

    ``keys``: a panel each, of metrics separated by commas, ``*`` and ``?`` as in file names; none
    is the standard figure. ``x``: optimiser steps, audio samples trained on, or hours of training
    (without validation and interruptions).
    """

    runs: Names = ()
    output: Names = ()
    keys: Names = ()
    x: Literal["steps", "samples", "hours"] = "steps"
    title: str | None = None
    x_label: str | None = None
    y_label: str | None = None
    overwrite: bool = False


def plot_command(
    runs: Sequence[str] = (), *, config: Path | None = None, **options: Any
) -> list[Path]:
    """Draw runs as a ``--config`` file and then the options say; returns the files written.

    A run is its folder, its name below runs/, or a metrics.jsonl. Options (keys of
    ``PlotConfig``) that are None or empty are not set. Raises UsageError for wrong options and
    metrics that no run has, InputError for runs that are not there and metrics.jsonl that are
    empty or damaged; nothing is written then.
    """
    values = _defaults(config) if config is not None else {}
    given = {name: value for name, value in options.items() if value is not None and value != []}
    plan = parse(PlotConfig, values | given | ({"runs": list(runs)} if runs else {}), "vconv plot")
    if not plan.runs:
        raise UsageError("There is nothing to plot; name a run, such as runs/demo.")
    paths = list(dict.fromkeys(_find(run) for run in plan.runs))
    if len(paths) > MAX_RUNS:
        raise UsageError(f"{len(paths)} runs; at most {MAX_RUNS} can be told apart in one figure.")
    names = _names(paths)
    outputs = _outputs(plan, names)
    curves = []
    for path, name in zip(paths, names, strict=True):
        columns = read_columns(path)
        curves.append(Curves(name, _axis(path, columns, plan.x), columns))
    with (
        warnings.catch_warnings(),
        matplotlib.rc_context(),
        style_context(["default", STYLE]),
    ):
        # Of a name that the font cannot write, a box will do.
        warnings.filterwarnings("ignore", "Glyph .* missing from", UserWarning)
        figure = draw(
            curves,
            keys=plan.keys,
            x=plan.x,
            title=plan.title,
            x_label=_AXIS[plan.x] if plan.x_label is None else plan.x_label,
            y_label=plan.y_label,
        )
        _write(figure, outputs)
    for output in outputs:
        say(f"{', '.join(map(printable, names))} -> {printable(output)}")
    return outputs


def read_columns(path: Path) -> dict[str, Column]:
    """The figures of a metrics.jsonl by metric, [N] each, sorted by step, NaN where a step has
    none. A last line that is not whole is left out. Raises InputError."""
    name = printable(path)
    try:
        lines = path.read_bytes().splitlines(keepends=True)
    except OSError as error:
        raise InputError(f"{name}: cannot be read ({reason_of(error)}).") from None
    if lines and not lines[-1].endswith(b"\n"):
        lines.pop()  # being written, or of a process that was killed
    steps: dict[int, dict[str, float]] = {}
    for number, line in enumerate(lines, 1):
        try:
            row = json.loads(line)
            figures = {key: float(x) for key, x in row.items() if type(x) in (int, float)}
            steps.setdefault(int(figures["step"]), {}).update(figures)
        except (ValueError, KeyError, AttributeError, OverflowError, RecursionError):
            raise InputError(
                f"{name}: is damaged: line {number:,} is no JSON object with a step."
            ) from None
    rows = [steps[step] for step in sorted(steps)]
    metrics = dict.fromkeys(metric for row in rows for metric in row)
    if not metrics.keys() - {"step"}:
        raise InputError(f"{name}: has no figures yet; training writes them as it goes.")
    return {metric: np.array([row.get(metric, np.nan) for row in rows]) for metric in metrics}


def _axis(path: Path, columns: dict[str, Column], axis: str) -> Column:
    """Where each logged step [N] lies on the horizontal axis."""
    steps = columns["step"]
    if axis == "steps":
        return steps
    settings = path.with_name("config.yaml")
    if not settings.exists():
        raise InputError(f"{printable(settings)}: is missing, which --x {axis} is computed from.")
    config = load_config(settings)
    samples = steps * (config.train.batch * config.data.window)
    if axis == "samples":
        return samples
    rate = columns.get("samples_per_second", np.zeros(len(steps)))
    known = rate > 0
    if not known.any():
        raise InputError(f"{printable(path)}: has no samples_per_second, which tells the hours.")
    rate = np.interp(steps, steps[known], rate[known])
    hours: Column = np.cumsum(np.diff(samples, prepend=0.0) / rate) / 3600
    return hours


def _find(run: str) -> Path:
    for path in (Path(run), Path(run, _METRICS), _RUNS / run / _METRICS):
        if path.is_file():
            return path
    if Path(run).exists():
        what = "has" if Path(run).is_dir() else "is"
        raise InputError(
            f"{printable(run)}: {what} no {_METRICS}; a run has one as soon as it trains."
        )
    there = [path.parent.name for path in _RUNS.glob(f"*/{_METRICS}")]
    near = difflib.get_close_matches(run, there, n=1)
    hint = f"did you mean {near[0]}?" if near else "a run is a folder, or its name below runs/."
    raise InputError(f"{printable(run)}: there is no such run; {hint}")


def _names(paths: Sequence[Path]) -> list[str]:
    """The runs' folders; where two have one name, what leads to them too."""
    names = [path.resolve().parent.name for path in paths]
    return [
        printable(name if names.count(name) == 1 else path.parent)
        for name, path in zip(names, paths, strict=True)
    ]


def _defaults(path: Path) -> dict[str, Any]:
    values = read_mapping(path)
    return parse(PlotConfig, values, str(path)).model_dump(exclude_unset=True)


def _outputs(plan: PlotConfig, names: Sequence[str]) -> list[Path]:
    default = f"{names[0] if len(names) == 1 else 'runs'}.png"
    outputs = list(dict.fromkeys(map(Path, plan.output or [default])))
    for path in outputs:
        if path.suffix.lower().lstrip(".") not in FORMATS:
            raise UsageError(
                f"{printable(path)}: the format {path.suffix or '(no suffix)'!r} cannot be "
                f"drawn; allowed are {', '.join(FORMATS)}."
            )
        if path.is_dir():
            raise UsageError(f"{printable(path)}: is a folder.")
        if os.path.lexists(path) and not plan.overwrite:
            raise UsageError(f"{printable(path)}: exists; --overwrite replaces it.")
    return outputs


def _write(figure: Figure, outputs: Sequence[Path]) -> None:
    """Every output beside its place, then all of them renamed."""
    beside: dict[Path, Path] = {}
    try:
        for path in outputs:
            kind = path.suffix.lower().lstrip(".")
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                beside[path] = path.with_name(f".vconv-{secrets.token_hex(8)}.{kind}")
                figure.savefig(beside[path], format=kind, metadata=_METADATA.get(kind))
            except OSError as error:
                raise UsageError(
                    f"{printable(path)}: cannot be written ({reason_of(error)})."
                ) from None
        for path, partial in beside.items():
            os.replace(partial, path)
    finally:
        for partial in beside.values():
            partial.unlink(missing_ok=True)
