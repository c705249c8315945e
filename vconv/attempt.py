"""One file of a batch, converted as far as the complete output beside its place.

Whether a thread here or a worker on another machine does it, it is this function that does; what is
left (the record's line, the renaming, what is printed) is the business of whoever asked.
"""

from __future__ import annotations

import hashlib
import logging
import os
import stat
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple, cast

from .converter import Converter
from .errors import UsageError
from .lanes import checked_lanes
from .loudness import Level
from .reading import printable
from .record import Known
from .results import Cancelled, Progress, WrittenFile

_BLOCK_BYTES = 1 << 20


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
    jobs: str = "auto"
    record: str | None = None
    shard: str | None = None
    ray: str | None = None
    raw: bool = False

    def conversion(self) -> dict[str, Any]:
        """As ``Converter.convert_to_file`` takes them."""
        return {
            "speaker": self.speaker,
            "seed": self.seed,
            "temperature": self.temperature,
            "pitch": self.pitch,
            "lanes": checked_lanes(self.lanes),
            "level": cast(Level, self.level),
            "output_sample_rate": self.sample_rate,
            "channel": self.channel,
            "allow_truncated": self.allow_truncated,
            "max_seconds": self.max_duration,
        }


@dataclass(frozen=True)
class Task:
    """A job for a worker: paths, and whether and what is recorded."""

    number: int
    source: str
    target: str
    recorded: bool = False
    known: Known | None = None


@dataclass(frozen=True)
class Outcome:
    """What became of a task.

    A ``converted`` file waits at ``made.path`` and is to be renamed; ``replaces``: what is at its
    place may go. Hashes are those of a task that is recorded; ``input_sha256`` is None too if the
    input changed meanwhile.
    """

    number: int
    kind: Literal["converted", "failed", "skipped", "done before"]
    made: WrittenFile | None = None
    replaces: bool = False
    input_sha256: str | None = None
    input_bytes: int | None = None
    output_sha256: str | None = None
    error: Exception | None = None
    warnings: tuple[tuple[int, str], ...] = ()
    cpu: str | None = None


def attempt(
    converter: Converter,
    task: Task,
    options: Options,
    *,
    progress: Progress,
    cores: Callable[[], int] | None = None,
) -> Outcome:
    """Convert a file unless that is done, or to be skipped; every error but Cancelled, which
    ``progress`` brings about by returning False, is an outcome."""
    with _gathered() as warnings:
        try:
            outcome = _attempt(converter, task, options, progress, cores)
        except Cancelled:
            raise
        except Exception as error:
            outcome = Outcome(task.number, "failed", error=error)
    return replace(outcome, warnings=tuple(warnings))


def _attempt(
    converter: Converter,
    task: Task,
    options: Options,
    progress: Progress,
    cores: Callable[[], int] | None,
) -> Outcome:
    def sha256(path: str) -> str | None:
        def tell() -> None:
            if progress(0.0, None) is False:
                raise Cancelled(f"{printable(path)}: the conversion was cancelled.")

        try:
            return sha256_of(path, tell)
        except OSError:  # converting will say so
            return None

    known, replaces = task.known, options.overwrite
    before = _identity(task.source) if task.recorded else None
    input_sha256 = sha256(task.source) if before is not None else None
    if os.path.lexists(task.target):
        there = sha256(task.target) if known and _identity(task.target) else None
        if (
            known is not None
            and known.same_settings
            and (input_sha256, there) == (known.input_sha256, known.output_sha256)
        ):
            return Outcome(task.number, "done before")
        if options.skip_existing:
            return Outcome(task.number, "skipped")
        replaces = replaces or (known is not None and there in known.outputs)
        if not replaces:
            raise exists_error(task.source, task.target, "its output {} exists")
    _make_folder(Path(task.target).parent)
    made = converter.convert_to_file(
        task.source,
        task.target,
        **options.conversion(),
        progress=progress,
        cores=cores,
        in_place=False,
    )
    try:
        output_sha256 = sha256(str(made.path)) if task.recorded else None
        # A file that was changed while it was read is not the one of that hash.
        if before is not None and _identity(task.source) != before:
            input_sha256 = None
    except BaseException:
        made.path.unlink(missing_ok=True)
        raise
    return Outcome(
        task.number,
        "converted",
        made,
        replaces,
        input_sha256,
        None if before is None else before.bytes,
        output_sha256,
        cpu=converter.code_path,
    )


def exists_error(source: str, target: str, what: str) -> UsageError:
    """That an output is there already."""
    return UsageError(
        f"{printable(source)}: {what.format(printable(target))}; --overwrite replaces it, "
        "--skip-existing passes over it."
    )


def sha256_of(path: str, tell: Callable[[], None] = lambda: None) -> str:
    """A file's sha256 in hexadecimal digits; ``tell`` is called now and then and may raise."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(_BLOCK_BYTES):
            digest.update(block)
            tell()
    return digest.hexdigest()


class _Identity(NamedTuple):
    """What of a file changes when it is written to or replaced."""

    device: int
    inode: int
    bytes: int
    modified_ns: int
    changed_ns: int


def _identity(path: str) -> _Identity | None:
    """None of what is no plain file: reading it might never end."""
    try:
        status = os.stat(path)
    except (OSError, ValueError):
        return None
    if not stat.S_ISREG(status.st_mode):
        return None
    numbers = status.st_size, status.st_mtime_ns, status.st_ctime_ns
    return _Identity(status.st_dev, status.st_ino, *numbers)


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"{printable(folder)}: cannot be made ({error.strerror}).") from None


# -- warnings --------------------------------------------------------------------------------------

# Of several files at a time each keeps its warnings to itself, until it is told of.
_gathering = threading.local()


class _Gather(logging.Filter):
    def filter(self, record: logging.LogRecord) -> bool:
        kept: list[tuple[int, str]] | None = getattr(_gathering, "kept", None)
        if kept is None:
            return True
        kept.append((record.levelno, record.getMessage()))
        return False


_gather = _Gather()


@contextmanager
def gathering() -> Iterator[None]:
    """Around the attempts of a process."""
    log = logging.getLogger("vconv")
    log.addFilter(_gather)
    try:
        yield
    finally:
        log.removeFilter(_gather)


@contextmanager
def _gathered() -> Iterator[list[tuple[int, str]]]:
    kept: list[tuple[int, str]] = []
    _gathering.kept = kept
    try:
        yield kept
    finally:
        _gathering.kept = None
