"""Where a corpus comes from: a folder for each speaker, VCTK, LibriSpeech, LibriTTS, a manifest.

Which of them a source is, its folders say; there is no option. Only names are looked at and texts
are read here, no recording is opened.
"""

import csv
import hashlib
import json
import os
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
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
# By the folder of the recordings. Both microphones of 0.92 heard the same sentences.
VCTK = {
    "wav48_silence_trimmed": "VCTK 0.92 (the first microphone, or the second where there is none)",
    "wav48": "VCTK 0.80",
}
_MICROPHONE = re.compile(r"_mic[0-9](?=(\.[^./]*)?$)")
_MAX_TEXT = 1 << 20  # bytes; a chapter's transcript has some ten thousand
_NAMED = 5  # speakers in a note


@dataclass(frozen=True, slots=True)
class Item:
    """One recording of a source, not yet looked at.

    Recordings of one speaker that have the same `sentence` are in the same split. It is the id
    where nothing is given, but for the number of the microphone (_mic1, _mic2). What is held out
    in a `subset` does not depend on the other subsets.
    """

    id: str
    path: Path
    speaker: str
    text: str | None = None
    split: str | None = None
    sentence: str = ""
    subset: str = ""


@dataclass(frozen=True)
class Listing:
    """The recordings of a source and its speakers in index order.

    `layout` says what the source was taken for. `rejected` holds (what, why) for entries that
    cannot be an item, such as a file outside the speakers' folders, `notes` what else is not as
    expected, such as texts that are missing.
    """

    items: Sequence[Item]
    speakers: Sequence[str]
    rejected: Sequence[tuple[str, str]]
    layout: str
    notes: Sequence[str] = ()


def list_source(source: str | os.PathLike[str]) -> Listing:
    """The recordings of a folder (its layout is recognised) or of a manifest.

    Raises `InputError` when there is neither, or no recording in it.
    """
    path = Path(source)
    name = printable(path)
    if path.is_dir():
        try:
            listing = _listed(path, _recognised(path))
        except OSError as error:
            raise InputError(f"{name}: cannot be read ({error}).") from None
        wanted = "a folder per speaker with recordings, " + " ".join(sorted(AUDIO_SUFFIXES))
    elif path.exists() and not path.is_file():
        raise InputError(f"{name}: is neither a folder nor a regular file.")
    elif path.suffix.lower() in (".jsonl", ".csv"):
        listing = _manifest(path)
        wanted = "a line per recording, with at least its path and speaker"
    elif path.exists():
        raise InputError(f"{name}: is neither a folder nor a .jsonl or .csv manifest.")
    else:
        raise InputError(f"{name}: does not exist.")
    if not listing.items:
        raise InputError(
            f"{name}: holds no recordings (taken for {listing.layout}); expected {wanted}."
        )
    alike = _alike(listing.speakers)
    return replace(listing, notes=[*listing.notes, *alike]) if alike else listing


def _alike(speakers: Sequence[str]) -> list[str]:
    """A note on names that only case tells apart: a listener, and many file systems, cannot."""
    spellings: dict[str, list[str]] = {}
    for name in speakers:
        spellings.setdefault(name.casefold(), []).append(name)
    return [
        f"the speakers {' and '.join(names)} differ in case only; they are taken for "
        f"{len(names)} speakers"
        for names in spellings.values()
        if len(names) > 1
    ]


def natural_key(name: str) -> str:
    """A sorting key by which p9 comes before p10. Different names have different keys."""

    def number(match: re.Match[str]) -> str:
        # The longer the larger; of equal ones 007 before 7, but 0 before 00, as strings are.
        digits = match[0].lstrip("0")
        zeros = min(len(match[0]) - len(digits), 255)
        return f"\0{chr(len(digits))}{digits}{chr(255 - zeros if digits else zeros)}"

    return re.sub("[0-9]+", number, name)


def hold_out(items: Sequence[Item], share: float) -> list[str]:
    """The split of each item: its own, else a share of each speaker's by the sentence's hash.

    A speaker with two sentences or more has at least one held out and one to train on.
    """
    splits = [item.split or "train" for item in items]
    undecided: dict[tuple[str, str], list[int]] = {}
    for index, item in enumerate(items):
        if item.split is None:
            undecided.setdefault((item.subset, item.speaker), []).append(index)
    for indices in undecided.values():
        hashes = {index: _hash(_sentence(items[index])) for index in indices}
        ranked = sorted(set(hashes.values()))
        count = min(max(round(share * len(ranked)), share > 0), len(ranked) - 1)
        held = set(ranked[:count])
        for index in indices:
            if hashes[index] in held:
                splits[index] = "heldout"
    return splits


def _sentence(item: Item) -> str:
    return item.sentence or _MICROPHONE.sub("", item.id)


def _hash(text: str) -> bytes:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()


@dataclass(frozen=True)
class _Layout:
    """What a folder is: the folders in which each folder is a speaker, and where texts are.

    `subsets` has a name for each of those folders. `text` takes a recording's folder and its name
    without suffix and microphone; of a layout without, every recording is a sentence.
    """

    name: str
    subsets: Mapping[str, Path]
    text: Callable[[Path, str], str | None] | None = None
    rejected: Sequence[tuple[str, str]] = ()
    one_microphone: bool = False


def _recognised(root: Path) -> _Layout:
    found = _corpus(root)
    if found is not None:
        return found
    # An archive's folder within a folder of its own.
    folders = [name for name in _folders(root) if not name.startswith((".", "__MACOSX"))]
    for name in folders:
        found = _corpus(root / name)
        if found is not None and len(folders) == 1:
            return found
        if found is not None:
            raise InputError(
                f"{printable(root / name)}: is laid out as {found.name}, so it is no speaker's "
                "folder; prepare that folder by itself, or list all recordings in a manifest."
            )
    return _Layout("a folder per speaker", {"": root})


def _corpus(root: Path) -> _Layout | None:
    """A public corpus, if `root` is one or part of one."""
    vctk = [folder for folder in VCTK if _folders(root / folder)]
    if vctk:
        used, *others = vctk
        rejected = [(folder, f"{used} has the same sentences and is used") for folder in others]
        texts = _VctkTexts(root / "txt")
        return _Layout(VCTK[used], {used: root / used}, texts, rejected, one_microphone=True)
    name = _subset(root)
    if name:
        return _Layout(name, {"": root}, _LibriTexts())
    subsets = {folder: _subset(root / folder) for folder in _folders(root)}
    if not any(subsets.values()):
        return None
    names = " and ".join(sorted(set(filter(None, subsets.values()))))
    return _Layout(
        names,
        {folder: root / folder for folder, kind in subsets.items() if kind},
        _LibriTexts(),
        [
            (folder, f"is no subset of {names}: holds no SPEAKER/CHAPTER folders with recordings")
            for folder, kind in subsets.items()
            if not kind
        ],
    )


def _subset(folder: Path) -> str:
    """LibriSpeech or LibriTTS if recordings are in SPEAKER/CHAPTER/ and named so, else ""."""
    for speaker in filter(str.isdecimal, _folders(folder)):
        for chapter in filter(str.isdecimal, _folders(folder / speaker)):
            for file in _names(folder / speaker / chapter):
                stem = os.path.splitext(file)[0]
                if not _is_recording(file):
                    continue
                if re.fullmatch(f"{speaker}-{chapter}-[0-9]+", stem):
                    return "LibriSpeech"
                if re.fullmatch(f"{speaker}_{chapter}_[0-9]+_[0-9]+", stem):
                    return "LibriTTS"
    return ""


def _names(folder: Path) -> list[str]:
    """What a folder holds; nothing of one that cannot be read: whoever lists it says so."""
    try:
        return os.listdir(folder)
    except OSError:
        return []


def _folders(folder: Path) -> list[str]:
    """The folders in a folder and the links to folders, in natural order."""
    try:
        with os.scandir(folder) as entries:
            return sorted((entry.name for entry in entries if _is_folder(entry)), key=natural_key)
    except OSError:
        return []


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a loop of links
        return False


class _VctkTexts:
    """txt/SPEAKER/NAME.txt"""

    def __init__(self, texts: Path) -> None:
        self.texts = texts

    def __call__(self, folder: Path, name: str) -> str | None:
        return _text(self.texts / folder.name / f"{name}.txt")


class _LibriTexts:
    """LibriTTS: NAME.normalized.txt beside NAME.wav; LibriSpeech: one file in each CHAPTER."""

    def __init__(self) -> None:
        self.chapter = Path()
        self.transcript: dict[str, str] = {}

    def __call__(self, folder: Path, name: str) -> str | None:
        if folder != self.chapter:
            self.chapter = folder
            lines = _read(folder / f"{folder.parent.name}-{folder.name}.trans.txt").splitlines()
            pairs = (line.strip().partition(" ") for line in lines)
            self.transcript = {key: text.strip() for key, _, text in pairs if text}
        if name in self.transcript:
            return self.transcript[name]
        return _text(folder / f"{name}.normalized.txt") or _text(folder / f"{name}.original.txt")


def _text(path: Path) -> str | None:
    return " ".join(_read(path).split()) or None


def _read(path: Path) -> str:
    """A small text file's content; "" if there is none that can be read."""
    try:
        if not path.is_file():  # opening a FIFO would wait for ever
            return ""
        with path.open("rb") as file:
            return file.read(_MAX_TEXT).decode("utf-8-sig", "replace")
    except OSError:
        return ""


def _listed(root: Path, layout: _Layout) -> Listing:
    items: list[Item] = []
    rejected = list(layout.rejected)
    for subset, folder in layout.subsets.items():
        for name in sorted(os.listdir(folder), key=natural_key):
            place = folder / name
            if place.is_dir():
                ids, problems = _recordings(root, place)
                items += _items(root, folder, name, ids, layout, subset)
                rejected += problems
            elif _is_recording(name):
                rejected.append((_id(root, place), "lies in no speaker's folder"))
    speakers = sorted({item.speaker for item in items}, key=natural_key)
    return Listing(items, speakers, rejected, layout.name, _notes(layout, items))


def _items(
    root: Path, folder: Path, speaker: str, ids: Sequence[str], layout: _Layout, subset: str
) -> Iterator[Item]:
    """The recordings `ids`, which are below folder/speaker, as the layout has them."""
    if layout.text is None:
        yield from (Item(each, root / each, speaker, subset=subset) for each in ids)
        return
    # A sentence is named from the subset's folder on: what is above must not matter to its hash.
    above = len(_id(root, folder / speaker)) - len(speaker)
    last = None
    for each in ids:
        path = root / each
        sentence = os.path.splitext(_MICROPHONE.sub("", each[above:]))[0]
        if layout.one_microphone and sentence == last:
            continue
        last = sentence
        text = layout.text(path.parent, os.path.basename(sentence))
        yield Item(each, path, speaker, text, None, sentence, subset)


def _recordings(root: Path, folder: Path) -> tuple[list[str], list[tuple[str, str]]]:
    """The ids of the recordings in a folder at any depth, in natural order; (what, why not)."""
    ids: list[str] = []
    problems: list[tuple[str, str]] = []

    def unreadable(error: OSError) -> None:
        problems.append((_id(root, Path(error.filename)), f"cannot be read ({error.strerror})"))

    # Links to folders are not followed: they may form a loop.
    for place, _, files in os.walk(folder, onerror=unreadable):
        here = _id(root, Path(place))
        ids += (f"{here}/{file}" for file in files if _is_recording(file))
    if not ids and not problems:
        problems.append((_id(root, folder), "holds no recordings"))
    return sorted(ids, key=natural_key), problems


def _id(root: Path, path: Path) -> str:
    return path.relative_to(root).as_posix()


def _is_recording(file: str) -> bool:
    # "._" files are what macOS leaves beside real ones on foreign disks.
    return os.path.splitext(file)[1].lower() in AUDIO_SUFFIXES and not file.startswith("._")


def _notes(layout: _Layout, items: Sequence[Item]) -> list[str]:
    if layout.text is None:
        return []
    notes = []
    tests = [name for name in layout.subsets if name.startswith(("dev-", "test-"))]
    if tests and len(tests) < len(layout.subsets):
        notes.append(f"{', '.join(tests)}: used like the other subsets, not held out as a whole")
    silent = Counter(item.speaker for item in items if item.text is None)
    if silent:
        most = ", ".join(f"{name} ({count:,})" for name, count in silent.most_common(_NAMED))
        more = f" and {len(silent) - _NAMED:,} more speakers" if len(silent) > _NAMED else ""
        notes.append(f"{silent.total():,} of {len(items):,} recordings have no text: {most}{more}")
    return notes


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
    layout = f"a {path.suffix[1:].upper()} manifest"
    return Listing(items, list(dict.fromkeys(item.speaker for item in items)), rejected, layout)


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
