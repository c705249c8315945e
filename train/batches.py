"""From a sample number to a batch: a step is a pure function of its batch.

B batch, W window (samples predicted), U units, RF receptive field.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vconv.audio import MuLaw, decoder_codes
from vconv.config import AudioConfig, AugmentConfig, Config
from vconv.geometry import Geometry, Plan

from .augment import augment
from .corpus import Corpus
from .noise import dither, jitter_sources, normals
from .take_windows import TakeWindows
from .windows import WindowPlan


@dataclass(frozen=True)
class Batch:
    """wav [B, T] for the encoder, clean [B, T] the same without augmentation; codes [B, RF + W],
    of which all but the last are the WaveNet's inputs and the last W its targets; speakers [B];
    jitter [B, U] (source of each unit); noise [B, L, D, U] for the bottleneck's draws."""

    wav: Tensor
    clean: Tensor
    codes: Tensor
    speakers: Tensor
    jitter: Tensor
    noise: Tensor

    def pin_memory(self) -> Batch:
        """The same in page-locked memory, from which a GPU copies while it computes."""
        return self._each(Tensor.pin_memory)

    def to(self, device: torch.device) -> Batch:
        if device.type == "cpu":
            return self
        # What is pinned already is not copied again.
        return self._each(lambda tensor: tensor.pin_memory().to(device, non_blocking=True))

    def clone(self) -> Batch:
        """The same in memory of its own."""
        return self._each(Tensor.clone)

    def _each(self, change: Callable[[Tensor], Tensor]) -> Batch:
        wav = change(self.wav)
        clean = wav if self.clean is self.wav else change(self.clean)
        rest = (self.codes, self.speakers, self.jitter, self.noise)
        return Batch(wav, clean, *map(change, rest))


@dataclass(frozen=True)
class Noise:
    """What a training sample is changed by, as a function of (seed, sample number): jitter's
    probability, the bottleneck's draws (L, D), and the encoder's input augmented."""

    jitter: float = 0.0
    draws: tuple[int, int] = (0, 0)
    augment: AugmentConfig = field(default_factory=AugmentConfig)

    @classmethod
    def of(cls, config: Config) -> Noise:
        """What a configuration asks for."""
        model = config.model
        return cls(model.jitter, (model.draws, model.latents), config.data.augment)


class Excerpts:
    """Cuts windows with all their context out of a corpus."""

    def __init__(
        self,
        corpus: Corpus,
        audio: AudioConfig,
        geometry: Geometry,
        window: int,
        *,
        seed: int = 0,
        dither_db: float | None = None,
    ) -> None:
        self.corpus = corpus
        self.seed = seed
        self.dither_db = dither_db
        self.audio = audio
        self.window = window
        self.receptive_field = geometry.receptive_field
        self.plan: Plan = geometry.plan(window, lead=geometry.lead_samples)
        self.mulaw = MuLaw(audio.levels)

    @property
    def steps(self) -> slice:
        """The conditioning steps in use, among those made of an excerpt's units."""
        return slice(self.plan.skip, self.plan.skip + self.plan.steps)

    @property
    def left(self) -> int:
        """Samples of context an excerpt needs before its first predicted sample."""
        return self.plan.left

    @property
    def right(self) -> int:
        """Samples of context it needs after the last."""
        return self.plan.right - self.window

    def cut(
        self,
        where: Sequence[tuple[int, int]],
        samples: Sequence[int],
        noise: Noise,
        spoken: Mapping[int, NDArray[np.uint8]] | None = None,
    ) -> Batch:
        """A batch of windows given as (utterance, first predicted sample) and sample number.

        ``spoken``: the codes [RF + W] that stand for the recording's own, by place in the batch.
        """
        length, units = self.plan.wav_length, self.plan.units
        wav = np.stack([self.corpus.excerpt(u, s - self.left, length) for u, s in where])
        # One sample more at the left: pre-emphasis looks at the sample before.
        first = self.left - self.receptive_field
        signal = wav[:, first - 1 : self.left + self.window]
        if self.dither_db is not None:
            signal = signal + dither(self.seed, samples, signal.shape[1], self.dither_db)
        codes = np.stack(
            [
                decoder_codes(
                    row,
                    mulaw=self.mulaw,
                    preemphasis=self.audio.preemphasis,
                    gain=self.audio.gain,
                )[1:]
                for row in signal
            ]
        )
        for place, said in (spoken or {}).items():
            codes[place] = said
        speakers = self.corpus.utterances.speaker[[u for u, _ in where]]
        clean = torch.from_numpy(wav)
        augmented = augment(wav, self.seed, samples, noise.augment)
        return Batch(
            wav=clean if augmented is wav else torch.from_numpy(augmented),
            clean=clean,
            codes=torch.from_numpy(codes.astype(np.int64)),
            speakers=torch.from_numpy(speakers.astype(np.int64)),
            jitter=torch.from_numpy(jitter_sources(self.seed, samples, units, noise.jitter)),
            noise=torch.from_numpy(normals(self.seed, samples, (*noise.draws, units))),
        )


class TrainingBatches:
    """Batch number ``step``: samples step * batch ... of the endless keyed order of windows.

    With ``takes``, a share of the samples are windows of these instead.
    """

    def __init__(
        self,
        excerpts: Excerpts,
        *,
        batch: int,
        seed: int,
        noise: Noise,
        buffer_mb: float | None,
        buffer_fraction: float,
        takes: TakeWindows | None = None,
    ) -> None:
        self.excerpts = excerpts
        self.takes = takes
        self.batch = batch
        self.seed = seed
        self.noise = noise
        self.buffer_mb = buffer_mb
        self.buffer_fraction = buffer_fraction
        self.windows = self._plan()

    def _plan(self) -> WindowPlan:
        utterances = self.excerpts.corpus.utterances
        return WindowPlan(
            np.where(utterances.heldout, 0, utterances.length),
            utterances.speaker,
            window=self.excerpts.window,
            left=self.excerpts.left,
            right=self.excerpts.right,
            seed=self.seed,
            buffer_mb=self.buffer_mb,
            fraction=self.buffer_fraction,
        )

    def __getstate__(self) -> dict[str, Any]:
        # The plan is made of the corpus, and of its size where all the rest is a few numbers.
        return {name: value for name, value in self.__dict__.items() if name != "windows"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self.windows = self._plan()

    def at(self, step: int, part: int = 0, parts: int = 1) -> Batch:
        """A step's batch, or one of its equal parts in the order of the sample numbers."""
        width = self.batch // parts
        first = step * self.batch + part * width
        samples = np.arange(first, first + width, dtype=np.int64)
        found = self.windows.locate_many(samples)
        where = list(zip(found.utterance.tolist(), found.start.tolist(), strict=True))
        spoken = {}
        if self.takes is not None:
            for place, g in enumerate(samples.tolist()):
                take = self.takes.locate(g)
                if take is not None:
                    utterance, start, spoken[place] = take
                    where[place] = utterance, start
        return self.excerpts.cut(where, samples.tolist(), self.noise, spoken)


@dataclass(frozen=True)
class HeldOut:
    """Fixed windows of held-out utterances, with, for each, another of the same speaker."""

    batches: list[Batch]
    partner: NDArray[np.int64]  # [N] index of the window whose latents the probe borrows
    count: int


def held_out(excerpts: Excerpts, windows: int, batch: int) -> HeldOut | None:
    """The middle window of about ``windows`` held-out utterances, the same number per speaker
    (at least two, where there are two); None if the corpus holds none out."""
    utterances = excerpts.corpus.utterances
    chosen: list[int] = []
    partner: list[int] = []
    speakers = len(excerpts.corpus.speakers)
    for speaker in range(speakers):
        own = np.flatnonzero(utterances.heldout & (utterances.speaker == speaker))
        take = min(len(own), max(2, windows // speakers))
        picked = own[np.linspace(0, len(own) - 1, take).round().astype(int)] if take else own
        base = len(chosen)
        chosen.extend(int(u) for u in picked)
        partner.extend(base + (i + 1) % len(picked) for i in range(len(picked)))
    if not chosen:
        return None
    where = [
        (u, max(excerpts.left, (int(utterances.length[u]) - excerpts.window) // 2)) for u in chosen
    ]
    # Sample numbers serve the dither alone here; the same for every validation.
    batches = [
        excerpts.cut(where[i : i + batch], range(i, min(i + batch, len(where))), Noise())
        for i in range(0, len(where), batch)
    ]
    return HeldOut(batches, np.asarray(partner, dtype=np.int64), len(where))
