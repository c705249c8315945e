"""How two sounds differ: cepstra under a warped time axis, F0, level, lost frames, pauses.

T samples at 16 kHz, F frames of 10 ms (``train.conversion_figure``), N frames of 20 ms.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.fft import dct

from ..conversion_figure import Acoustics

Floats = NDArray[np.floating]

CEPSTRA = 13
_LOUD_DB = 25.0  # below the loudest frame of the input: speech
_LOST_DB = 30.0  # quieter than the input: gone
_SILENT_DBFS = -65.0
_HEARD_DB = 40.0  # below the loudest frame of the reference: counts for the distortion
_FRAME = 320
_FEWEST_VOICED = 10


def cepstra(sound: Acoustics) -> Floats:
    """Mel cepstra 1 to 13, [13, F]: c_m = 1/M sum_k ln P_k cos(pi m (k + 1/2) / M), P the power in
    M mel bands. ln|H| = c_0 + sum_m c_m cos(m w) then, as the formula of the distortion wants it.
    """
    bands = len(sound.mel)
    made = dct(sound.mel.astype(np.float64), axis=0) / (2 * bands)
    return np.asarray(made[1 : CEPSTRA + 1])


def distortion_db(sound: Acoustics, reference: Acoustics) -> float:
    """Mel-cepstral distortion along the best path (DTW), in dB.

    Mean of 10 / ln 10 sqrt(2 sum_m (c_m - c'_m)^2) (Kubichek 1993) over the steps of the path at
    which the reference is heard: within 40 dB of its loudest frame.
    """
    from librosa.sequence import dtw

    ours, theirs = cepstra(sound), cepstra(reference)
    _, path = dtw(ours, theirs)
    power = np.exp(reference.mel.astype(np.float64)).sum(0)
    heard = power[path[:, 1]] >= power.max() * 10 ** (-_HEARD_DB / 10)
    here, there = path[heard].T
    squares = np.square(ours[:, here] - theirs[:, there]).sum(0)
    return float(10 / np.log(10) * np.mean(np.sqrt(2 * squares)))


def semitones(sound: Acoustics, reference: Acoustics) -> float | None:
    """How far the median F0 lies above the reference's; None if either has no voice."""
    ours, theirs = sound.median_f0_hz, reference.median_f0_hz
    return None if not ours or not theirs else float(12 * np.log2(ours / theirs))


def f0_correlation(sound: Acoustics, source: Acoustics) -> float | None:
    """Of log F0, over the frames that are voiced in both; None of fewer than ten."""
    frames = min(len(sound.f0_hz), len(source.f0_hz))
    pair = np.log2(np.stack([sound.f0_hz[:frames], source.f0_hz[:frames]]).astype(np.float64))
    pair = pair[:, np.isfinite(pair).all(0)]
    if pair.shape[1] < _FEWEST_VOICED or (pair.std(1) == 0).any():
        return None
    return float(np.corrcoef(pair)[0, 1])


def voiced(sound: Acoustics, source: Acoustics) -> tuple[int, int]:
    """(Frames that are voiced in both, frames that are in the source)."""
    frames = min(len(sound.f0_hz), len(source.f0_hz))
    before = np.isfinite(source.f0_hz[:frames])
    return int((before & np.isfinite(sound.f0_hz[:frames])).sum()), int(before.sum())


def levels_db(wav: Floats) -> Floats:
    """RMS of each whole 20 ms in dB re full scale, [T] -> [N]; -120 at least."""
    frames = len(wav) // _FRAME
    power = np.square(wav[: frames * _FRAME].astype(np.float64)).reshape(frames, _FRAME).mean(1)
    return np.asarray(10 * np.log10(np.maximum(power, 1e-12)))


def dropped(source: Floats, made: Floats) -> tuple[int, int]:
    """(Frames where the output is 30 dB or more below the input, loud frames of the input)."""
    before, after = _both(source, made)
    loud = before >= before.max(initial=-120.0) - _LOUD_DB
    return int((loud & (after <= before - _LOST_DB)).sum()), int(loud.sum())


def floor_db(source: Floats, made: Floats) -> float | None:
    """The output's median level where the input is below -65 dBFS; None if it never is."""
    before, after = _both(source, made)
    silent = before < _SILENT_DBFS
    return float(np.median(after[silent])) if silent.any() else None


def _both(source: Floats, made: Floats) -> tuple[Floats, Floats]:
    before, after = levels_db(source), levels_db(made)
    frames = min(len(before), len(after))
    return before[:frames], after[:frames]
