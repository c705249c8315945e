"""A prepared corpus: audio of all utterances in one file, and what is known of it."""

import json
import os
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from vconv.audio import SAMPLE_RATE
from vconv.config import FEATURE_CHANNELS
from vconv.errors import InputError, VconvError
from vconv.reading import printable
from vconv.speakers import SpeakerMap

VERSION = 1
AUDIO, UTTERANCES, HEADER = "audio.i16", "utterances.jsonl", "corpus.json"
SPLITS = ("train", "heldout")
_LIMIT = 1 << 62
FULL_SCALE = 32768.0  # int16 -> [-1, 1)


@dataclass(frozen=True)
class FeatureStatistics:
    """Mean and standard deviation of each feature dimension over the training frames [D]."""

    mean: npt.NDArray[np.float64]
    std: npt.NDArray[np.float64]


@dataclass(frozen=True)
class Utterances:
    """The utterances in corpus order, each array [N]; starts and lengths in samples.

    A length includes the silence before and after the recording.
    """

    ids: tuple[str, ...]
    texts: tuple[str | None, ...]
    start: npt.NDArray[np.int64]
    length: npt.NDArray[np.int64]
    speaker: npt.NDArray[np.int64]
    heldout: npt.NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.ids)


class AudioFile:
    """int16 samples in a file, read where they are asked for.

    Read, not mapped: mapped pages stay with the process, as much of the corpus as it has ever
    touched, and a disk that fails would kill it (SIGBUS). Reading is as fast, and what the
    page cache keeps the kernel may take back.
    """

    def __init__(self, path: Path) -> None:
        """Raises `OSError` when `path` cannot be opened."""
        self.path = path
        self._descriptor = os.open(path, os.O_RDONLY)

    def __len__(self) -> int:
        return os.fstat(self._descriptor).st_size // 2

    def read(self, start: int, count: int) -> npt.NDArray[np.int16]:
        """Samples [start, start + count), int16 [count].

        Raises `InputError` when the file has become shorter or the disk fails.
        """
        try:
            found = self._at(2 * start, 2 * count)
        except OSError as error:
            raise InputError(f"{printable(self.path)}: cannot be read ({error}).") from error
        if len(found) != 2 * count:
            raise InputError(
                f"{printable(self.path)}: has been cut short since it was opened; prepare the "
                "corpus again."
            )
        return np.frombuffer(found, "<i2")

    def _at(self, place: int, size: int) -> bytes:
        # With the position in the call, threads do not share one.
        if hasattr(os, "pread"):  # not on Windows
            return os.pread(self._descriptor, size, place)
        with self.path.open("rb") as file:
            file.seek(place)
            return file.read(size)

    def __del__(self) -> None:
        if hasattr(self, "_descriptor"):
            os.close(self._descriptor)


@dataclass(frozen=True)
class Corpus:
    """A corpus opened for training; excerpts are read from its file on demand.

    Pickled it is its place and digest: another process opens it anew.
    """

    path: Path
    sample_rate: int
    pad_samples: int
    speakers: SpeakerMap
    utterances: Utterances
    statistics: Mapping[str, FeatureStatistics]
    digest: str
    header: Mapping[str, Any]
    audio: AudioFile

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> "Corpus":
        """Open the corpus folder at `path`.

        Raises `InputError` when it is missing, incomplete, of another version or inconsistent.
        """
        folder = Path(path)
        name = printable(folder)
        header = _header(folder, name)
        try:
            speakers = _speakers(header)
            statistics = {
                kind: _statistics(kind, value) for kind, value in header["statistics"].items()
            }
            utterances = _utterances(folder / UTTERANCES, speakers)
            audio = AudioFile(folder / AUDIO)
            if len(audio) != _count(header, "samples"):
                raise InputError(
                    f"{name}: {AUDIO} holds {len(audio):,} samples where {HEADER} declares "
                    f"{header['samples']:,}; prepare the corpus again."
                )
            _check_places(utterances, len(audio), f"{name}: {UTTERANCES}")
            return cls(
                folder,
                _count(header, "sample_rate", SAMPLE_RATE, SAMPLE_RATE),
                _count(header, "pad_samples"),
                speakers,
                utterances,
                statistics,
                str(header["digest"]),
                header,
                audio,
            )
        except InputError:
            raise
        except KeyError as error:
            reason = f"the key {error.args[0]} of {HEADER} is missing"
        except OSError as error:
            reason = f"{Path(error.filename or AUDIO).name}: {error.strerror or error}".lower()
        except (ValueError, TypeError, AttributeError, VconvError) as error:
            reason = str(error).rstrip(".")
        raise InputError(f"{name}: is damaged ({reason}); prepare it again.")

    def feature_statistics(self, kind: str) -> FeatureStatistics:
        """Of one kind of features; `InputError` where the corpus was prepared without."""
        if kind not in self.statistics:
            raise InputError(
                f"{printable(self.path)}: has no statistics of {kind} features (only of "
                f"{', '.join(self.statistics)}); prepare the corpus again."
            )
        return self.statistics[kind]

    def excerpt(self, utterance: int, start: int, length: int) -> npt.NDArray[np.float32]:
        """Samples [start, start + length) of an utterance, float32 [length]; zero outside it."""
        begin, size = self.utterances.start[utterance], int(self.utterances.length[utterance])
        low, high = min(max(start, 0), size), min(max(start + length, 0), size)
        out = np.zeros(length, np.float32)
        if low < high:
            samples = self.audio.read(int(begin) + low, high - low)
            # A power of two: exact.
            np.multiply(samples, np.float32(1 / FULL_SCALE), out=out[low - start : high - start])
        return out

    def __reduce__(self) -> tuple[Callable[[Path, str], "Corpus"], tuple[Path, str]]:
        # Absolute, since the other process may have begun in another folder.
        return _reopened, (self.path.absolute(), self.digest)


def _reopened(path: Path, digest: str) -> Corpus:
    corpus = Corpus.open(path)
    if corpus.digest != digest:
        raise InputError(f"{printable(path)}: has been prepared anew since it was opened.")
    return corpus


def _header(folder: Path, name: str) -> dict[str, Any]:
    try:
        header = json.loads((folder / HEADER).read_text("utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        if folder.is_dir():
            reason = f"holds no {HEADER}: it is no corpus, or its preparation was interrupted"
            raise InputError(f"{name}: {reason}; run `vconv prepare`.") from None
        raise InputError(f"{name}: is no folder; a corpus comes from `vconv prepare`.") from None
    except OSError as error:
        raise InputError(f"{name}: its {HEADER} cannot be read ({error.strerror}).") from None
    except (ValueError, RecursionError) as error:
        raise InputError(
            f"{name}: its {HEADER} cannot be read ({error}); prepare it again."
        ) from None
    version = header.get("version") if isinstance(header, dict) else None
    if version != VERSION:
        raise InputError(
            f"{name}: is a corpus of version {version!r}; this vconv reads version {VERSION}, "
            "prepare the corpus again."
        )
    assert isinstance(header, dict)
    return header


def _utterances(path: Path, speakers: SpeakerMap) -> Utterances:
    rows: list[dict[str, Any]] = []
    names = set(speakers.names)
    with path.open(encoding="utf-8", errors="replace") as file:
        for number, line in enumerate(file, 1):
            problem = _problem(line, rows, names)
            if problem:
                raise InputError(
                    f"{printable(path)}: line {number:,} {problem}; prepare the corpus again."
                )
    if not rows:
        raise InputError(f"{printable(path)}: lists no utterances.")
    if all(row["split"] != SPLITS[0] for row in rows):
        raise InputError(
            f"{printable(path)}: every utterance is held out; none is left to train on."
        )
    return Utterances(
        tuple(row["id"] for row in rows),
        tuple(row.get("text") for row in rows),
        np.array([row["start"] for row in rows], np.int64),
        np.array([row["length"] for row in rows], np.int64),
        np.array([speakers.index(row["speaker"]) for row in rows], np.int64),
        np.array([row["split"] == "heldout" for row in rows]),
    )


def _problem(line: str, rows: list[dict[str, Any]], names: set[str]) -> str:
    """Adds the line of an utterance to the rows; what is wrong with it, or ""."""
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return "is no JSON: it is damaged, or was cut"
    if not isinstance(row, dict):
        return "is no JSON object"
    for key, kind in (("id", str), ("speaker", str), ("split", str), ("start", int)):
        if type(row.get(key)) is not kind:
            return f"has no {key} that is {'a text' if kind is str else 'a whole number'}"
    if type(row.get("length")) is not int or not 0 < row["length"] < _LIMIT:
        return f"has the length {row.get('length')!r}; allowed are whole numbers from 1"
    if not 0 <= row["start"] < _LIMIT:
        return f"has the start {row['start']!r}; allowed are whole numbers from 0"
    if row["split"] not in SPLITS:
        return f"has an unknown split, {row['split']!r}; allowed are {' and '.join(SPLITS)}"
    if row["speaker"] not in names:
        return f"names a speaker that {HEADER} does not list, {row['speaker']!r}"
    if not isinstance(row.get("text"), str | None):
        return "has a text that is no text"
    rows.append(row)
    return ""


def _check_places(utterances: Utterances, samples: int, where: str) -> None:
    """InputError naming an utterance that is not in the audio, or is listed twice."""
    outside = np.flatnonzero(utterances.start + utterances.length > samples)
    if len(outside):
        raise InputError(
            f"{where}: the utterance {utterances.ids[outside[0]]!r} ends after the {samples:,} "
            f"samples of {AUDIO}; prepare the corpus again."
        )
    if len(set(utterances.ids)) < len(utterances):
        (twice, _), *_ = Counter(utterances.ids).most_common(1)
        raise InputError(f"{where}: the id {twice!r} occurs twice; prepare the corpus again.")


def _speakers(header: Mapping[str, Any]) -> SpeakerMap:
    names = header["speakers"]
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ValueError(f"speakers of {HEADER} must be a list of names, found {str(names)[:40]}")
    return SpeakerMap(names)


def _statistics(kind: str, value: Any) -> FeatureStatistics:
    channels = FEATURE_CHANNELS.get(kind)
    mean, std = (np.array(value[name], np.float64) for name in ("mean", "std"))
    for name, numbers in (("mean", mean), ("std", std)):
        where = f"statistics.{kind}.{name} of {HEADER}"
        if numbers.ndim != 1 or len(numbers) != (channels or len(mean)):
            raise ValueError(f"{where} has {numbers.size} numbers, expected {channels}")
        if not np.isfinite(numbers).all() or (name == "std" and not (numbers > 0).all()):
            raise ValueError(f"{where} has a number that is not finite, or a spread of 0")
    return FeatureStatistics(mean, std)


def _count(header: Mapping[str, Any], key: str, low: int = 0, high: int = _LIMIT) -> int:
    value = header[key]
    if type(value) is not int or not low <= value <= high:
        allowed = f"{low}" if low == high else f"a whole number from {low}"
        raise ValueError(f"{key} of {HEADER} is {str(value)[:40]}; expected {allowed}")
    return value
