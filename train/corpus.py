"""A prepared corpus: audio of all utterances in one memory-mapped file, and what is known of it."""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from vconv.errors import InputError, VconvError
from vconv.reading import printable
from vconv.speakers import SpeakerMap

VERSION = 1
AUDIO, UTTERANCES, HEADER = "audio.i16", "utterances.jsonl", "corpus.json"
SPLITS = ("train", "heldout")
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


@dataclass(frozen=True)
class Corpus:
    """A corpus opened for training; excerpts are read from the memory-mapped file on demand."""

    path: Path
    sample_rate: int
    pad_samples: int
    speakers: SpeakerMap
    utterances: Utterances
    statistics: Mapping[str, FeatureStatistics]
    digest: str
    header: Mapping[str, Any]
    audio: npt.NDArray[np.int16]

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> "Corpus":
        """Open the corpus folder at `path`.

        Raises `InputError` when it is missing, incomplete, of another version or inconsistent.
        """
        folder = Path(path)
        name = printable(folder)
        header = _header(folder, name)
        try:
            speakers = SpeakerMap(header["speakers"])
            statistics = {
                kind: FeatureStatistics(np.array(value["mean"]), np.array(value["std"]))
                for kind, value in header["statistics"].items()
            }
            utterances = _utterances(folder / UTTERANCES, speakers)
            audio: npt.NDArray[np.int16] = np.memmap(folder / AUDIO, "<i2", mode="r")
            ends = utterances.start + utterances.length
            if len(audio) != header["samples"] or ends.max() > len(audio):
                raise InputError(
                    f"{name}: {AUDIO} holds {len(audio):,} samples where {HEADER} declares "
                    f"{header['samples']:,}; prepare the corpus again."
                )
            return cls(
                folder,
                int(header["sample_rate"]),
                int(header["pad_samples"]),
                speakers,
                utterances,
                statistics,
                str(header["digest"]),
                header,
                audio,
            )
        except InputError:
            raise
        except (OSError, ValueError, KeyError, TypeError, AttributeError, VconvError) as error:
            raise InputError(
                f"{name}: is damaged ({type(error).__name__}: {error}); prepare it again."
            ) from error

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
        out[low - start : high - start] = self.audio[begin + low : begin + high] / FULL_SCALE
        return out


def _header(folder: Path, name: str) -> dict[str, Any]:
    try:
        header = json.loads((folder / HEADER).read_text("utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        if folder.is_dir():
            reason = f"holds no {HEADER}: it is no corpus, or its preparation was interrupted"
            raise InputError(f"{name}: {reason}; run `vconv prepare`.") from None
        raise InputError(f"{name}: is no folder; a corpus comes from `vconv prepare`.") from None
    except (OSError, ValueError) as error:
        raise InputError(f"{name}: its {HEADER} cannot be read ({error}).") from None
    version = header.get("version") if isinstance(header, dict) else None
    if version != VERSION:
        raise InputError(
            f"{name}: is a corpus of version {version!r}; this vconv reads version {VERSION}, "
            "prepare the corpus again."
        )
    assert isinstance(header, dict)
    return header


def _utterances(path: Path, speakers: SpeakerMap) -> Utterances:
    with path.open(encoding="utf-8") as file:
        rows = [json.loads(line) for line in file]
    if not rows:
        raise InputError(f"{printable(path)}: lists no utterances.")
    for row in rows:
        if row["split"] not in SPLITS:
            raise InputError(f"{printable(path)}: unknown split {row['split']!r}.")
    return Utterances(
        tuple(row["id"] for row in rows),
        tuple(row.get("text") for row in rows),
        np.array([row["start"] for row in rows], np.int64),
        np.array([row["length"] for row in rows], np.int64),
        np.array([speakers.index(row["speaker"]) for row in rows], np.int64),
        np.array([row["split"] == "heldout" for row in rows]),
    )
