"""The command ``vconv convert``: one model, many files, one line each."""

from __future__ import annotations

import contextlib
import logging
import sys
from collections.abc import Callable, Sequence

from .attempt import Options, exists_error
from .batch import Job, Shard, output_format, plan_jobs, same_folder
from .batch_output import Report
from .converter import Converter, load
from .errors import UsageError
from .inputs import checked_rate
from .interruption import Interruption
from .job_files import (
    Handling,
    progress_of,
    refuse_contradictions,
    source_of,
    stdin_of,
    target_of,
)
from .lanes import checked_lanes, usable_cores
from .library_noise import libraries_silenced
from .many_files import convert_jobs
from .messages import log_on_stderr, say
from .pipe import convert_live, headerless, needs_the_whole, peeked
from .pitch import checked_semitones
from .pool import Pool, Threads
from .reading import printable
from .record import Record
from .results import WrittenFile
from .wave_stream import Peeked

MAX_JOBS = 1024
_JOBS_ON_A_GPU = 16  # their lanes are generated together

__all__ = ["Options", "convert_all"]


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
    handling = Handling(
        options.overwrite, options.skip_existing, options.as_json, options.quiet, options.verbose
    )
    refuse_contradictions(inputs, output, handling, "the recording")
    count, shard = _refuse_more(inputs, output, options)
    format_name = output_format(options.format_name, output)
    level = logging.DEBUG if options.verbose else logging.WARNING
    with contextlib.ExitStack() as stack:
        stack.enter_context(libraries_silenced())
        stack.enter_context(log_on_stderr(level))
        converter = stack.enter_context(
            load(
                options.model,
                device=options.device,
                engine=options.engine,
                precision=options.precision,
            )
        )
        speaker = converter.speakers.label(converter.speakers.resolve(options.speaker))
        checked_semitones(options.pitch, converter.info)
        checked_lanes(options.lanes)
        record = None
        if options.record is not None:
            record = stack.enter_context(Record(options.record))
        jobs = plan_jobs(
            inputs,
            output,
            speaker=speaker,
            format_name=format_name,
            recursive=options.recursive,
            made_of=None if record is None else record.made_of,
        )
        in_all = len(jobs)
        if shard is not None:
            _refuse_shared_folder(jobs, output)
            jobs = [job for job in jobs if job in shard]
        report = Report(jobs, options, report_error, all_jobs=in_all)
        if not jobs:
            if not options.quiet:
                say(f"shard {options.shard}: none of the {in_all:,} inputs is its; nothing to do")
            return 0
        if record is not None:
            record.refuse_jobs(jobs)
            record.begin(_settings(converter, speaker, format_name, options))
            record.clear_away(jobs)
        if jobs[0].source_path is None or jobs[0].target_path is None:
            _convert_pipe(converter, jobs[0], options, handling, report, interruption)
        else:
            pool = _pool(converter, options, count, len(jobs))
            convert_jobs(jobs, pool, options, report, record, interruption)
        return report.sum_up()


def _refuse_more(
    inputs: Sequence[str], output: str | None, options: Options
) -> tuple[int | None, Shard | None]:
    """UsageError for what does not go together; the jobs at a time, None for auto, and the
    shard."""
    count = None
    if options.jobs != "auto":
        digits = options.jobs if options.jobs.isascii() and options.jobs.isdigit() else "0"
        count = int(digits[:9])
        if not 1 <= count <= MAX_JOBS:
            raise UsageError(f"--jobs must be auto or 1 to {MAX_JOBS:,}, found {options.jobs!r}.")
    shard = None if options.shard is None else Shard.parse(options.shard)
    for name, given in (
        ("--record", options.record is not None),
        ("--shard", shard is not None),
        ("--ray", options.ray is not None),
    ):
        if given and "-" in inputs:
            raise UsageError(f"{name} is for files, not for stdin.")
        if given and output == "-":
            raise UsageError(f"{name} is for files, not for stdout.")
    if options.ray is not None and options.device not in ("auto", "cpu"):
        raise UsageError(
            f"--ray converts on processors, not on {options.device!r}; leave one of them out."
        )
    if options.raw:
        if list(inputs) != ["-"] or output not in (None, "-"):
            raise UsageError("--raw is for stdin and stdout.")
        if options.sample_rate is None:
            raise UsageError("--raw needs --sample-rate, the rate of the samples in Hz.")
        if _needs_the_whole(options):
            raise UsageError("--raw converts as it comes: without --lanes, --level and --format.")
    return count, shard


def _needs_the_whole(options: Options) -> bool:
    return needs_the_whole(
        lanes=options.lanes,
        level=options.level,
        format_name=output_format(options.format_name, "-"),
    )


def _refuse_shared_folder(jobs: Sequence[Job], output: str | None) -> None:
    """UsageError where a shard would take another's outputs for inputs."""
    for root in {job.root for job in jobs} - {None}:
        if output is not None and root is not None and same_folder(root, output):
            raise UsageError(
                f"{printable(output)}: is the input folder itself; with --shard choose another "
                "output, or none."
            )


def _settings(
    converter: Converter, speaker: str, format_name: str, options: Options
) -> dict[str, object]:
    """What a record says of every file: all that the bytes depend on, but for the kind of
    processor."""
    # A record compares what was asked for: lanes of auto follow from the recording.
    asked = {**options.conversion(), "speaker": speaker}
    cpu = options.device in ("auto", "cpu")
    return {
        "model": {"name": converter.info.name, "digest": converter.info.digest},
        "options": {
            **asked,
            "format": format_name,
            "device": "cpu" if cpu else options.device,
            "engine": converter.engine,
            "precision": converter.precision,
        },
    }


def _pool(converter: Converter, options: Options, count: int | None, files: int) -> Pool:
    if options.ray is not None:
        from .cluster import Cluster

        return Cluster(options.ray, converter, options, count, files)
    if count is None:
        if options.device not in ("auto", "cpu"):
            count = _JOBS_ON_A_GPU
        else:  # other engines have threads of their own
            count = usable_cores() if converter.engine == "native" else 1
    return Threads(converter, options, min(count, files))


def _convert_pipe(
    converter: Converter,
    job: Job,
    options: Options,
    handling: Handling,
    report: Report,
    interruption: Interruption,
) -> None:
    """The one job from stdin or to stdout, in this thread."""
    if job.exists and options.skip_existing:
        report.passed(job, "skipped")
        return
    try:
        report.converted(job, _piped(converter, job, options, handling, interruption))
    except Exception as error:
        report.failed(job, error)


def _piped(
    converter: Converter,
    job: Job,
    options: Options,
    handling: Handling,
    interruption: Interruption,
) -> WrittenFile:
    if job.problem is not None:
        raise UsageError(f"{job.name}: {job.problem}")
    if job.exists and not options.overwrite:
        raise exists_error(job.name, job.target_path or "", "its output {} exists")
    stdin: Peeked | None = None
    if job.source_path is None and job.target_path is None and not _needs_the_whole(options):
        found = stdin_of("a recording")
        raw_rate = checked_rate(options.sample_rate or 0) if options.raw else None
        stdin = peeked(found) if raw_rate is None else headerless(found, raw_rate)
        if stdin.layout is not None:
            # Not deferred: a signal must end the waiting for the next sound.
            asked = options.conversion()
            del asked["lanes"], asked["level"]
            asked["output_rate"] = asked.pop("output_sample_rate")
            return convert_live(converter, stdin, sys.stdout.buffer, raw=options.raw, **asked)
    suffix = f".{output_format(options.format_name, '-')}"
    with (
        source_of(job, "a recording", stdin) as source,
        target_of(job, suffix) as target,
        progress_of(job, handling, interruption) as advance,
    ):
        return converter.convert_to_file(source, target, **options.conversion(), progress=advance)
