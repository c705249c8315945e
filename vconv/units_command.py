"""The commands ``vconv encode`` and ``vconv decode``: recordings to files of units, and back."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from .batch import SUFFIXES, Job, output_format, plan_jobs
from .converter import Converter, load
from .errors import InputError, UsageError
from .interruption import Interruption
from .job_files import (
    Handling,
    Report,
    progress_of,
    refuse_contradictions,
    run_jobs,
    source_of,
    target_name,
    target_of,
)
from .loudness import Level
from .messages import log_on_stderr
from .pitch import checked_semitones
from .reading import printable
from .results import Units
from .units_file import SUFFIX, bits_per_unit


@dataclass(frozen=True)
class Encoding:
    """The options of ``vconv encode``, as typed."""

    model: str
    device: str
    channel: int | None
    allow_truncated: bool
    max_duration: float | None
    recursive: bool
    handling: Handling


@dataclass(frozen=True)
class Decoding:
    """The options of ``vconv decode``, as typed."""

    model: str
    device: str
    engine: str
    precision: str
    speaker: str
    seed: int
    temperature: float
    pitch: float
    level: str
    format_name: str | None
    sample_rate: int | None
    recursive: bool
    handling: Handling


def encode_all(
    inputs: Sequence[str],
    output: str | None,
    options: Encoding,
    report_error: Callable[[Exception], int],
    interruption: Interruption,
) -> int:
    """Write the units of every recording, going on past those that fail; see ``run_jobs``."""
    refuse_contradictions(inputs, output, options.handling, "units")
    if Path(output or "").suffix.lower() in SUFFIXES:
        raise UsageError(
            f"{printable(output or '')}: is a recording's name; units go to a {SUFFIX} file."
        )
    with (
        log_on_stderr(_log_level(options.handling)),
        load(options.model, device=options.device) as converter,
    ):
        jobs = plan_jobs(
            inputs,
            output,
            speaker=None,
            format_name=SUFFIX[1:],
            recursive=options.recursive,
        )

        def work(job: Job) -> Report:
            return _encode(converter, job, options, interruption)

        return run_jobs(jobs, work, options.handling, report_error, "encoded")


def decode_all(
    inputs: Sequence[str],
    output: str | None,
    options: Decoding,
    report_error: Callable[[Exception], int],
    interruption: Interruption,
) -> int:
    """Say every file of units, going on past those that fail; see ``run_jobs``."""
    refuse_contradictions(inputs, output, options.handling, "the recording")
    format_name = output_format(options.format_name, output)
    with (
        log_on_stderr(_log_level(options.handling)),
        load(
            options.model,
            device=options.device,
            engine=options.engine,
            precision=options.precision,
        ) as converter,
    ):
        speaker = converter.speakers.label(converter.speakers.resolve(options.speaker))
        checked_semitones(options.pitch, converter.info)
        jobs = plan_jobs(
            inputs,
            output,
            speaker=speaker,
            format_name=format_name,
            recursive=options.recursive,
            kind=f"{SUFFIX} files",
            suffixes=[SUFFIX],
        )

        def work(job: Job) -> Report:
            return _decode(converter, job, options, format_name, interruption)

        return run_jobs(jobs, work, options.handling, report_error, "decoded")


def _encode(
    converter: Converter, job: Job, options: Encoding, interruption: Interruption
) -> Report:
    with (
        source_of(job, "a recording") as source,
        target_of(job, SUFFIX) as target,
        progress_of(job, options.handling, interruption) as advance,
    ):
        units = converter.encode(
            source,
            channel=options.channel,
            allow_truncated=options.allow_truncated,
            max_seconds=options.max_duration,
            progress=advance,
        )
        units.save(target)
        size = target.stat().st_size
    numbers = units.latents if units.codes is None else units.codes
    assert numbers is not None
    width = 0 if units.latents is None else units.latents.shape[1]
    model = converter.units_model
    bits = bits_per_unit(model.codebook_size, width, units.pitch is not None)
    rate = bits * model.unit_rate
    row = {
        "input": job.name,
        "output": target_name(job),
        "units": len(numbers),
        "seconds": round(units.seconds, 6),
        "bits_per_second": rate,
        "bytes": size,
    }
    line = (
        f"{job.name} -> {target_name(job)}, {units.seconds:.2f} s in {len(numbers):,} units, "
        f"{rate:,g} bit/s ({size:,} bytes)"
    )
    return Report(row, line)


def _decode(
    converter: Converter,
    job: Job,
    options: Decoding,
    format_name: str,
    interruption: Interruption,
) -> Report:
    with source_of(job, "a file of units") as source:
        units = Units.load(source)
    try:
        converter.check_units(units)
    except UsageError as error:  # of a file, that is what it holds
        raise InputError(f"{job.name}: {error}") from None
    with (
        target_of(job, f".{format_name}") as target,
        progress_of(job, options.handling, interruption) as advance,
    ):
        made = converter.decode_to_file(
            units,
            target,
            speaker=options.speaker,
            seed=options.seed,
            temperature=options.temperature,
            pitch=options.pitch,
            level=cast(Level, options.level),
            output_sample_rate=options.sample_rate,
            progress=advance,
        )
    row = {
        "input": job.name,
        "output": target_name(job),
        "speaker": made.speaker,
        "seed": options.seed,
        "sample_rate": made.sample_rate,
        "samples": made.samples,
        "seconds": round(made.seconds, 6),
        "elapsed_seconds": round(made.elapsed_seconds, 3),
        "real_time_factor": round(made.real_time_factor, 3),
    }
    line = (
        f"{job.name} -> {target_name(job)} ({printable(made.speaker)}), {made.seconds:.2f} s in "
        f"{made.elapsed_seconds:.2f} s, {made.real_time_factor:.1f} times real time"
    )
    return Report(row, line)


def _log_level(handling: Handling) -> int:
    return logging.DEBUG if handling.verbose else logging.WARNING
