"""Which input becomes which output: files, folders and pipes, planned before any is converted.

A plan may have hundreds of thousands of jobs, so a job is small: strings, no ``Path``.
"""

from __future__ import annotations

import hashlib
import os
import re
import stat
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from .audio import FORMATS
from .errors import InputError, UsageError
from .reading import printable

# What in a folder is taken for a recording; a file that is named is tried whatever its name.
# Those that libsndfile cannot read are among them: better refused by name than passed over.
_KINDS = "3gp aac aif aifc aiff au caf flac m4a m4b mka mp3 oga ogg opus rf64 snd w64 wav webm wma"
SUFFIXES = frozenset(f".{kind}" for kind in _KINDS.split())


@dataclass(slots=True)
class Job:
    """One conversion. None stands for stdin or stdout.

    ``root``: the folder that the input was found under, None for one that was named; ``size``: of
    the input, in bytes, 0 where unknown; ``problem``: why it cannot be done; ``exists``: whether
    something is at the target already.
    """

    source_path: str | None
    target_path: str | None
    root: str | None = None
    size: int = 0
    problem: str | None = None
    exists: bool = False

    @property
    def source(self) -> Path | None:
        """The input."""
        return None if self.source_path is None else Path(self.source_path)

    @property
    def target(self) -> Path | None:
        """The output."""
        return None if self.target_path is None else Path(self.target_path)

    @property
    def name(self) -> str:
        """The input as it is printed."""
        return "<stdin>" if self.source_path is None else printable(self.source_path)

    @property
    def place(self) -> str:
        """The input's path below its root, or as it was named."""
        assert self.source_path is not None
        if self.root is None:
            return self.source_path
        return os.path.relpath(self.source_path, self.root)


@dataclass(frozen=True)
class Shard:
    """Part ``number`` of ``count`` of the inputs, counted from 1.

    An input's part follows from its place alone, so that processes that list a folder at different
    times never miss a file between them nor take one twice.
    """

    number: int
    count: int

    @classmethod
    def parse(cls, text: str) -> Shard:
        """ "2/5"; UsageError for anything else."""
        found = re.fullmatch(r"(\d{1,9})/(\d{1,9})", text, re.ASCII)
        if found is None:
            raise UsageError(f"--shard {printable(text)}: expected I/N, such as 2/5.")
        number, count = map(int, found.groups())
        if not 1 <= number <= count:
            allowed = f"1 to {count}" if count else "1 or more"
            what = "the shard" if count else "the number of shards"
            raise UsageError(f"--shard {text}: {what} must be {allowed}.")
        return cls(number, count)

    def __contains__(self, job: Job) -> bool:
        place = os.fsencode(job.place.replace(os.sep, "/"))
        digest = hashlib.sha256(place).digest()
        return int.from_bytes(digest[:8], "big") % self.count == self.number - 1


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
    speaker: str | None,
    format_name: str,
    recursive: bool = False,
    kind: str = "recordings",
    suffixes: Collection[str] = SUFFIXES,
    made_of: Callable[[Sequence[Job]], Collection[str]] | None = None,
) -> list[Job]:
    """The conversions that the inputs and the output of a command ask for.

    One file goes to ``output``, or into it if it is a folder; several, or a folder's, go into it
    under their own names, a folder's tree mirrored. Without an output, the input's neighbour
    ``<stem>.<speaker>.<format>``, or without a speaker ``<stem>.<format>``. ``suffixes`` are those
    of what counts in a folder, and ``kind`` what that is called. ``made_of`` says which inputs of
    the jobs earlier runs made from others of them: these are none, unless named.

    Raises UsageError for a combination that makes no sense, InputError for folders without any.
    """
    sources = list(_sources(inputs, output, recursive, suffixes))
    several = len(inputs) > 1 or any(os.path.isdir(name) for name in inputs)
    if "-" in inputs and len(inputs) > 1:
        raise UsageError("The input - (stdin) stands alone.")
    if output == "-" and several:
        raise UsageError("The output - (stdout) takes a single input.")
    if not sources:
        deeper = "" if recursive else " (-r looks into sub-folders too)"
        raise InputError(f"{printable(inputs[0])}: contains no {kind}{deeper}.")
    if inputs == ["-"] and output is None:
        output = "-"
    beside = format_name if speaker is None else f"{_file_part(speaker)}.{format_name}"
    target = _targets(output, several, beside, format_name)
    jobs = [Job(source, target(source, root), root) for source, root in sources]
    del sources
    if output is None:  # what an earlier run put beside its inputs is no input
        made = {job.target_path for job in jobs}
        named = {_plain(name) for name in inputs}
        jobs = [job for job in jobs if job.source_path not in made or job.source_path in named]
    if made_of is not None:
        drop = made_of(jobs)
        jobs = [job for job in jobs if job.root is None or job.source_path not in drop]
    _check(jobs)
    return jobs


def _sources(
    inputs: Iterable[str], output: str | None, recursive: bool, suffixes: Collection[str]
) -> Iterator[tuple[str | None, str | None]]:
    """(file, the folder it was found under) of every input."""
    for name in inputs:
        if name == "-":
            yield None, None
        elif not os.path.isdir(name):
            yield _plain(name), None
        else:
            root = _plain(name)
            for folder, folders, files in os.walk(root):
                folders[:] = sorted(folders) if recursive else []
                if output is not None and folder != root and same_folder(folder, output):
                    folders[:] = files = []  # an earlier run's outputs are no inputs
                for file in sorted(files):
                    suffix = os.path.splitext(file)[1].lower()
                    if suffix in suffixes and not file.startswith("."):
                        yield _plain(os.path.join(folder, file)), root


def _targets(
    output: str | None, several: bool, beside: str, format_name: str
) -> Callable[[str | None, str | None], str | None]:
    """(file, the folder it was found under) -> its output, None for stdout."""
    if output == "-":
        return lambda source, root: None
    if output is None:

        def neighbour(source: str | None, root: str | None) -> str:
            assert source is not None
            return str(Path(source).with_name(f"{Path(source).stem}.{beside}"))

        return neighbour
    folder = Path(output)
    is_folder = os.path.isdir(output)  # which, unlike Path's, takes a name of any length
    if several and os.path.exists(output) and not is_folder:
        raise UsageError(f"{printable(folder)}: is no folder; several outputs need one.")
    if not several and not is_folder and not output.endswith(("/", os.sep)):
        return lambda source, root: str(folder)

    def inside(source: str | None, root: str | None) -> str:
        path = Path("stdin" if source is None else source)
        within = folder if root is None else folder / path.relative_to(root).parent
        return str(within / f"{path.stem}.{format_name}")

    return inside


def _check(jobs: Sequence[Job]) -> None:
    """Give the jobs their sizes, and a problem to those that would destroy an input or another's
    output."""
    inputs: dict[int, set[int]] = {}  # device -> inodes
    for job in jobs:
        status = None if job.source_path is None else _status(job.source_path)
        if status is not None:
            job.size = status.st_size
            inputs.setdefault(status.st_dev, set()).add(status.st_ino)
    taken: dict[str, Job] = {}
    for job in jobs:
        if job.target_path is None:
            continue
        first = taken.setdefault(job.target_path, job)
        if first is not job:
            job.problem = f"its output {printable(job.target_path)} is that of {first.name} too."
        job.exists = os.path.lexists(job.target_path)
        status = _status(job.target_path) if job.exists else None
        if status is None or job.problem is not None:
            continue
        if status.st_ino in inputs.get(status.st_dev, ()):
            job.problem = (
                f"its output {printable(job.target_path)} is an input; choose another output."
            )
        elif stat.S_ISDIR(status.st_mode):
            job.problem = f"its output {printable(job.target_path)} is a folder."


def _status(path: str) -> os.stat_result | None:
    try:
        return os.stat(path)
    except (OSError, ValueError):
        return None


def same_folder(one: str, other: str) -> bool:
    """Whether both paths lead to the same folder, which is there."""
    try:
        return os.path.samefile(one, other)
    except (OSError, ValueError):  # the output folder is not there yet
        return False


def _plain(path: str) -> str:
    """A path as ``Path`` writes it: without ./ and doubled slashes."""
    return str(Path(path))


def _file_part(label: str) -> str:
    """A speaker's label as a part of a file name: p225:0.7,p226:0.3 -> p225-0.7-p226-0.3."""
    return re.sub(r"[^\w.+-]+", "-", label).strip("-.") or "speaker"
