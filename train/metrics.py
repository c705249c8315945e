"""The run's diary: ``metrics.jsonl`` and TensorBoard, both cut back to the step resumed from."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from .checkpoint import sync


class Diary:
    """Appends a line of figures per step logged; a context manager.

    board: the TensorBoard writer, for what is no figure (``samples.show``).
    """

    def __init__(self, run: Path, step: int) -> None:
        """``step``: where training goes on; figures of later steps are removed."""
        from torch.utils.tensorboard.writer import SummaryWriter

        self.path = run / "metrics.jsonl"
        _cut_back(self.path, step)
        self._file = self.path.open("a", encoding="utf-8")
        # Events of later steps, left by a killed process, are hidden by purge_step.
        self.board = SummaryWriter(str(run / "tb"), purge_step=step + 1)

    def __enter__(self) -> Diary:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            self._file.close()
        finally:
            self.board.close()

    def write(
        self,
        step: int,
        figures: Mapping[str, float],
        vectors: Mapping[str, Sequence[float]] | None = None,
    ) -> None:
        """Log figures, and vectors (a value for each dimension): lists in metrics.jsonl,
        histograms in TensorBoard."""
        vectors = vectors or {}
        lists = {name: [float(f"{x:.4g}") for x in values] for name, values in vectors.items()}
        self._file.write(json.dumps({"step": step, **_rounded(figures), **lists}) + "\n")
        self._file.flush()
        for name, value in figures.items():
            self.board.add_scalar(name, value, step)
        for name, values in vectors.items():
            self.board.add_histogram(name, np.asarray(values), step)

    def sync(self) -> None:
        """Make what is written so far outlast a loss of power; before a checkpoint."""
        os.fsync(self._file.fileno())
        # The file may be new, or have taken another's place at a resume.
        sync(self.path.parent)
        self.board.flush()


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """All whole lines of a metrics.jsonl, in order."""
    rows = []
    with path.open(encoding="utf-8", errors="replace") as file:
        for line in file:
            # A killed process may leave half a line, a loss of power anything after the last sync.
            with suppress(ValueError):
                row = json.loads(line) if line.endswith("\n") else None
                if isinstance(row, dict) and "step" in row:
                    rows.append(row)
    return rows


def _cut_back(path: Path, step: int) -> None:
    if not path.exists():
        return
    kept = [row for row in read_metrics(path) if row["step"] <= step]
    beside = path.with_suffix(".partial")
    with beside.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(row) + "\n" for row in kept)
        file.flush()
        os.fsync(file.fileno())  # or the rename may outlast the rows
    beside.replace(path)


def _rounded(figures: Mapping[str, float]) -> dict[str, float]:
    return {name: float(f"{value:.7g}") for name, value in figures.items()}
