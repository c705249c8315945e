"""Training runs as they lie on the disk: plain JSON lines, WAV files and pictures; no torch."""

from __future__ import annotations

import json
import math
import re
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vconv.errors import InputError
from vconv.reading import printable

_METRICS = "metrics.jsonl"
_STEP = re.compile(r"step-\d{1,12}")
_FILE = re.compile(r"[\w.-]{1,160}\.(wav|png)")
_MAX_BYTES = 64_000_000
_LIVE_SECONDS = 180


@dataclass(frozen=True)
class Conversion:
    """A row of samples.json: source and result with their voices."""

    title: str
    source: str
    result: str
    seconds: float


def run_names(folder: Path) -> list[str]:
    """The runs below a folder that have figures, the one written last first."""
    try:
        found = [(path.stat().st_mtime, path.parent.name) for path in folder.glob(f"*/{_METRICS}")]
    except OSError:
        return []
    return [name for _, name in sorted(found, reverse=True)]


def find_run(folder: Path, name: str) -> Path | None:
    """A run by its name, which must be one of those listed."""
    return folder / name if name in run_names(folder) else None


def read_metrics(run: Path) -> dict[int, dict[str, float]]:
    """Figures by step; a line that is being written is left out. Raises InputError."""
    path = run / _METRICS
    try:
        if path.stat().st_size > _MAX_BYTES:
            raise InputError(f"{printable(run.name)}: its metrics.jsonl is too large to draw.")
        lines = path.read_bytes().splitlines(keepends=True)
    except OSError as error:
        raise InputError(f"{printable(run.name)}: cannot be read ({error.strerror}).") from None
    if lines and not lines[-1].endswith(b"\n"):
        lines.pop()
    steps: dict[int, dict[str, float]] = {}
    for number, line in enumerate(lines, 1):
        try:
            row = json.loads(line)
            figures = {
                key: float(value)
                for key, value in row.items()
                if type(value) in (int, float) and math.isfinite(value)
            }
            steps.setdefault(int(figures["step"]), {}).update(figures)
        except (ValueError, KeyError, AttributeError, RecursionError):
            raise InputError(
                f"{printable(run.name)}: line {number:,} of its metrics.jsonl is damaged."
            ) from None
    if not steps:
        raise InputError(f"{printable(run.name)}: has no figures yet; they come as it trains.")
    return dict(sorted(steps.items()))


def written_at(run: Path) -> float:
    """When the run wrote its last figures, in seconds since the epoch."""
    try:
        return (run / _METRICS).stat().st_mtime
    except OSError:
        return 0.0


def seconds_ago(run: Path) -> float:
    """How long ago that was."""
    return max(0.0, time.time() - written_at(run))


def is_live(run: Path) -> bool:
    """Whether it seems to be training: a process holds it, and has written lately."""
    return (run / "lock.json").exists() and seconds_ago(run) < _LIVE_SECONDS


def config_keys(run: Path) -> dict[str, Any]:
    """The run's configuration, or nothing where there is none."""
    import yaml

    try:
        values = yaml.safe_load((run / "config.yaml").read_text("utf-8"))
    except (OSError, ValueError, yaml.YAMLError):
        return {}
    return values if isinstance(values, dict) else {}


def checkpoints(run: Path) -> list[int]:
    """The steps of which a checkpoint is there."""
    found = (run / "checkpoints").glob("step-*")
    return sorted(int(path.name[5:]) for path in found if _STEP.fullmatch(path.name))


def sample_steps(run: Path) -> list[str]:
    """The folders of sample conversions, the newest first."""
    found = (path.parent.name for path in (run / "samples").glob("step-*/samples.json"))
    return sorted((name for name in found if _STEP.fullmatch(name)), reverse=True)


def conversions(run: Path, step: str) -> list[Conversion]:
    """What is to be heard of a step; rows that are not as they should be are left out."""
    try:
        facts = json.loads((run / "samples" / step / "samples.json").read_text("utf-8"))
        rows = facts["conversions"]
    except (OSError, ValueError, KeyError, TypeError):
        return []
    made = []
    for row in rows if isinstance(rows, list) else []:
        try:
            who = [str(row[which]["speaker"]) for which in ("source", "result")]
            title = f"{who[0]} as {who[1]}" if who[0] != who[1] else f"{who[0]}, copied"
            files = row["files"]
            made.append(
                Conversion(
                    title,
                    str(files["source"]),
                    str(files["result"]),
                    float(row["result"]["seconds"]),
                )
            )
        except (KeyError, TypeError, ValueError):
            continue
    return made


def sample_file(run: Path, step: str, name: str) -> Path | None:
    """A file of a step's samples, if there is one of this name in that very folder."""
    if not _STEP.fullmatch(step) or not _FILE.fullmatch(name) or name.startswith("."):
        return None
    folder = (run / "samples" / step).resolve()
    path = (folder / name).resolve()
    return path if path.parent == folder and path.is_file() else None
