"""items.jsonl: a line for each row that is done, under a first line that says of what.

A line that was cut by an interruption is dropped, and its task done again.
"""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

from vconv.errors import SetupError, UsageError
from vconv.reading import printable

ITEMS = "items.jsonl"
Plan = Mapping[str, Any]


class Record:
    """The rows of a report's folder, by id; a context manager.

    Args:
        folder: of the report.
        plan: what is evaluated, and how; only the same plan is gone on with.
        overwrite: begin again where another was begun.

    Raises UsageError for another plan's folder, naming what differs.
    """

    def __init__(self, folder: Path, plan: Plan, *, overwrite: bool) -> None:
        path = folder / ITEMS
        before, self.rows = _read(path)
        if before is not None and before != plan:
            if not overwrite:
                keys = dict.fromkeys([*plan, *before])
                others = [key for key in keys if before.get(key) != plan.get(key)]
                raise UsageError(
                    f"{printable(folder)}: holds an evaluation with another "
                    f"{' and '.join(others)}; choose another folder, or say --overwrite."
                )
            self.rows = {}
        if before is None and path.exists() and path.stat().st_size and not overwrite:
            raise UsageError(
                f"{printable(path)}: is not what an evaluation left; choose another folder, or "
                "say --overwrite."
            )
        beside = path.with_name(ITEMS + ".partial")
        lines = [json.dumps(dict(plan)), *map(json.dumps, self.rows.values())]
        beside.write_text("".join(f"{line}\n" for line in lines), "ascii")
        os.replace(beside, path)
        self._file = path.open("a", encoding="ascii")

    def append(self, row: dict[str, Any]) -> None:
        """Keep a row; it has an id."""
        self.rows[row["id"]] = row
        self._file.write(json.dumps(row) + "\n")
        self._file.flush()

    def __enter__(self) -> Record:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            self._file.close()
        except OSError:
            if error is None:  # else a full disk has been told already
                raise


@contextmanager
def disk_told(folder: Path) -> Iterator[None]:
    """SetupError for a disk that is full or fails; what is recorded by then stands."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO):
            raise
        raise SetupError(
            f"{printable(folder)}: cannot be written ({error.strerror}); the same command goes on "
            "once it can."
        ) from None


def _read(path: Path) -> tuple[Plan | None, dict[str, dict[str, Any]]]:
    plan: Plan | None = None
    rows: dict[str, dict[str, Any]] = {}
    if not path.exists():
        return None, {}
    for line in path.read_text("ascii", "replace").splitlines():
        try:
            entry = json.loads(line)
            if plan is None:
                if "list" not in entry:
                    return None, {}
                plan = entry
            else:
                rows[entry["id"]] = entry
        except (ValueError, KeyError, TypeError, RecursionError):  # cut by the interruption
            break
    return plan, rows
