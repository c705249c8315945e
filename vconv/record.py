"""What a batch has done, file by file, in JSON lines: so that the same command can go on.

A line is appended before its output is renamed to its place. So an output that a killed process has
left is always known, and a line whose output never came is seen by the output's hash. Appending is
one write; a last line that is torn nevertheless is cut off at the next start. One process at a time
writes a record, under a lock on it.

It is not synced to the disk: after a power failure the last lines may be missing.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import stat
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from .audio import beside_prefix
from .batch import Job
from .errors import UsageError
from .reading import printable, reason_of

# Every line begins so: it tells a record from any other file, and a torn line from damage.
_BEGINNING = b'{"vconv": "'
_KEY_BYTES = 16
_SHA_BYTES = 32
_COPIED = ("input_sha256", "output_sha256")


@dataclass(frozen=True)
class Known:
    """What a record says of an output; hashes are sha256 in hexadecimal digits.

    ``same_settings``: whether it was made, last, with the options and the model of this run;
    ``outputs``: of all that was ever made there.
    """

    same_settings: bool
    input_sha256: str
    output_sha256: str
    outputs: frozenset[str]


class Record:
    """A file of JSON lines, held by this process; a context manager.

    Raises UsageError for what is no record, cannot be written to, or is held by another process.
    """

    def __init__(self, path: str) -> None:
        self.name = printable(path)
        self._path = os.path.abspath(path)
        # Of 100,000 outputs: 20 MB. Keys are of paths, values the input's key, then hashes: of the
        # settings, the input, the output.
        self._latest: dict[bytes, bytes] = {}
        self._earlier: dict[bytes, bytes] = {}  # outputs' hashes that were replaced, one by one
        self._settings: dict[str, Any] = {}
        self._digest = b""
        try:
            mode = os.O_RDWR | os.O_CREAT | os.O_APPEND | getattr(os, "O_BINARY", 0)
            self._fresh = not os.path.lexists(path)
            self._descriptor = os.open(path, mode | getattr(os, "O_NONBLOCK", 0), 0o666)
        except (OSError, ValueError) as error:
            raise self._error(f"cannot be opened for writing ({reason_of(error)})") from None
        try:
            if not stat.S_ISREG(os.fstat(self._descriptor).st_mode):
                raise self._error("is no plain file")
            self._lock()
            self._load()
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Record:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Let others have it; a new one into which nothing was written is removed."""
        if self._fresh and os.fstat(self._descriptor).st_size == 0:
            os.unlink(self._path)
        os.close(self._descriptor)

    def begin(self, settings: Mapping[str, Any]) -> None:
        """What is told in every line, and must be the same for an output to count as done:
        {"model": ..., "options": ...}."""
        self._settings = dict(settings)
        self._digest = _settings_digest(self._settings)

    def refuse_jobs(self, jobs: Sequence[Job]) -> None:
        """Raises UsageError if the record itself is among the inputs or outputs."""
        mine = os.fstat(self._descriptor)
        for job in jobs:
            for what, path in (("input", job.source_path), ("output", job.target_path)):
                # Names first: a hundred thousand files are not looked at for this.
                if path is None or os.path.basename(path) != os.path.basename(self._path):
                    continue
                try:
                    same = os.path.samestat(os.stat(path), mine)
                except (OSError, ValueError):
                    same = False
                if same:
                    raise self._error(f"is an {what} too; the record needs a file of its own")

    def known(self, target: str) -> Known | None:
        """What is known of an output."""
        key = _key(target)
        value = self._latest.get(key)
        if value is None:
            return None
        parts = [value[at : at + _SHA_BYTES] for at in range(_KEY_BYTES, len(value), _SHA_BYTES)]
        settings, source, output = parts
        earlier = self._earlier.get(key, b"")
        outputs = [earlier[at : at + _SHA_BYTES] for at in range(0, len(earlier), _SHA_BYTES)]
        return Known(
            settings == self._digest,
            source.hex(),
            output.hex(),
            frozenset(each.hex() for each in [output, *outputs]),
        )

    def made_of(self, jobs: Sequence[Job]) -> set[str]:
        """The inputs of these jobs that were made from other inputs of them."""
        inputs = {_key(job.source_path) for job in jobs if job.source_path is not None}
        found = set()
        for job in jobs:
            value = self._latest.get(_key(job.source_path)) if job.source_path else None
            if value is not None and value[:_KEY_BYTES] in inputs and job.source_path:
                found.add(job.source_path)
        return found

    def clear_away(self, jobs: Sequence[Job]) -> None:
        """Remove what a killed process left half-written beside the outputs of these jobs."""
        if self._fresh:
            return
        prefixes: dict[str, set[str]] = {}
        for job in jobs:
            if job.target_path is not None:
                target = Path(job.target_path)
                prefixes.setdefault(str(target.parent), set()).add(beside_prefix(target))
        for folder, wanted in prefixes.items():
            remove_beside(folder, wanted)

    def append(self, job: Job, outcome: Mapping[str, Any]) -> None:
        """A line about a job. Raises UsageError if it cannot be written, and leaves none then."""
        from . import __version__

        assert job.source_path is not None
        whole = job.root is None
        line = {
            "vconv": __version__,
            "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "outcome": "",
            "input": os.path.abspath(job.source_path) if whole else job.place,
            "root": None if job.root is None else os.path.abspath(job.root),
            "output": os.path.abspath(job.target_path or ""),
            **outcome,
            **self._settings,
        }
        data = json.dumps(line).encode() + b"\n"
        assert data.startswith(_BEGINNING)
        before = os.fstat(self._descriptor).st_size
        try:
            if os.write(self._descriptor, data) < len(data):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError as error:
            os.ftruncate(self._descriptor, before)
            raise self._error(f"cannot be written ({reason_of(error)})") from None
        self._note(line)

    def _note(self, line: Mapping[str, Any]) -> None:
        """Remember the line, if something was converted."""
        if line["outcome"] != "converted":
            return
        key = _key(line["output"])
        before = self._latest.get(key)
        if before is not None:
            old = before[-_SHA_BYTES:]
            if old not in self._earlier.get(key, b""):
                self._earlier[key] = self._earlier.get(key, b"") + old
        source, output = (bytes.fromhex(line[name] or "00" * _SHA_BYTES) for name in _COPIED)
        of = line["input"] if line["root"] is None else os.path.join(line["root"], line["input"])
        settings = {name: line[name] for name in ("model", "options")}
        self._latest[key] = _key(of) + _settings_digest(settings) + source + output

    def _load(self) -> None:
        size = whole = 0
        with open(self._descriptor, "rb", closefd=False) as file:
            file.seek(0)
            for number, data in enumerate(file, 1):
                size += len(data)
                if not data.endswith(b"\n"):
                    # Torn: but of a record, or of something that was named by mistake?
                    if not (data.startswith(_BEGINNING) or _BEGINNING.startswith(data)):
                        raise self._error("is no record of vconv's; name another file")
                    break
                whole = size
                try:
                    if not data.startswith(_BEGINNING):
                        raise ValueError(data)
                    self._note(json.loads(data))
                except (ValueError, KeyError, TypeError):
                    raise self._error(
                        f"its line {number:,} is none of a record of vconv's; name another file"
                    ) from None
        if whole < size:
            os.ftruncate(self._descriptor, whole)

    def _lock(self) -> None:
        try:
            _lock(self._descriptor)
        except OSError as error:
            if error.errno in (errno.EACCES, errno.EAGAIN, errno.EDEADLK):
                raise self._error(
                    "another process is writing it; name a record of its own for each"
                ) from None
            # Some file systems of clusters have no locks; nothing else is lost without.

    def _error(self, reason: str) -> UsageError:
        return UsageError(f"--record {self.name}: {reason}.")


def remove_beside(folder: str, prefixes: set[str]) -> None:
    """Remove the files of a folder whose names begin with one of these (``beside_prefix``)."""
    length = max(map(len, prefixes), default=0)
    try:
        with os.scandir(folder) as entries:
            names = [entry.name for entry in entries if entry.name[:length] in prefixes]
        for name in names:
            os.unlink(os.path.join(folder, name))
    except OSError:  # not there yet; or not ours to remove, and so nobody's trouble
        return


def _settings_digest(settings: Mapping[str, Any]) -> bytes:
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).digest()


def _key(path: str) -> bytes:
    whole = os.fsencode(os.path.abspath(path))
    return hashlib.blake2b(whole, digest_size=_KEY_BYTES).digest()


if sys.platform == "win32":

    def _lock(descriptor: int) -> None:
        import msvcrt

        # A byte far behind the end: locked bytes cannot be read.
        os.lseek(descriptor, 1 << 60, os.SEEK_SET)
        msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)

else:

    def _lock(descriptor: int) -> None:
        import fcntl

        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
