"""What the page is started with."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

MAX_SECONDS = 300.0
QUEUE = 20
UPLOAD_BYTES = 64 * 1024 * 1024  # five minutes of 48 kHz stereo are 58 MB
BATCH_FILES = 50
COMPARED = 6  # results of one comparison
KEPT_JOBS = 8  # of a session; the oldest ones' files are removed
PORT = 7860


@dataclass(frozen=True)
class Settings:
    """``model``: a name or a folder; ``runs``: the folder in which training runs lie."""

    model: str = "demo"
    runs: Path = Path("runs")
    max_seconds: float = MAX_SECONDS
    queue: int = QUEUE
    upload_bytes: int = UPLOAD_BYTES
