"""Thousands of damaged recordings: sound that passes the checks, or one sentence, and never more.

Each is read in a process of its own kind, so that a crash, a hang or a word of libsndfile's would
be seen. `pytest -m slow -s tests/test_mutations.py` reads 10,000 and prints what came of them.
"""

from __future__ import annotations

import collections
import json
import os
import queue
import re
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from vconv.library_noise import libraries_silenced

SEED = 2026
SECONDS = 60.0  # for one file, on a machine that is busy; measured is less than a tenth
LIBMPG123 = re.compile(r"Note: |Warning: |\[?src/libmpg123/|\[.*libmpg123")
READER = Path(__file__).with_name("mutations.py")


def rows_of(first: int, stop: int) -> tuple[list[dict[str, Any]], list[str]]:
    """What came of the files of these numbers, one that crashes or hangs included, and the
    lines that appeared on stderr; `said` counts the bytes of each file's."""
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryFile("w+") as stderr:
        while (at := first + len(rows)) < stop:
            with subprocess.Popen(
                [sys.executable, str(READER), str(SEED), str(at), str(stop)],
                stdout=subprocess.PIPE,
                stderr=stderr,
                text=True,
            ) as process:
                lines: queue.Queue[str] = queue.Queue()
                thread = threading.Thread(target=_hand_on, args=(process, lines))
                thread.start()
                try:
                    while line := lines.get(timeout=SECONDS):
                        rows.append(json.loads(line))
                    ended = f"crashed with {process.wait()}"
                except queue.Empty:
                    process.kill()
                    ended = "hung"
                thread.join()
            if first + len(rows) < stop:
                rows.append({"number": first + len(rows), "what": "?", "ended": ended, "said": 0})
        stderr.seek(0)
        return rows, stderr.read().splitlines()


def _hand_on(process: subprocess.Popen[str], lines: queue.Queue[str]) -> None:
    assert process.stdout is not None
    for line in process.stdout:
        lines.put(line)
    lines.put("")


@pytest.mark.parametrize("count", [300, pytest.param(10_000, marks=pytest.mark.slow)])
def test_damaged_recordings_are_sound_or_one_sentence(count: int) -> None:
    begun = time.monotonic()
    rows, words = rows_of(0, count)
    bad = [row for row in rows if row["ended"] not in ("sound", "refused")]
    assert bad == []
    # libmpg123 alone speaks of damage to stderr, which the command keeps from it.
    talked = [row for row in rows if row["said"]]
    strange = [line for line in words if line and not LIBMPG123.match(line)]
    assert strange == []
    assert [row["number"] for row in rows] == list(range(count))
    kinds = collections.Counter((row["what"].split()[0], row["ended"]) for row in rows)
    assert len(kinds) == 8  # some of each format pass, and some are refused
    peaks = [row["peak_kb"] for row in rows]
    assert max(peaks) - peaks[0] < 100_000
    assert max(row["seconds"] for row in rows) < SECONDS
    print(f"\n{count:,} files in {time.monotonic() - begun:.0f} s")
    print(", ".join(f"{kind} {ended} {n:,}" for (kind, ended), n in sorted(kinds.items())))
    slowest = max(rows, key=lambda row: row["seconds"])
    print(f"libmpg123 had words for {len(talked):,}")
    print(f"slowest {slowest}; memory grew by {(max(peaks) - peaks[0]) / 1e3:.1f} MB")


def test_the_command_is_heard_and_its_libraries_are_not(
    capfd: pytest.CaptureFixture[str],
) -> None:
    for _ in range(2):
        print("before", file=sys.stderr)
        with libraries_silenced():
            os.write(2, b"a library")
            print("ours", file=sys.stderr)
        os.write(2, b"after\n")
        assert capfd.readouterr().err.split() == ["before", "ours", "after"]
    with pytest.raises(SystemExit), libraries_silenced():
        sys.exit(3)
    print("again", file=sys.stderr)
    assert capfd.readouterr().err == "again\n"
