"""A loaded model: the exported encoder and conditioner, and an engine for the WaveNet.

T samples, U units, D latent width, E speaker width, F conditioning steps, L layers, G gate.
"""

from __future__ import annotations

import re
from functools import cached_property

import numpy as np
import numpy.typing as npt

from .audio import MuLaw
from .bundle import Bundle
from .engines import Engine, create_engine
from .errors import UsageError
from .grid import Grid
from .reading import Samples

Codes = npt.NDArray[np.int64]


class Model:
    """What the chunk loop asks of a model; free of state, so that any thread may ask.

    Raises ModelError for a bundle that cannot be used, SetupError for a device or package that
    the machine lacks, UsageError for one that does not exist.
    """

    def __init__(self, bundle: Bundle, *, device: str, engine: str) -> None:
        device = checked_device(device)
        self.audio = bundle.config.audio
        self.mulaw = MuLaw(self.audio.levels)
        self.geometry = bundle.geometry
        self.grid = Grid.of(self.geometry)
        self._codebook: Samples = bundle.tensors["bottleneck.codebook"]
        self._encoder = bundle.encoder(device)
        self._conditioner = bundle.conditioner(device)
        self.engine: Engine = create_engine(
            engine,
            bundle.weights("decoder.wavenet."),
            **bundle.engine_options(),
            device=device,
        )

    def encode(self, wav: Samples) -> tuple[Codes, Samples]:
        """wav [1, T] -> codes [U], latents [1, U, D]."""
        codes, latents = self._encoder(wav)
        return codes[0], latents

    def condition(self, latents: Samples, speaker: Samples) -> Samples:
        """latents [1, U, D], speaker vector [1, E] -> projected conditioning [1, F, L * 2G]."""
        return self._conditioner(latents, speaker)

    def latents(self, codes: Codes) -> Samples:
        """codes [U] -> latents [1, U, D]; UsageError for codes that are not the codebook's."""
        if codes.min() < 0 or codes.max() >= len(self._codebook):
            raise UsageError(
                f"The model's codes are 0 to {len(self._codebook) - 1}, found {codes.min()} to "
                f"{codes.max()}."
            )
        return self._codebook[codes][None]

    @cached_property
    def silent_unit(self) -> int:
        """The code of digital silence."""
        codes, _ = self.encode(np.zeros((1, self.grid.plan.wav_length), np.float32))
        return int(codes[0])


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
