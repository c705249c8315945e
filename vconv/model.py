"""A loaded model: the exported encoder and conditioner, and an engine for the WaveNet.

T samples, U units, D latent width, E speaker width, F conditioning steps, C conditioning channels,
L layers, G gate.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt
from numpy.lib.stride_tricks import sliding_window_view

from .audio import MuLaw
from .bundle import Bundle
from .engine_choice import engine_for
from .engines import Engine, Joining
from .engines.shared import SharedEngine
from .errors import UsageError
from .grid import Grid
from .reading import Samples

Codes = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Stretch:
    """Consecutive units: codes [U], -1 where there is no codebook; latents [U, D]; pitch [U, 2]
    and its voicing, [U, 0] for a model that is not told them."""

    codes: Codes
    latents: Samples
    pitch: Samples

    def __len__(self) -> int:
        return len(self.codes)

    def __getitem__(self, part: slice) -> Stretch:
        return Stretch(self.codes[part], self.latents[part], self.pitch[part])


def joined(stretches: Iterable[Stretch]) -> Stretch:
    """One after the other."""
    parts = list(stretches)
    return Stretch(
        np.concatenate([part.codes for part in parts]),
        np.concatenate([part.latents for part in parts]),
        np.concatenate([part.pitch for part in parts]),
    )


class Model:
    """What the chunk loop asks of a model; free of state, so that any thread may ask.

    ``codebook`` [K, D] is None where the units are continuous.

    Raises ModelError for a bundle that cannot be used, SetupError for a device or package that
    the machine lacks, UsageError for one that does not exist.
    """

    def __init__(self, bundle: Bundle, *, device: str, engine: str, precision: str) -> None:
        device = checked_device(device)
        self.audio = bundle.config.audio
        self.mulaw = MuLaw(self.audio.levels)
        self.geometry = bundle.geometry
        self.grid = Grid.of(self.geometry)
        self.codebook = bundle.codebook
        # Of a model without pitch none is heard, whatever it would be relative to.
        self.pitch_prior = bundle.pitch_prior or 0.0
        self.input_level_db = bundle.manifest.input_level_db
        self._encoder = bundle.encoder(device)
        self._conditioner = bundle.conditioner(device)
        made: Engine = engine_for(bundle, name=engine, device=device, precision=precision)
        # On a GPU the lanes of several recordings take about as long as those of one.
        if device != "cpu" and isinstance(made, Joining):
            made = SharedEngine(made)
        self.engine = made

    def encode(self, wav: Samples) -> Stretch:
        """wav [T] -> its units; pitch is log2 of F0 in Hz."""
        codes, latents, pitch = self._encoder(wav[None])
        return Stretch(codes[0], latents[0], pitch[0])

    def condition(self, latents: Samples, speaker: Samples) -> Samples:
        """latents [1, U, D (+ 2 for pitch)], speaker vector [1, E] -> conditioning [1, F, L * 2G],
        or [1, F, C] at the sample rate."""
        return self._conditioner(latents, speaker)

    def silence(self, count: int) -> Stretch:
        """Units that hear nothing but digital silence."""
        unit = self._silent_unit
        return Stretch(
            np.repeat(unit.codes, count),
            np.repeat(unit.latents, count, axis=0),
            np.zeros((count, unit.pitch.shape[1]), np.float32),
        )

    def silent_hops(self, units: Stretch) -> npt.NDArray[np.bool_]:
        """Units [U] -> for each unit hop of samples that they give [U - context] whether it is
        digital silence to the encoder: all units that shape it have the code of silence. Without
        codes nobody can tell."""
        context = self.grid.context
        if self.codebook is None:
            return np.zeros(len(units) - context, np.bool_)
        silent = units.codes == self._silent_unit.codes[0]
        return np.asarray(sliding_window_view(silent, context + 1).all(1))

    @cached_property
    def _silent_unit(self) -> Stretch:
        return self.encode(np.zeros(self.grid.window, np.float32))

    def stretch(
        self, codes: Codes | None, latents: Samples | None, pitch: Samples | None, *, samples: int
    ) -> Stretch:
        """Units from outside, of a recording of so many samples: codes [U] for a model with a
        codebook, else latents [U, D]; and relative pitch [U, 2] for a model with pitch.

        Raises UsageError for units of another kind of model, or too few or many of them, or codes
        or numbers that cannot be.
        """
        silence = self.silence(self.grid.unit_count(samples))
        coded = self.codebook is not None
        wanted = _shapes(
            silence.codes if coded else None,
            None if coded else silence.latents,
            silence.pitch if silence.pitch.shape[1] else None,
        )
        found = _shapes(codes, latents, pitch)
        if found != wanted:
            raise UsageError(
                f"A recording of {samples:,} samples is {wanted} to this model, found {found}."
            )
        for numbers in (latents, pitch):
            if numbers is not None and not np.isfinite(numbers).all():
                raise UsageError("The units must be finite numbers, found NaN or infinity.")
        if codes is not None:
            latents = self.latents(codes)
        return Stretch(
            silence.codes if codes is None else codes,
            np.asarray(latents, np.float32),
            silence.pitch if pitch is None else np.asarray(pitch, np.float32),
        )

    def latents(self, codes: Codes) -> Samples:
        """codes [U] -> latents [U, D]; UsageError for codes that are not the codebook's."""
        assert self.codebook is not None
        if codes.min() < 0 or codes.max() >= len(self.codebook):
            raise UsageError(
                f"The model's codes are 0 to {len(self.codebook) - 1}, found {codes.min()} to "
                f"{codes.max()}."
            )
        latents: Samples = self.codebook[codes]
        return latents


def _shapes(codes: Codes | None, latents: Samples | None, pitch: Samples | None) -> str:
    """Such as "codes [33] and pitch [33, 2]"."""
    parts = {"codes": codes, "latents": latents, "pitch": pitch}.items()
    told = [f"{name} {list(part.shape)}" for name, part in parts if part is not None]
    return " and ".join(told) or "nothing"


def checked_device(device: str) -> str:
    """``cpu`` or ``cuda[:N]`` of auto, cpu and cuda[:N]; UsageError for anything else.

    "auto" is the CPU: one lane of the sampler is faster there than on a GPU, where every sample
    would cost a launch, and the networks before it take a few percent of the time.
    """
    if device in ("auto", "cpu"):
        return "cpu"
    if not re.fullmatch(r"cuda(:\d{1,3})?", device):
        raise UsageError(f"There is no device {device!r}; allowed are auto, cpu, cuda and cuda:N.")
    return device
