"""What keeps an interrupted preparation: the audio file, and a note of each utterance in it."""

import json
import os
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt

from vconv.errors import UsageError
from vconv.reading import printable

from .corpus import AUDIO

JOURNAL = "journal.jsonl"
_NOTED = {"id", "length", "clipped", "silent", "rejected"}
FLUSH_EVERY = 64  # utterances between two fsyncs


class Journal:
    """The audio file of a corpus as it grows. A context manager, at whose end all is on disk.

    Args:
        folder: of the corpus.
        plan: names what is being prepared and how; only the same plan is continued.
        overwrite: start again where another plan was begun.

    `entries` are the notes of all recordings done, in order, from before and since; each has a
    `length` in samples. Raises `UsageError` for another plan's beginnings.
    """

    def __init__(self, folder: Path, plan: str, overwrite: bool) -> None:
        audio, notes = folder / AUDIO, folder / JOURNAL
        found, self.entries = _read(notes, audio)
        if found not in (None, plan):
            if not overwrite:
                raise UsageError(
                    f"{printable(folder)}: holds an interrupted preparation of other recordings "
                    "or options; choose another folder, or ask to overwrite it."
                )
            self.entries = []
        # The notes first, whole: were the audio cut first, old notes would name what is gone.
        rewritten = notes.with_name(JOURNAL + ".partial")
        lines = [json.dumps({"plan": plan}), *map(json.dumps, self.entries)]
        rewritten.write_text("".join(f"{line}\n" for line in lines), "ascii")
        os.replace(rewritten, notes)
        self._pending: list[str] = []
        self._notes = notes.open("a", encoding="ascii")
        self._audio = audio.open("r+b" if self.entries else "w+b")
        self._audio.truncate(2 * sum(entry["length"] for entry in self.entries))
        self._audio.seek(0, os.SEEK_END)

    def append(self, samples: npt.NDArray[np.int16], note: dict[str, Any]) -> None:
        """Add a recording's samples [T] (none, if it is left out) and its note."""
        self._audio.write(samples.astype("<i2").tobytes())
        entry = {**note, "length": len(samples)}
        self.entries.append(entry)
        self._pending.append(json.dumps(entry))
        if len(self._pending) >= FLUSH_EVERY:
            self._flush()

    def __enter__(self) -> "Journal":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            self._flush()
        finally:
            self._audio.close()
            self._notes.close()

    def _flush(self) -> None:
        # The audio first: a note must never be on disk without its samples.
        self._audio.flush()
        os.fsync(self._audio.fileno())
        self._notes.write("".join(f"{line}\n" for line in self._pending))
        self._pending = []
        self._notes.flush()
        os.fsync(self._notes.fileno())


def _read(notes: Path, audio: Path) -> tuple[str | None, list[dict[str, Any]]]:
    """(the plan, the notes whose samples are there) of a journal, if there is one."""
    if not notes.exists():
        return None, []
    present = audio.stat().st_size // 2 if audio.exists() else 0
    entries: list[dict[str, Any]] = []
    plan: str | None = None
    for line in notes.read_text("ascii", "replace").splitlines():
        try:
            entry = json.loads(line)
            if plan is None:
                plan = str(entry["plan"])
                continue
            length = int(entry["length"])
        except (ValueError, KeyError, TypeError, RecursionError):  # cut by the interruption
            break
        present -= length
        if present < 0 or length < 0 or not entry.keys() >= _NOTED:
            break
        entries.append(entry)
    return plan, entries
