"""What conversions return, and what a progress callback is told."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from .audio import SAMPLE_RATE, write_atomic
from .errors import UsageError, VconvError
from .model import Codes
from .reading import Samples, Source
from .units_file import StoredUnits, UnitsModel, read_units, write_units

Progress = Callable[[float, "float | None"], "bool | None"]
"""Called with the seconds done and the seconds in all (None where no length is declared);
returning False cancels the conversion."""


class Cancelled(VconvError):
    """A progress callback asked to stop; nothing was written."""


@dataclass(frozen=True, eq=False)
class Units:
    """What was said, without who said it: units, as many a second as ``Manifest.unit_rate``.

    ``codes`` [U] of a model with a codebook, else (None) ``latents`` [U, D]; ``pitch`` [U, 2] of a
    model that is told it: octaves above the speaker's own, and voicing from 0 to 1.

    ``samples`` is the recording's length at 16 kHz. The first unit is the first that hears any of
    the recording and the last is the last that its end needs, so there are a few more than its
    seconds have; beyond them is silence.

    ``model`` says whose units they are, if anybody said so: another model refuses them then.
    """

    codes: Codes | None
    samples: int
    latents: Samples | None = field(default=None, repr=False)
    pitch: Samples | None = field(default=None, repr=False)
    model: UnitsModel | None = field(default=None, repr=False)

    @property
    def seconds(self) -> float:
        """The duration of the recording."""
        return self.samples / SAMPLE_RATE

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write a file of units (docs/units-format.md), replacing what is there only once it is
        complete; by custom its suffix is ``.units``.

        Raises UsageError for units that do not say whose they are, or that a file cannot hold, and
        for a place that cannot be written to.
        """
        if self.model is None:
            raise UsageError(
                "Units are saved with the model that they are of: give them model= the "
                "units_model of a converter."
            )
        stored = StoredUnits(self.codes, self.samples, self.latents, self.pitch, self.model)
        write_units(path, stored)

    @classmethod
    def load(cls, source: Source) -> Units:
        """Read a file of units: its path, its bytes, or a seekable binary file.

        Raises InputError for anything but a whole and undamaged one.
        """
        return cls(*read_units(source))


@dataclass(frozen=True, eq=False)
class Conversion:
    """A converted recording: mono float32 [T], and the codes [U] that it was made from (None for a
    model without a codebook).

    ``speaker`` is the resolved name (or mixture), ``elapsed_seconds`` what the conversion took,
    ``lanes`` how many pieces of it were generated side by side.
    """

    audio: Samples = field(repr=False)
    sample_rate: int
    codes: Codes | None = field(repr=False)
    speaker: str
    elapsed_seconds: float
    lanes: int = 1

    @property
    def seconds(self) -> float:
        """The duration of the audio."""
        return len(self.audio) / self.sample_rate

    @property
    def real_time_factor(self) -> float:
        """Seconds of audio made per second of work."""
        return self.seconds / self.elapsed_seconds

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write a .wav, .flac, .ogg or .mp3, replacing what is there only once it is complete.

        Raises UsageError for another suffix or a place that cannot be written to.
        """
        with write_atomic(path, self.sample_rate) as writer:
            writer.write(self.audio)


@dataclass(frozen=True)
class WrittenFile:
    """A converted file, as ``Converter.convert_to_file`` wrote it."""

    path: Path
    samples: int
    sample_rate: int
    speaker: str
    elapsed_seconds: float
    lanes: int = 1

    @property
    def seconds(self) -> float:
        """The duration of the audio."""
        return self.samples / self.sample_rate

    @property
    def real_time_factor(self) -> float:
        """Seconds of audio made per second of work."""
        return self.seconds / self.elapsed_seconds
