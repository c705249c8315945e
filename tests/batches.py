"""Batches of recordings, and what became of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import soundfile

from command_line import tree
from speech import speechlike


def recordings(folder: Path, count: int) -> Path:
    """Short ones, no two alike, in sub-folders."""
    sound = speechlike(8000)
    for index in range(count):
        place = folder / f"{index % 7}"
        place.mkdir(parents=True, exist_ok=True)
        begin, length = 7 * index % 3000, 1600 + 37 * index % 3200  # 0.1 to 0.3 s
        soundfile.write(place / f"{index}.wav", sound[begin : begin + length], 16_000)
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in tree(folder)}


def rows(record: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in record.read_text().splitlines()]
