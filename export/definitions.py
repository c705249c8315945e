"""What follows from the configuration by formula, in numpy and float64: an independent truth for
the numbers that the networks compute and store (docs/bundle-format.md).

B batch, T samples, U units, N DFT bins, L lags, K codes, D latent width.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from vconv.config import ModelConfig
from vconv.geometry import FRAME_LENGTH, Geometry, Span
from vconv.weights import Tensors

Array = npt.NDArray[Any]

_RATE = 16000
_FRAME_FFT = 512
_BANDS = 80
_COEFFICIENTS = 13
# Pitch: decimation and its low-pass, the Hann window and its DFT, the bins and lags that are used.
_DECIMATION, _TAPS, _HANN, _PITCH_FFT = 4, 63, 256, 384
_BINS = np.arange(math.ceil(40 / 4000 * _PITCH_FFT), math.ceil(1300 / 4000 * _PITCH_FFT))
_LAGS_PER_OCTAVE = 48
_OCTAVES = math.log2(500) - np.arange(-1, 149) / _LAGS_PER_OCTAVE  # 500 to 60 Hz, and a lag more
_OCTAVE_COST = 0.03
_FLOOR = 10.0**-8.5
_UNVOICED, _VOICED = 0.45, 0.65
# Peaks of the autocorrelation nearer to each other than this may change places in float32.
_PEAK_MARGIN = 1e-4


def fixed_numbers(config: ModelConfig) -> Tensors:
    """The encoder's numbers that no training changes, under their eager names."""
    numbers = {"features.basis": _frame_basis(), "features.filters": _mel_filters()}
    if config.features.kind == "mfcc39":
        numbers |= {"features.dct": _dct(), "features.delta": _delta()}
    if config.decoder.pitch:
        numbers |= {
            "pitch.lowpass": _lowpass()[None, None],
            "pitch.basis": _pitch_basis()[:, None],
            "pitch.autocorrelation": _autocorrelation(),
            "pitch.cost": _cost()[:, None],
        }
    return numbers


def scalar_levels(levels: Sequence[int]) -> Tensors:
    """What FSQ of these levels stores (Mentzer et al. 2024): the bounds of its rounding, and the
    codebook [K, D], the first number's level changing fastest."""
    count = np.array(levels, np.float64)
    reach = (count - 1) * (1 - 1e-3) / 2
    offset = np.where(count % 2 == 1, 0.0, 0.5)
    width = count // 2
    digits = np.stack(np.unravel_index(np.arange(math.prod(levels)), levels, order="F"), axis=1)
    return {
        "bottleneck.reach": reach,
        "bottleneck.offset": offset,
        "bottleneck.shift": np.tan(offset / reach),
        "bottleneck.width": width,
        "bottleneck.codebook": (digits - width) / width,
    }


def pitch_of(wav: Array, geometry: Geometry) -> tuple[Array, npt.NDArray[np.bool_]]:
    """wav [B, T] -> log2 of F0 in Hz and voicing [B, U, 2] (Boersma 1993), and where [B, U] these
    are clear: no other peak of the autocorrelation is as high as the one they tell of."""
    r = _normalised_autocorrelation(wav, geometry)
    here, before, after = r[..., 1:-1], r[..., :-2], r[..., 2:]
    heights = np.where((here > before) & (here >= after), here - _cost(), -10.0)
    best = heights.argmax(-1)[..., None]
    found = np.take_along_axis(heights, best, -1) > -10
    # A peak between two lags may be either's: both tell the same pitch.
    lags = np.arange(heights.shape[-1])
    nearly = (here > before - _PEAK_MARGIN) & (here >= after - _PEAK_MARGIN)
    rivals = np.where(nearly & (np.abs(lags - best) > 1), here - _cost(), -20.0)
    clear = np.take_along_axis(heights, best, -1) - rivals.max(-1, keepdims=True) > _PEAK_MARGIN
    # Where no peak is anywhere near a voice's, it does not matter which is the highest.
    clear |= (nearly * here).max(-1, keepdims=True) < _UNVOICED - 0.1
    low, top, high = (np.take_along_axis(x, best, -1) for x in (before, here, after))
    offset = np.clip(0.5 * (high - low) / np.maximum(2 * top - low - high, 1e-6), -0.5, 0.5)
    height = top + 0.25 * (high - low) * offset
    octave = _OCTAVES[1] - (best + offset) / _LAGS_PER_OCTAVE
    voicing = np.clip((height - _UNVOICED) / (_VOICED - _UNVOICED), 0, 1) * found
    return np.concatenate((octave, voicing), axis=-1), clear[..., 0]


def _normalised_autocorrelation(wav: Array, geometry: Geometry) -> Array:
    """wav [B, T] -> [B, U, L]."""
    span = (_HANN - 1) * _DECIMATION + _TAPS
    left = int(geometry.encoder.anchor(0)) - span // 2
    units = len(geometry.encoder.outputs(Span(0, wav.shape[1])))
    used = wav[:, left : left + (units - 1) * geometry.unit_hop + span].astype(np.float64)
    low = _windows(used, _TAPS, _DECIMATION) @ _lowpass()
    spectrum = _windows(low, _HANN, geometry.unit_hop // _DECIMATION) @ _pitch_basis().T
    power = spectrum[..., : len(_BINS)] ** 2 + spectrum[..., len(_BINS) :] ** 2
    floor = _FLOOR * _PITCH_FFT / 2 * (_hann() ** 2).sum()
    r: Array = power @ _autocorrelation().T / (power.sum(-1, keepdims=True) + floor)
    return r


def _windows(x: Array, length: int, hop: int) -> Array:
    return np.lib.stride_tricks.sliding_window_view(x, length, axis=-1)[..., ::hop, :]


def _frame_basis() -> Array:
    """Windowed DFT of a frame, cosines then sines: [2N, 1, 400]."""
    time, bins = np.arange(FRAME_LENGTH), np.arange(_FRAME_FFT // 2 + 1)
    window = 0.5 - 0.5 * np.cos(2 * np.pi * time / FRAME_LENGTH)
    return (_dft(time, bins, _FRAME_FFT) * window)[:, None]


def _mel_filters() -> Array:
    top = 2595 * math.log10(1 + _RATE / 2 / 700)  # the HTK mel scale
    edges = 700 * (10 ** (np.linspace(0, top, _BANDS + 2) / 2595) - 1)
    hertz = np.arange(_FRAME_FFT // 2 + 1) * _RATE / _FRAME_FFT
    low, centre, high = (edges[i : i + _BANDS, None] for i in range(3))
    slopes = np.minimum((hertz - low) / (centre - low), (high - hertz) / (high - centre))
    filters: Array = np.clip(slopes, 0, None)
    return filters


def _dct() -> Array:
    """Orthonormal DCT-II [13, 80]."""
    rows = np.arange(_COEFFICIENTS)[:, None]
    scale = np.where(rows == 0, 1.0, math.sqrt(2)) / math.sqrt(_BANDS)
    matrix: Array = np.cos(np.pi / _BANDS * (np.arange(_BANDS) + 0.5) * rows) * scale
    return matrix


def _delta() -> Array:
    """Least-squares slope over five frames [13, 1, 5]."""
    return np.tile(np.arange(-2, 3) / 10, (_COEFFICIENTS, 1, 1))


def _lowpass() -> Array:
    time = np.arange(_TAPS) - _TAPS // 2
    taps = np.sinc(time / _DECIMATION) * np.kaiser(_TAPS, 6.0)
    normalised: Array = taps / taps.sum()
    return normalised


def _hann() -> Array:
    return np.sin(np.pi * (np.arange(_HANN) + 0.5) / _HANN) ** 2


def _pitch_basis() -> Array:
    return _dft(np.arange(_HANN), _BINS, _PITCH_FFT) * _hann()


def _autocorrelation() -> Array:
    """From power to autocorrelation over the window's own (Boersma 1993, equation 8): [L, N]."""
    lags = _RATE / _DECIMATION / 2 ** _OCTAVES[:, None]
    share = lags / _HANN
    own = (1 - share) * (2 / 3 + np.cos(2 * np.pi * share) / 3)
    own += np.sin(2 * np.pi * share) / (2 * np.pi)
    matrix: Array = np.cos(2 * np.pi / _PITCH_FFT * lags * _BINS) / own
    return matrix


def _cost() -> Array:
    """Of lags below the highest pitch, in proportion to their octaves [L - 2]."""
    cost: Array = _OCTAVE_COST * (_OCTAVES[1] - _OCTAVES[1:-1])
    return cost


def _dft(time: Array, bins: Array, size: int) -> Array:
    """Cosines, then sines: [2 x bins, time]."""
    phase = 2 * np.pi * (bins[:, None] * time % size) / size
    return np.concatenate([np.cos(phase), np.sin(phase)])
