"""The command ``vconv convert``: one model, many files, one line each."""

from __future__ import annotations

import contextlib
import io
import json
import logging
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, cast

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from .batch import Job, output_format, plan_jobs
from .converter import Converter, load
from .errors import InputError, UsageError
from .interruption import Interruption
from .lanes import checked_lanes
from .loudness import Level
from .messages import emit, log_on_stderr, say, to_stdout
from .pitch import checked_semitones
from .reading import printable
from .results import WrittenFile

if TYPE_CHECKING:
    from collections.abc import Callable


@dataclass(frozen=True)
class Options:
    """The command's options, as typed."""

    model: str
    device: str
    engine: str
    precision: str
    speaker: str
    seed: int
    temperature: float
    pitch: float
    lanes: str
    level: str
    format_name: str | None
    sample_rate: int | None
    channel: int | None
    allow_truncated: bool
    max_duration: float | None
    recursive: bool
    overwrite: bool
    skip_existing: bool
    as_json: bool
    quiet: bool
    verbose: bool


def convert_all(
    inputs: Sequence[str],
    output: str | None,
    options: Options,
    report_error: Callable[[Exception], int],
    interruption: Interruption,
) -> int:
    """Convert every input, going on past those that fail.

    Returns 0; the failure's own code if there was a single input; else 1 if any failed.
    """
    _refuse_contradictions(inputs, output, options)
    format_name = output_format(options.format_name, output)
    level = logging.DEBUG if options.verbose else logging.WARNING
    with (
        log_on_stderr(level),
        load(
            options.model,
            device=options.device,
            engine=options.engine,
            precision=options.precision,
        ) as converter,
    ):
        speaker = converter.speakers.label(converter.speakers.resolve(options.speaker))
        checked_semitones(options.pitch, converter.info)
        checked_lanes(options.lanes)
        jobs = plan_jobs(
            inputs,
            output,
            speaker=speaker,
            format_name=format_name,
            recursive=options.recursive,
        )
        codes = []
        skipped = 0
        for job in jobs:
            if job.exists and options.skip_existing:
                skipped += 1
                continue
            try:
                made = _convert(converter, job, options, interruption)
            except Exception as error:
                codes.append(report_error(error))
                if options.as_json:
                    _emit_json({"input": job.name, "error": str(error), "exit_code": codes[-1]})
            else:
                codes.append(0)
                _tell(job, made, options)
    failed = sum(code != 0 for code in codes)
    if len(jobs) > 1 and (failed or not options.quiet):
        passed = f", {skipped:,} skipped" if skipped else ""
        say(f"{len(codes) - failed:,} converted, {failed:,} failed{passed}")
    if len(jobs) == 1:
        return codes[0] if codes else 0
    return 1 if failed else 0


def _refuse_contradictions(inputs: Sequence[str], output: str | None, options: Options) -> None:
    if options.overwrite and options.skip_existing:
        raise UsageError("--overwrite and --skip-existing contradict each other.")
    if options.quiet and options.verbose:
        raise UsageError("--quiet and --verbose contradict each other.")
    to_stdout = output == "-" or (output is None and list(inputs) == ["-"])
    if to_stdout and options.as_json:
        raise UsageError("--json and the recording cannot both go to stdout; name an --output.")
    if to_stdout and sys.stdout.isatty():
        raise UsageError("The recording is not printed on a terminal; name an --output.")


def _convert(
    converter: Converter, job: Job, options: Options, interruption: Interruption
) -> WrittenFile:
    if job.problem is not None:
        raise UsageError(f"{job.name}: {job.problem}")
    if job.exists and not options.overwrite:
        assert job.target is not None
        raise UsageError(
            f"{job.name}: its output {printable(job.target)} exists; --overwrite replaces it, "
            "--skip-existing passes over it."
        )
    with contextlib.ExitStack() as stack:
        source = _stdin(stack) if job.source is None else job.source
        target = job.target
        if target is None:
            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="vconv-"))
            target = Path(folder) / f"stdout.{output_format(options.format_name, '-')}"
        else:
            _make_folder(target.parent)
        advance = stack.enter_context(_bar(job, options))

        def progress(done: float, total: float | None) -> None:
            interruption.leave_if_told()
            advance(done, total)

        with interruption.deferred():
            made = converter.convert_to_file(
                source,
                target,
                speaker=options.speaker,
                seed=options.seed,
                temperature=options.temperature,
                pitch=options.pitch,
                lanes=checked_lanes(options.lanes),
                level=cast(Level, options.level),
                output_sample_rate=options.sample_rate,
                channel=options.channel,
                allow_truncated=options.allow_truncated,
                max_seconds=options.max_duration,
                progress=progress,
            )
        if job.target is None:
            with target.open("rb") as file, to_stdout():
                shutil.copyfileobj(file, sys.stdout.buffer)
    return made


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"{printable(folder)}: cannot be made ({error.strerror}).") from None


def _stdin(stack: contextlib.ExitStack) -> BinaryIO:
    """Stdin as a file that can be rewound, on disk rather than in memory."""
    if sys.stdin is None or sys.stdin.isatty():
        raise InputError("<stdin>: is a terminal; pipe a recording into it.")
    with tempfile.TemporaryFile() as spool:
        shutil.copyfileobj(sys.stdin.buffer, spool)
        spool.flush()
        raw = io.FileIO(os.dup(spool.fileno()), "rb")
    raw.name = "<stdin>"  # what errors call it
    raw.seek(0)
    return stack.enter_context(io.BufferedReader(raw))


def _tell(job: Job, made: WrittenFile, options: Options) -> None:
    target = "<stdout>" if job.target is None else printable(job.target)
    if options.as_json:
        _emit_json(
            {
                "input": job.name,
                "output": target,
                "speaker": made.speaker,
                "seed": options.seed,
                "sample_rate": made.sample_rate,
                "samples": made.samples,
                "seconds": round(made.seconds, 6),
                "lanes": made.lanes,
                "elapsed_seconds": round(made.elapsed_seconds, 3),
                "real_time_factor": round(made.real_time_factor, 3),
            }
        )
    if not options.quiet:
        say(
            f"{job.name} -> {target} ({printable(made.speaker)}), {made.seconds:.2f} s in "
            f"{made.elapsed_seconds:.2f} s, {made.real_time_factor:.1f} times real time"
        )


@contextlib.contextmanager
def _bar(job: Job, options: Options) -> Iterator[Callable[[float, float | None], None]]:
    """A bar on stderr that vanishes with the file, and is not there when stderr is no terminal."""
    console = Console(stderr=True)
    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.completed:.1f} s"),
        TimeRemainingColumn(),
        console=console,
        transient=True,
        disable=options.quiet or not console.is_terminal,
    )
    task = bar.add_task(escape(job.name), total=None)

    def advance(done: float, total: float | None) -> None:
        bar.update(task, completed=done, total=total)

    with bar:
        yield advance


def _emit_json(row: dict[str, Any]) -> None:
    emit(json.dumps(row))
