"""A bar on a terminal for work that is counted, such as recordings."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def drawn_bar(wanted: bool) -> Iterator[Callable[[str, int, int], None]]:
    """A callback (phase, total, done) that draws a bar on stderr, or nothing."""
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
    )

    console = Console(stderr=True)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    )
    drawn = wanted and sys.stderr.isatty()
    with Progress(*columns, console=console, transient=True, disable=not drawn) as bar:
        tasks: dict[str, Any] = {}

        def advance(phase: str, total: int, done: int) -> None:
            if phase not in tasks:
                tasks[phase] = bar.add_task(phase)
            bar.update(tasks[phase], total=total, completed=done)

        yield advance
