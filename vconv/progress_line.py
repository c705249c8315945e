"""A line on a terminal that says how far a batch is, and for how long it will go on."""

from __future__ import annotations

import os
import sys
import time
from collections import deque
from collections.abc import Callable

_WINDOW_SECONDS = 120.0
_SAMPLE_SECONDS = 1.0
_CELLS = 24


class TimeToGo:
    """How long the rest of some work takes, at the pace of the last two minutes.

    Work is in any unit, such as bytes. What turns out to be done already is no work: leave it out
    of both figures.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._seen = deque([(clock(), 0.0)])

    def __call__(self, done: float, total: float) -> float | None:
        """Seconds; None as long as there is nothing to go by."""
        now = self._clock()
        if now - self._seen[-1][0] >= _SAMPLE_SECONDS:
            self._seen.append((now, done))
            while now - self._seen[0][0] > _WINDOW_SECONDS:
                self._seen.popleft()
        since, before = self._seen[0]
        if done <= before or now - since < 2 * _SAMPLE_SECONDS:
            return None
        return max(0.0, total - done) * (now - since) / (done - before)


def told(seconds: float) -> str:
    """ "50 s", "12 min" or "3 h 20 min"."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes < 90:
        return f"{minutes} min"
    return f"{minutes // 60:,} h {minutes % 60} min"


def drawn(share: float) -> str:
    """A bar of a share of 0 to 1."""
    full = int(min(max(share, 0.0), 1.0) * _CELLS)
    return f"[{'#' * full}{'.' * (_CELLS - full)}] {100 * share:3.0f} %"


class Line:
    """The last line of the terminal that stderr is; nothing where it is none."""

    def __init__(self, *, quiet: bool) -> None:
        self._there = not quiet and sys.stderr is not None and sys.stderr.isatty()
        self._width = 0

    @property
    def there(self) -> bool:
        """Whether anything would be seen."""
        return self._there

    def show(self, text: str) -> None:
        """Write the line anew."""
        if not self._there:
            return
        try:
            columns = os.get_terminal_size(sys.stderr.fileno()).columns
        except (OSError, ValueError):
            columns = 80
        text = text[: columns - 1]
        sys.stderr.write("\r" + text.ljust(self._width))
        sys.stderr.flush()
        self._width = len(text)

    def clear(self) -> None:
        """Take it away, before something else is written or at the end."""
        if self._width:
            sys.stderr.write("\r" + " " * self._width + "\r")
            sys.stderr.flush()
            self._width = 0
