"""Conversions that are under way: each can be stopped, and listened to while it is made."""

from __future__ import annotations

import re
import secrets
import threading
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

_TOKEN = re.compile(r"[A-Za-z0-9_-]{16,64}")
_REMEMBERED = 1000


@dataclass
class Job:
    """One piece of work of a session.

    ``live``: 32-bit floats at 16 kHz as they are made, in a file that grows; ``over``: nothing
    more will come.
    """

    session: str
    token: str
    stopped: threading.Event = field(default_factory=threading.Event)
    over: threading.Event = field(default_factory=threading.Event)
    live: Path | None = None


class Jobs:
    """All jobs of the server, by the token that the page drew for them."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._jobs: dict[str, Job] = {}
        self._stopped_early: OrderedDict[str, None] = OrderedDict()

    @contextmanager
    def begin(self, session: str, token: str | None) -> Iterator[Job]:
        """A job, for as long as the block lasts. A token that is none, or that another job has,
        is replaced."""
        with self._lock:
            if token is None or not _TOKEN.fullmatch(token) or token in self._jobs:
                token = secrets.token_urlsafe(18)
            job = self._jobs[token] = Job(session, token)
            if token in self._stopped_early:
                job.stopped.set()
        try:
            yield job
        finally:
            job.over.set()
            if job.live is not None:
                job.live.unlink(missing_ok=True)  # who listens has it open
            with self._lock:
                self._jobs.pop(token, None)

    def find(self, token: str) -> Job | None:
        with self._lock:
            return self._jobs.get(token)

    def stop(self, session: str, token: str | None) -> bool:
        """Stop a session's job, or keep one that still waits in the queue from beginning;
        whether it was running."""
        if token is None or not _TOKEN.fullmatch(token):
            return False
        with self._lock:
            job = self._jobs.get(token)
            if job is None:
                self._stopped_early[token] = None
                while len(self._stopped_early) > _REMEMBERED:
                    self._stopped_early.popitem(last=False)
                return False
        if job.session != session:
            return False
        job.stopped.set()
        return True

    def stop_session(self, session: str) -> None:
        """Stop whatever a session has running: its page was closed."""
        with self._lock:
            mine = [job for job in self._jobs.values() if job.session == session]
        for job in mine:
            job.stopped.set()

    def stop_all(self) -> None:
        with self._lock:
            for job in self._jobs.values():
                job.stopped.set()
