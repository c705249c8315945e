"""Which input becomes which output: files, folders and pipes, planned before any is converted."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from .audio import FORMATS
from .errors import InputError, UsageError
from .reading import printable

# What in a folder is taken for a recording; a file that is named is tried whatever its name.
# Those that libsndfile cannot read are among them: better refused by name than passed over.
_KINDS = "aac aif aifc aiff au caf flac m4a mp3 oga ogg opus rf64 snd w64 wav webm wma"
SUFFIXES = frozenset(f".{kind}" for kind in _KINDS.split())
_Identity = tuple[int, int]


@dataclass(frozen=True)
class Job:
    """One conversion. None stands for stdin or stdout.

    ``problem``: why it cannot be done; ``exists``: whether something is at the target already.
    """

    source: Path | None
    target: Path | None
    problem: str | None = None
    exists: bool = False

    @property
    def name(self) -> str:
        """The input as it is printed."""
        return "<stdin>" if self.source is None else printable(self.source)


def output_format(format_name: str | None, output: str | None) -> str:
    """The output's format: as asked, else as the output file's suffix says, else wav."""
    suffix = Path(output or "").suffix.lower()[1:]
    if format_name is None:
        return suffix if suffix in FORMATS else "wav"
    if format_name not in FORMATS:
        raise UsageError(f"--format {format_name}: allowed are {', '.join(FORMATS)}.")
    if suffix in FORMATS and suffix != format_name:
        raise UsageError(
            f"--format {format_name} contradicts the output {printable(output or '')}."
        )
    return format_name


def plan_jobs(
    inputs: Sequence[str],
    output: str | None,
    *,
    speaker: str,
    format_name: str,
    recursive: bool = False,
) -> list[Job]:
    """The conversions that the inputs and the output of a command ask for.

    One file goes to ``output``, or into it if it is a folder; several, or a folder's, go into it
    under their own names, a folder's tree mirrored. Without an output, the input's neighbour
    ``<stem>.<speaker>.<format>``. Raises UsageError for a combination that makes no sense,
    InputError for folders without a recording.
    """
    sources = list(_sources(inputs, recursive))
    several = len(inputs) > 1 or any(os.path.isdir(name) for name in inputs)
    if "-" in inputs and len(inputs) > 1:
        raise UsageError("The input - (stdin) stands alone.")
    if output == "-" and several:
        raise UsageError("The output - (stdout) takes a single input.")
    if not sources:
        deeper = "" if recursive else " (-r looks into sub-folders too)"
        raise InputError(f"{printable(inputs[0])}: contains no recordings{deeper}.")
    if inputs == ["-"] and output is None:
        output = "-"
    jobs = []
    for source, root in sources:
        target = _target(source, root, output, several, _file_part(speaker), format_name)
        jobs.append(Job(source, target))
    if output is None:  # what an earlier run put beside its inputs is no input
        made = {job.target for job in jobs}
        named = set(inputs)
        jobs = [job for job in jobs if job.source not in made or str(job.source) in named]
    return list(_checked(jobs))


def _sources(inputs: Iterable[str], recursive: bool) -> Iterator[tuple[Path | None, Path | None]]:
    """(file, the folder it was found under) of every input."""
    for name in inputs:
        if name == "-":
            yield None, None
        elif not os.path.isdir(name):
            yield Path(name), None
        else:
            for folder, folders, files in os.walk(name):
                folders[:] = sorted(folders) if recursive else []
                for file in sorted(files):
                    path = Path(folder, file)
                    if path.suffix.lower() in SUFFIXES and not file.startswith("."):
                        yield path, Path(name)


def _target(
    source: Path | None,
    root: Path | None,
    output: str | None,
    several: bool,
    speaker: str,
    format_name: str,
) -> Path | None:
    if output == "-":
        return None
    stem = "stdin" if source is None else source.stem
    if output is None:
        assert source is not None
        return source.with_name(f"{stem}.{speaker}.{format_name}")
    folder = Path(output)
    if several and folder.exists() and not folder.is_dir():
        raise UsageError(f"{printable(folder)}: is no folder; several outputs need one.")
    if not several and not folder.is_dir() and not output.endswith(("/", os.sep)):
        return folder
    if root is not None and source is not None:
        folder = folder / source.relative_to(root).parent
    return folder / f"{stem}.{format_name}"


def _checked(jobs: Sequence[Job]) -> Iterator[Job]:
    """The jobs, with the problem of those that would destroy an input or another's output."""
    inputs = {_identity(job.source) for job in jobs if job.source is not None} - {None}
    taken: dict[Path, Job] = {}
    for job in jobs:
        problem = None
        if job.target is not None:
            name = printable(job.target)
            if job.target in taken:
                problem = f"its output {name} is that of {taken[job.target].name} too."
            elif _identity(job.target) in inputs:
                problem = f"its output {name} is an input; choose another output."
            elif os.path.isdir(job.target):
                problem = f"its output {name} is a folder."
            taken.setdefault(job.target, job)
        exists = job.target is not None and os.path.lexists(job.target)
        yield replace(job, problem=problem, exists=exists)


def _identity(path: Path) -> _Identity | None:
    try:
        status = path.stat()
    except (OSError, ValueError):
        return None
    return status.st_dev, status.st_ino


def _file_part(label: str) -> str:
    """A speaker's label as a part of a file name: p225:0.7,p226:0.3 -> p225-0.7-p226-0.3."""
    return re.sub(r"[^\w.+-]+", "-", label).strip("-.") or "speaker"
