"""What all parts of a page share: its settings, files, jobs and models."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field

from vconv.errors import VconvError

from .jobs import Jobs
from .session_files import SessionFiles
from .settings import Settings
from .shelf import Shelf

log = logging.getLogger("vconv.demo")


@dataclass
class Site:
    """One for each server."""

    settings: Settings
    shelf: Shelf
    files: SessionFiles
    jobs: Jobs = field(default_factory=Jobs)

    @classmethod
    def of(cls, settings: Settings) -> Site:
        """Raises ModelError for a model that cannot be used."""
        shelf = Shelf(settings.model)
        return cls(settings, shelf, SessionFiles())

    def end_session(self, session: str) -> None:
        """A page was closed: stop what it had running, remove what it left."""
        self.jobs.stop_session(session)
        self.files.end_session(session)

    def close(self) -> None:
        self.jobs.stop_all()
        self.files.close()


def sentence(error: Exception) -> str:
    """What to tell the people on the page; what is our own fault goes to the log too."""
    if isinstance(error, VconvError):
        return str(error)
    if isinstance(error, MemoryError):
        return "There is not enough memory for this recording; try a shorter one."
    log.error("a fault of vconv's", exc_info=error)
    what = type(error).__name__
    return f"This is a fault of vconv's ({what}); the page goes on, and its log says more."
