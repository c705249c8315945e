"""What commands over many files share: going through the jobs, stdin and stdout, a bar."""

from __future__ import annotations

import contextlib
import io
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from .batch import Job
from .errors import InputError, UsageError
from .interruption import Interruption
from .messages import emit, say, to_stdout
from .reading import printable

Advance = Callable[[float, "float | None"], None]
"""Told the seconds done and the seconds in all."""


@dataclass(frozen=True)
class Handling:
    """How a command treats files that exist, and what it prints; as typed."""

    overwrite: bool
    skip_existing: bool
    as_json: bool
    quiet: bool
    verbose: bool


class Report(NamedTuple):
    """What is said of a job that is done: an object of JSON, and a line for people."""

    row: dict[str, Any]
    line: str


def refuse_contradictions(
    inputs: Sequence[str], output: str | None, handling: Handling, what: str
) -> None:
    """UsageError for options that cannot be meant; ``what`` an output is called."""
    if handling.overwrite and handling.skip_existing:
        raise UsageError("--overwrite and --skip-existing contradict each other.")
    if handling.quiet and handling.verbose:
        raise UsageError("--quiet and --verbose contradict each other.")
    to_stdout = output == "-" or (output is None and list(inputs) == ["-"])
    if to_stdout and handling.as_json:
        raise UsageError(f"--json and {what} cannot both go to stdout; name an --output.")
    if to_stdout and sys.stdout.isatty():
        raise UsageError(f"A terminal cannot show {what}; name an --output.")


def run_jobs(
    jobs: Sequence[Job],
    work: Callable[[Job], Report],
    handling: Handling,
    report_error: Callable[[Exception], int],
    done: str,
) -> int:
    """Do every job, going on past those that fail; ``done`` is what they are then, in a word.

    Returns 0; the failure's own code if there was a single job; else 1 if any failed.
    """

    def tell(row: dict[str, Any]) -> None:
        if handling.as_json:
            emit(json.dumps(row))

    codes = []
    skipped = 0
    for job in jobs:
        if job.exists and handling.skip_existing:
            skipped += 1
            tell({"input": job.name, "output": target_name(job), "outcome": "skipped"})
            continue
        try:
            _refuse_problem(job, handling)
            report = work(job)
        except Exception as error:
            codes.append(report_error(error))
            tell({"input": job.name, "error": str(error), "exit_code": codes[-1]})
        else:
            codes.append(0)
            tell(report.row)
            if not handling.quiet:
                say(report.line)
    failed = sum(code != 0 for code in codes)
    if len(jobs) > 1 and (failed or not handling.quiet):
        passed = f", {skipped:,} skipped" if skipped else ""
        say(f"{len(codes) - failed:,} {done}, {failed:,} failed{passed}")
    if len(jobs) == 1:
        return codes[0] if codes else 0
    return 1 if failed else 0


def target_name(job: Job) -> str:
    """The output as it is printed."""
    return "<stdout>" if job.target is None else printable(job.target)


@contextlib.contextmanager
def source_of(job: Job, what: str, stdin: io.RawIOBase | None = None) -> Iterator[Path | BinaryIO]:
    """A job's input: its path, or stdin as a file that can be rewound, on disk rather than in
    memory. ``what`` should come from there."""
    if job.source is not None:
        yield job.source
        return
    with tempfile.TemporaryFile() as spool:
        shutil.copyfileobj(stdin or stdin_of(what), spool)
        spool.flush()
        raw = io.FileIO(os.dup(spool.fileno()), "rb")
    raw.name = "<stdin>"  # what errors call it
    raw.seek(0)
    with io.BufferedReader(raw) as file:
        yield file


def stdin_of(what: str) -> BinaryIO:
    """Stdin, unless a person sits there; ``what`` should come from it."""
    if sys.stdin is None or sys.stdin.isatty():
        raise InputError(f"<stdin>: is a terminal; pipe {what} into it.")
    return sys.stdin.buffer


@contextlib.contextmanager
def target_of(job: Job, suffix: str) -> Iterator[Path]:
    """Where a job's output is to be written, its folder made; what is written for stdout goes there
    when the block ends without an error."""
    if job.target is not None:
        try:
            job.target.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            name = printable(job.target.parent)
            raise UsageError(f"{name}: cannot be made ({error.strerror}).") from None
        yield job.target
        return
    with tempfile.TemporaryDirectory(prefix="vconv-") as folder:
        target = Path(folder) / f"stdout{suffix}"
        yield target
        with target.open("rb") as file, to_stdout():
            shutil.copyfileobj(file, sys.stdout.buffer)


@contextlib.contextmanager
def progress_of(job: Job, handling: Handling, interruption: Interruption) -> Iterator[Advance]:
    """A bar on stderr that vanishes with the file, and is not there when stderr is no terminal.

    A signal is noted, and obeyed when the bar is moved next.
    """
    console = Console(stderr=True)
    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.completed:.1f} s"),
        TimeRemainingColumn(),
        console=console,
        transient=True,
        disable=handling.quiet or not console.is_terminal,
    )
    task = bar.add_task(escape(job.name), total=None)

    def advance(done: float, total: float | None) -> None:
        interruption.leave_if_told()
        bar.update(task, completed=done, total=total)

    with bar, interruption.deferred():
        yield advance


def _refuse_problem(job: Job, handling: Handling) -> None:
    if job.problem is not None:
        raise UsageError(f"{job.name}: {job.problem}")
    if job.exists and not handling.overwrite:
        raise UsageError(
            f"{job.name}: its output {target_name(job)} exists; --overwrite replaces it, "
            "--skip-existing passes over it."
        )
