"""Which of several continuations of the same sound is nearest to a recording.

N candidates, T samples of a step, M mel bands, F frames of 10 ms.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from vconv.geometry import FRAME_HOP
from vconv.nn.features import SAMPLE_RATE, LogMel

Floats = NDArray[np.floating]

STEP = 640  # samples between two choices: 40 ms, whole units of every member of the family
# Heard together with a step: its first frames begin there, and 60 ms in all hold three periods of
# a low voice. What ends in the middle of a frame is heard with the next step.
BEFORE = 2 * FRAME_HOP
VOICE_WEIGHT = 3.0
# Lags of a pitch of 60 to 500 Hz.
_SHORTEST, _LONGEST = SAMPLE_RATE // 500, SAMPLE_RATE // 60
_SPEECH_RMS = 0.005  # of the recording; below it there is no voice to be kept
# Added to the power of a mel band: what is softer, near the noise of a quiet room, shall not count.
_LOG_FLOOR = float(np.log(1e-2))
_LEAST_ENERGY = 1e-6


@dataclass(frozen=True)
class Scores:
    """How far candidates are from a recording: log-mel power (nats) and voice (0 to 1), each [N],
    and whether the recording speaks there."""

    mel: Floats
    voice: Floats
    speech: bool

    @property
    def total(self) -> Floats:
        """What is to be least [N]: voice counts only where there is speech."""
        return np.asarray(self.mel + VOICE_WEIGHT * self.voice if self.speech else self.mel)


class Judge:
    """Holds candidates against a recording; any number of threads may use one."""

    def __init__(self) -> None:
        self._features = LogMel()

    def __call__(self, candidates: Floats, recording: Floats) -> Scores:
        """candidates [N, BEFORE + T] and the recording at the same place [BEFORE + T] -> scores.

        What is compared is the mean absolute difference of the log-mel power, over bands and
        frames, and the difference of how periodic the two are (`periodicity`).
        """
        sounds = np.concatenate([recording[None], candidates])
        mel = self._log_mel(sounds)
        voice = periodicity(sounds)
        rms = np.sqrt(np.square(recording, dtype=np.float64).mean())
        return Scores(
            mel=np.abs(mel[1:] - mel[0]).mean((1, 2)),
            voice=np.abs(voice[1:] - voice[0]),
            speech=bool(rms > _SPEECH_RMS),
        )

    @torch.no_grad()
    def _log_mel(self, sounds: Floats) -> Floats:
        """[N, T] -> [N, M, F]: the networks' own features on a higher floor."""
        raw = self._features.raw(torch.from_numpy(sounds.astype(np.float32)))
        return np.logaddexp(raw.numpy().astype(np.float64), _LOG_FLOOR)


def periodicity(sounds: Floats) -> Floats:
    """The highest normalised autocorrelation at the lags of a voice's pitch: [N, T] -> [N].

    At lag l it is sum_t x(t) x(t + l) over the root of the energies of the two stretches, 1 for a
    signal that repeats. Over the whole band and without a threshold, other than `vconv.nn.pitch`,
    which decides whether there is a voice: a whisper differs from a voice in the upper harmonics,
    and a candidate that is half-voiced is to be told from one that is not.
    """
    samples = sounds.shape[1]
    wide = sounds.astype(np.float64)
    lags = np.arange(_SHORTEST, _LONGEST + 1)
    size = 1 << (samples + _LONGEST - 1).bit_length()  # lags do not wrap around
    spectrum = np.fft.rfft(wide, size)
    products = np.fft.irfft(np.abs(spectrum) ** 2, size)[:, lags]
    energy = np.pad(np.cumsum(np.square(wide), axis=1), ((0, 0), (1, 0)))
    before, after = energy[:, samples - lags], energy[:, -1:] - energy[:, lags]
    return np.asarray((products / np.sqrt(before * after + _LEAST_ENERGY)).max(1))
