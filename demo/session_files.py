"""Files of the people on the page: in a folder of the server's own, a part for each session.

The folder is removed when the server ends, a session's part when its page is closed, and what a
server that was killed left behind when the next one starts. A file is handed out only under an
address that cannot be guessed, and no listing of these exists.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import tempfile
import threading
import time
from collections import OrderedDict
from pathlib import Path

from .settings import KEPT_JOBS

_PREFIX = "vconv-page-"
_OWNER = "owner"
_KEPT_SECONDS = 4 * 3600


class SessionFiles:
    """``root`` is the folder; uploads of Gradio's lie in its ``uploads``."""

    def __init__(self) -> None:
        remove_left_behind()
        self.root = Path(tempfile.mkdtemp(prefix=_PREFIX)).resolve()
        (self.root / _OWNER).write_text(str(os.getpid()), "ascii")
        self.uploads = self.root / "uploads"
        self.uploads.mkdir()
        self._lock = threading.Lock()
        self._jobs: dict[str, OrderedDict[Path, list[str]]] = {}
        self._offered: dict[str, tuple[Path, str]] = {}
        self._used: dict[Path, set[str]] = {}

    def folder(self, session: str) -> Path:
        """A new folder for one job of a session; beyond a few, the oldest is removed."""
        path = self.root / f"job-{secrets.token_urlsafe(12)}"
        path.mkdir(mode=0o700)
        with self._lock:
            jobs = self._jobs.setdefault(session, OrderedDict())
            jobs[path] = []
            old = [jobs.popitem(last=False) for _ in range(len(jobs) - KEPT_JOBS)]
            old += self._forgotten()
        for where, tokens in old:
            self._remove(where, tokens)
        return path

    def offer(self, session: str, path: Path, name: str) -> str:
        """The address under which a file in a folder of the session's is served, called so."""
        token = secrets.token_urlsafe(18)
        with self._lock:
            self._offered[token] = path, name
            for folder, tokens in self._jobs.get(session, {}).items():
                if path.is_relative_to(folder):
                    tokens.append(token)
        return f"page/file/{token}"

    def offered(self, token: str) -> tuple[Path, str] | None:
        """The file of an address, and what it is called."""
        with self._lock:
            return self._offered.get(token)

    def uses(self, session: str, path: str | os.PathLike[str]) -> None:
        """A session works with an upload; equal uploads of two sessions are one file."""
        where = Path(path)
        if where.is_relative_to(self.uploads):
            with self._lock:
                self._used.setdefault(where, set()).add(session)

    def discard(self, folder: Path) -> None:
        """Remove a job's folder early: it failed, or was cancelled."""
        with self._lock:
            tokens = [jobs.pop(folder) for jobs in self._jobs.values() if folder in jobs]
        self._remove(folder, [token for each in tokens for token in each])

    def end_session(self, session: str) -> None:
        """Remove all that belongs to a session alone."""
        with self._lock:
            jobs = self._jobs.pop(session, OrderedDict())
            unused = []
            for path, sessions in list(self._used.items()):
                sessions.discard(session)
                if not sessions:
                    del self._used[path]
                    unused.append(path)
        for folder, tokens in jobs.items():
            self._remove(folder, tokens)
        for path in unused:
            path.unlink(missing_ok=True)
            with contextlib.suppress(OSError):  # not empty, or gone with another
                path.parent.rmdir()

    def close(self) -> None:
        """Remove everything."""
        shutil.rmtree(self.root, ignore_errors=True)

    def _forgotten(self) -> list[tuple[Path, list[str]]]:
        """Jobs of long ago, whose sessions may have ended without a word: programs' do."""
        before = time.time() - _KEPT_SECONDS
        found = []
        for session, jobs in list(self._jobs.items()):
            old = [path for path in jobs if not path.exists() or path.stat().st_mtime < before]
            found += [(path, jobs.pop(path)) for path in old]
            if not jobs:
                del self._jobs[session]
        return found

    def _remove(self, folder: Path, tokens: list[str]) -> None:
        with self._lock:
            for token in tokens:
                self._offered.pop(token, None)
        shutil.rmtree(folder, ignore_errors=True)


def remove_left_behind() -> None:
    """Remove the folders of servers that are no longer there."""
    for folder in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*"):
        try:
            if hasattr(os, "getuid") and folder.lstat().st_uid != os.getuid():
                continue
            if folder.is_symlink() or _alive(folder):
                continue
        except OSError:
            continue
        shutil.rmtree(folder, ignore_errors=True)


def _alive(folder: Path) -> bool:
    try:
        process = int((folder / _OWNER).read_text("ascii"))
    except (OSError, ValueError):
        return time.time() - folder.stat().st_mtime < 60  # being made this moment
    if process == os.getpid():
        return True
    if os.name != "posix":
        return False  # its open files keep it from being removed
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True
