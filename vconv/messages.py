"""What the commands say to people: on stderr, in lines of one form."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def to_stdout() -> Iterator[None]:
    """Around whatever writes data to stdout: a reader that left (``vconv speakers | head``) ends
    the program as SIGPIPE would, without a word."""
    try:
        yield
        sys.stdout.flush()
    except BrokenPipeError:
        # Otherwise the interpreter would try, and complain, once more at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(128 + 13)


def emit(text: str) -> None:
    """A line of data on stdout."""
    with to_stdout():
        print(text)


def say(text: str) -> None:
    """A line on stderr."""
    print(text, file=sys.stderr)


@contextmanager
def log_on_stderr(level: int = logging.WARNING) -> Iterator[None]:
    """The library's log as lines "vconv: warning: ..."."""
    log = logging.getLogger("vconv")
    handler = logging.StreamHandler()
    handler.setFormatter(_Line())
    before = log.level
    log.addHandler(handler)
    log.setLevel(level)
    try:
        yield
    finally:
        log.removeHandler(handler)
        log.setLevel(before)


class _Line(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        from .reading import printable  # with numpy and soundfile, which `vconv -h` can spare

        return f"vconv: {record.levelname.lower()}: {printable(record.getMessage())}"
