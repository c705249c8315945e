"""Keeping C libraries off stderr: libmpg123 tells of every frame of a damaged MP3 there."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator


@contextlib.contextmanager
def libraries_silenced() -> Iterator[None]:
    """Within it, what is written to file descriptor 2 goes nowhere; `sys.stderr` goes where it did.

    For programs, not for a library: the descriptor is the whole process's, and so are processes
    that are started meanwhile.
    """
    before = sys.stderr
    if before is None:
        yield
        return
    before.flush()
    kept = os.dup(2)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        with open(
            os.dup(2), "w", buffering=1, encoding=before.encoding, errors=before.errors
        ) as ours:
            os.dup2(nowhere, 2)
            sys.stderr = ours
            try:
                yield
            finally:
                sys.stderr = before
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)
