"""Which training windows are takes, and where in them: a pure function of (seed, sample number).

A take is a training recording as a model said it (``takes``). A window of one has the recording
for the encoder, and the take's codes for the decoder: its history and its targets.

B batch, W window, RF receptive field.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vconv.config import AudioConfig
from vconv.errors import InputError, UsageError
from vconv.reading import printable

from .corpus import Corpus
from .noise import Stream, generator
from .take_file import TakesFile, read_takes

Codes = NDArray[np.uint8]


class TakeWindows:
    """The windows of all takes that hold W targets after a receptive field, each as likely as
    every other; a share of all training windows is one of them.

    Pickled it is its place and digest, as its corpus is: another process reads the file anew.
    """

    def __init__(
        self,
        corpus: Corpus,
        takes: TakesFile,
        audio: AudioConfig,
        *,
        window: int,
        receptive_field: int,
        seed: int,
        share: float,
    ) -> None:
        """Raises UsageError when no take is long enough for a window."""
        self.takes = takes
        self.share = share
        self._corpus = corpus
        self._audio = audio
        self._seed = seed
        self._window, self._receptive_field = window, receptive_field
        length = receptive_field + window
        lengths = np.diff(takes.ends, prepend=0)
        places = np.maximum(lengths - length + 1, 0)
        self.used = int(np.count_nonzero(places))
        if not self.used:
            raise UsageError(
                f"{printable(takes.path)}: no take is long enough: the longest has "
                f"{int(lengths.max(initial=0)):,} samples, a window of {window:,} with its "
                f"receptive field needs {length:,}; make longer ones with `vconv takes --seconds`, "
                "or data.window smaller."
            )
        self._place_ends = np.cumsum(places)
        self._begins = takes.ends - lengths

    @property
    def digest(self) -> str:
        """Of the file."""
        return self.takes.digest

    def locate(self, g: int) -> tuple[int, int, Codes] | None:
        """Sample number ``g``'s utterance, first target in it and codes [RF + W]; None if its
        window is a recording's."""
        random = generator(self._seed, g, Stream.TAKES)
        if random.random() >= self.share:
            return None
        place = int(random.integers(self._place_ends[-1]))
        take = int(np.searchsorted(self._place_ends, place, side="right"))
        first = place - (int(self._place_ends[take - 1]) if take else 0)
        start = self._corpus.pad_samples + first + self._receptive_field
        begin = int(self._begins[take]) + first
        length = self._receptive_field + self._window
        return int(self.takes.utterances[take]), start, self.takes.codes[begin : begin + length]

    def __reduce__(self) -> tuple[Callable[..., TakeWindows], tuple[Any, ...]]:
        # Absolute, since the other process may have begun in another folder.
        options = {
            "window": self._window,
            "receptive_field": self._receptive_field,
            "seed": self._seed,
            "share": self.share,
        }
        where = self.takes.path.absolute()
        return _reopened, (where, self.digest, self._corpus, self._audio, options)


def _reopened(
    path: Path, digest: str, corpus: Corpus, audio: AudioConfig, options: dict[str, Any]
) -> TakeWindows:
    takes = read_takes(path, corpus, audio)
    if takes.digest != digest:
        raise InputError(f"{printable(path)}: has been made anew since it was opened.")
    return TakeWindows(corpus, takes, audio, **options)
