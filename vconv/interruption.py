"""Leaving on a signal, through the blocks that remove what is half-written."""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

_SIGNALS = ("SIGINT", "SIGTERM", "SIGHUP")


class Interruption:
    """Turns signals into SystemExit with 128 + signal."""

    def __init__(self) -> None:
        self._told: int | None = None
        self._deferred = False

    def install(self) -> None:
        """Handle the signals, but for those that our caller has switched off (nohup)."""
        for name in _SIGNALS:
            number = getattr(signal, name, None)
            if number is not None and signal.getsignal(number) != signal.SIG_IGN:
                signal.signal(number, self._handle)

    @contextmanager
    def deferred(self) -> Iterator[None]:
        """Only note a signal, for ``leave_if_told``; a second one leaves at once.

        An exception out of a handler is lost if the signal arrives inside a callback from C,
        such as those in which libsndfile reads and writes files.
        """
        self._deferred = True
        try:
            yield
        finally:
            self._deferred = False
            self.leave_if_told()

    def leave_if_told(self) -> None:
        if self._told is not None:
            sys.exit(128 + self._told)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        first = self._told is None
        self._told = number
        if not (first and self._deferred):
            self.leave_if_told()
