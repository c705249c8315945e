"""Where a corpus comes from: a folder for each speaker, or a JSONL or CSV manifest."""

import csv
import hashlib
import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vconv.errors import InputError
from vconv.reading import printable

from .corpus import SPLITS

AUDIO_SUFFIXES = frozenset(
    f".{name}"
    for name in (
        *("wav", "w64", "rf64", "flac", "ogg", "oga", "opus", "mp3"),
        *("aif", "aiff", "aifc", "au", "snd", "caf"),
    )
)
COLUMNS = ("path", "speaker", "text", "split", "id")


@dataclass(frozen=True)
class Item:
    """One recording of a source, not yet looked at."""

    id: str
    path: Path
    speaker: str
    text: str | None = None
    split: str | None = None


@dataclass(frozen=True)
class Listing:
    """The recordings of a source and its speakers in index order.

    `rejected` holds (what, why) for entries that cannot be an item, such as a file outside the
    speakers' folders.
    """

    items: Sequence[Item]
    speakers: Sequence[str]
    rejected: Sequence[tuple[str, str]]


def list_source(source: str | os.PathLike[str]) -> Listing:
    """The recordings of a folder with one sub-folder per speaker, or of a manifest.

    Raises `InputError` when there is neither, or no recording in it.
    """
    path = Path(source)
    name = printable(path)
    if path.is_dir():
        listing = _folder(path)
        wanted = "a folder per speaker with recordings, " + " ".join(sorted(AUDIO_SUFFIXES))
    elif path.suffix.lower() in (".jsonl", ".csv"):
        listing = _manifest(path)
        wanted = "a line per recording, with at least its path and speaker"
    elif path.exists():
        raise InputError(f"{name}: is neither a folder nor a .jsonl or .csv manifest.")
    else:
        raise InputError(f"{name}: does not exist.")
    if not listing.items:
        raise InputError(f"{name}: holds no recordings; expected {wanted}.")
    return listing


def natural_key(name: str) -> list[tuple[bool, int, str]]:
    """A sorting key by which p9 comes before p10."""
    parts = re.split(r"([0-9]+)", name)
    return [(part.isdigit(), int(part) if part.isdigit() else 0, part) for part in parts]


def hold_out(items: Sequence[Item], share: float) -> list[str]:
    """The split of each item: its own, else a share of each speaker's by the hash of the id.

    A speaker with two recordings or more has at least one held out and one to train on.
    """
    splits = [item.split or "train" for item in items]
    undecided: dict[str, list[int]] = {}
    for index, item in enumerate(items):
        if item.split is None:
            undecided.setdefault(item.speaker, []).append(index)
    for indices in undecided.values():
        count = min(max(round(share * len(indices)), share > 0), len(indices) - 1)
        ranked = sorted(indices, key=lambda index: _hash(items[index].id))
        for index in ranked[:count]:
            splits[index] = "heldout"
    return splits


def _hash(text: str) -> bytes:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()


def _folder(root: Path) -> Listing:
    items, rejected = [], []
    speakers = []
    for entry in sorted(root.iterdir(), key=lambda path: natural_key(path.name)):
        if entry.is_dir():
            found = sorted(_recordings(entry), key=lambda path: natural_key(path.as_posix()))
            speakers += [entry.name] if found else []
            items += [Item(path.relative_to(root).as_posix(), path, entry.name) for path in found]
        elif entry.suffix.lower() in AUDIO_SUFFIXES:
            rejected.append((entry.name, "lies in no speaker's folder"))
    return Listing(items, speakers, rejected)


def _recordings(folder: Path) -> Iterator[Path]:
    # Links to folders are not followed: they may form a loop.
    for place, _, files in os.walk(folder):
        for file in files:
            # "._" files are what macOS leaves beside real ones on foreign disks.
            if Path(file).suffix.lower() in AUDIO_SUFFIXES and not file.startswith("._"):
                yield Path(place, file)


def _manifest(path: Path) -> Listing:
    items, rejected = [], []
    ids: set[str] = set()
    for line, row in _rows(path):
        problem = _problem(row)
        identity = str(row.get("id") or row.get("path")) if isinstance(row, Mapping) else ""
        if problem is None and identity in ids:
            problem = f"the id {identity!r} occurs twice"
        if problem is not None:
            rejected.append((f"{path.name}:{line}", problem))
            continue
        ids.add(identity)
        # Joining with an absolute path gives that path.
        audio = path.parent / row["path"]
        item = Item(identity, audio, row["speaker"], row.get("text"), row.get("split") or None)
        items.append(item)
    return Listing(items, list(dict.fromkeys(item.speaker for item in items)), rejected)


def _rows(path: Path) -> Iterator[tuple[int, Any]]:
    """(line number, row) for each entry of a manifest."""
    name = printable(path)
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            if path.suffix.lower() == ".csv":
                reader = csv.DictReader(file)
                missing = {"path", "speaker"} - set(reader.fieldnames or ())
                if missing:
                    raise InputError(
                        f"{name}: its first line names no column {' or '.join(sorted(missing))!r};"
                        f" the columns of a manifest are {', '.join(COLUMNS)}."
                    )
                for row in reader:
                    # A row longer than the header has its rest under None.
                    yield reader.line_num, {key: row[key] for key in row if key in COLUMNS}
                return
            for number, text in enumerate(file, 1):
                if not text.strip():
                    continue
                try:
                    yield number, json.loads(text)
                except (ValueError, RecursionError):
                    yield number, None
    except FileNotFoundError:
        raise InputError(f"{name}: does not exist.") from None
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{name}: cannot be read ({error}).") from None


def _problem(row: Any) -> str | None:
    """Why a manifest's row is no item, or None."""
    if not isinstance(row, Mapping):
        return "is not a JSON object"
    for key in ("path", "speaker"):
        if not isinstance(row.get(key), str) or not row[key].strip():
            return f"has no {key}"
    for key in ("text", "id"):
        if row.get(key) is not None and not isinstance(row[key], str):
            return f"has a {key} that is no string"
    if row.get("split") not in (None, "", *SPLITS):
        return f"has the split {row['split']!r}; allowed are {' and '.join(SPLITS)}"
    return None
