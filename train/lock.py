"""One writer in a folder at a time: a second one is refused at once, naming the first."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from vconv.errors import UsageError

LOCK, HOLDER = ".lock", "lock.json"


@contextmanager
def only_writer(folder: Path, task: str, *, tidy: bool = False) -> Iterator[None]:
    """Hold a folder while the block lasts; UsageError if another process does.

    The kernel drops the lock of a process that dies, so what it leaves holds nothing. ``tidy``
    removes the lock's own file too, for a folder that is complete then, and not written again.
    """
    lock = FileLock(folder / LOCK, timeout=0)
    try:
        lock.acquire()
    except Timeout:
        raise UsageError(
            f"{folder}: {task} is under way there ({_holder(folder)}); wait for it to end, or "
            "choose another folder."
        ) from None
    try:
        who = {"pid": os.getpid(), "host": socket.gethostname()}
        (folder / HOLDER).write_text(json.dumps(who), "utf-8")
        yield
    finally:
        # Else the file stays: removed, it would split those who come next between two files.
        for name in (HOLDER, LOCK) if tidy else (HOLDER,):
            with suppress(OSError):
                (folder / name).unlink()
        lock.release()


def _holder(folder: Path) -> str:
    try:
        who = json.loads((folder / HOLDER).read_text("utf-8"))
        return f"process {who['pid']} on {who['host']}"
    except (OSError, ValueError, KeyError, TypeError):
        return "another process"
