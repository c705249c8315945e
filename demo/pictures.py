"""What a sound looks like: mel bands and F0 by numpy alone, as images and curves for the page.

T samples at 16 kHz, F frames, M mel bands, W columns of a picture, U units.
"""

from __future__ import annotations

import base64
import struct
import zlib
from functools import lru_cache

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]
Bytes = npt.NDArray[np.uint8]

RATE = 16_000
_WINDOW, _HOP, _BANDS = 512, 160, 80
_RANGE_DB = 65.0  # of a picture, below its loudest band
_COLUMNS = 1200
_MIN_HZ, _MAX_HZ = 60.0, 500.0
_F0_WINDOW, _MOST_FRAMES = 1024, 3000
_LAG = 120  # of a voice of 133 Hz
_THRESHOLD = 0.45  # of YIN's normalised difference; above it a frame is unvoiced
_QUIET_DB = 45.0  # below the loudest frame nothing is voiced
# Night to teal to sand: dark enough for either theme.
_MAP = np.array(
    [
        (13, 27, 30),
        (15, 52, 57),
        (18, 88, 90),
        (32, 128, 120),
        (86, 170, 144),
        (172, 205, 160),
        (247, 238, 200),
    ],
    np.float64,
)


def log_mel(wav: Floats) -> Floats:
    """wav [T] -> decibels [M, F]; a frame every 10 ms, frame i centred on sample 160 i, a long
    sound's pooled to a picture's width by the maximum."""
    power = np.square(np.abs(_spectra(wav)))
    mel = 10 * np.log10(power @ _filters().T + 1e-10)
    return _pooled(mel.astype(np.float32).T)


def f0(wav: Floats) -> tuple[Floats, Floats]:
    """wav [T] -> seconds [F] and F0 in Hz [F], NaN where unvoiced: YIN (de Cheveigne and
    Kawahara 2002), difference function by FFT, with parabolic interpolation."""
    hop = max(_HOP, len(wav) // _MOST_FRAMES)
    count = 1 + len(wav) // hop
    half = _F0_WINDOW // 2
    # Above lie no fundamentals, but the noise that would hide them.
    heard = wav.astype(np.float64)
    if len(heard):
        heard = np.convolve(heard, _low_pass(), "same")
    longest = int(RATE / _MIN_HZ) + 2
    # What is compared lies a lag apart: its middle is half a lag, about, after the window's.
    padded = np.pad(heard, (half + _LAG // 2, half + hop + longest))
    starts = np.arange(count) * hop
    places = starts[:, None] + np.arange(_F0_WINDOW + longest)
    found = np.full(count, np.nan, np.float32)
    levels = np.zeros(count)
    for first in range(0, count, 500):  # bounds the memory
        rows = padded[places[first : first + 500]]
        found[first : first + 500] = _yin(rows, longest)
        levels[first : first + 500] = np.square(rows[:, :_F0_WINDOW]).mean(1)
    loud = levels > levels.max(initial=0.0) * 10 ** (-_QUIET_DB / 10)
    found[~loud | (levels < 1e-9)] = np.nan
    return (starts / RATE).astype(np.float32), _without_slips(found)


def mel_image(mel: Floats, loudest: float | None = None) -> str:
    """Decibels [M, F] -> a data URI of a PNG, low bands at the bottom."""
    top = float(mel.max(initial=-200.0)) if loudest is None else loudest
    scaled = np.clip((mel - (top - _RANGE_DB)) / _RANGE_DB, 0, 1)[::-1]
    at = scaled * (len(_MAP) - 1)
    low = np.minimum(at.astype(int), len(_MAP) - 2)
    part = (at - low)[..., None]
    pixels = _MAP[low] * (1 - part) + _MAP[low + 1] * part
    return _data_uri(pixels.round().astype(np.uint8))


def units_image(codes: npt.NDArray[np.int64]) -> str:
    """codes [U] -> a strip, a colour for each code: neighbours in number far apart in hue."""
    number = codes.astype(np.float64)
    hue = (number * 0.61803398875) % 1.0
    light = 0.42 + 0.3 * ((number * 7) % 11) / 10
    return _data_uri(_hsl(hue, 0.42, light)[None])


def _spectra(wav: Floats) -> npt.NDArray[np.complex128]:
    """Hann windows [F, window / 2 + 1]; of a long sound in hops that fit the picture."""
    hop = _HOP
    while 1 + len(wav) // hop > 8 * _COLUMNS:
        hop *= 2
    padded = np.pad(wav, (_WINDOW // 2, _WINDOW // 2 + hop))
    frames = np.lib.stride_tricks.sliding_window_view(padded, _WINDOW)[::hop]
    frames = frames[: 1 + len(wav) // hop]
    window = np.hanning(_WINDOW + 1)[:-1].astype(np.float32)
    return np.fft.rfft(frames * window, axis=1)


@lru_cache(maxsize=1)
def _filters() -> npt.NDArray[np.float64]:
    """Triangles [M, window / 2 + 1] of equal height, equally far apart on HTK's scale."""
    top = np.log10(1 + RATE / 2 / 700)
    edges = 700 * (10 ** (np.linspace(0, top, _BANDS + 2)) - 1)
    hz = np.arange(_WINDOW // 2 + 1) * RATE / _WINDOW
    rising = (hz - edges[:-2, None]) / np.diff(edges)[:-1, None]
    falling = (edges[2:, None] - hz) / np.diff(edges)[1:, None]
    return np.maximum(0, np.minimum(rising, falling))


def _pooled(mel: Floats) -> Floats:
    count = mel.shape[1]
    if count <= _COLUMNS:
        return mel
    edges = np.linspace(0, count, _COLUMNS, endpoint=False).astype(int)
    return np.maximum.reduceat(mel, edges, axis=1)


def _yin(rows: npt.NDArray[np.float64], longest: int) -> Floats:
    """rows [F, window + longest] -> F0 in Hz [F]."""
    size = 1 << (rows.shape[1] - 1).bit_length()
    window = rows[:, :_F0_WINDOW]
    spectra = np.fft.rfft(rows, size)
    product = np.conj(np.fft.rfft(window, size)) * spectra
    correlation = np.fft.irfft(product, size)[:, :longest]
    sums = np.concatenate((np.zeros((len(rows), 1)), np.cumsum(rows**2, axis=1)), axis=1)
    lags = np.arange(longest)
    energy = sums[:, lags + _F0_WINDOW] - sums[:, lags]
    difference = np.maximum(energy[:, :1] + energy - 2 * correlation, 0)
    mean = np.cumsum(difference[:, 1:], axis=1) / lags[1:]
    normal = np.ones_like(difference)
    normal[:, 1:] = difference[:, 1:] / np.maximum(mean, 1e-12)
    shortest = int(RATE / _MAX_HZ)
    inner = normal[:, shortest : longest - 1]
    # The first dip below the threshold, at its bottom; else none.
    dips = (
        (inner < _THRESHOLD)
        & (inner <= normal[:, shortest - 1 : longest - 2])
        & (inner < normal[:, shortest + 1 : longest])
    )
    at = dips.argmax(axis=1) + shortest
    row = np.arange(len(rows))
    before, here, after = (normal[row, at + k] for k in (-1, 0, 1))
    curve = before - 2 * here + after
    shift = np.where(curve > 1e-9, (before - after) / (2 * np.maximum(curve, 1e-9)), 0.0)
    hz: Floats = np.where(dips.any(axis=1), RATE / (at + shift), np.nan).astype(np.float32)
    return hz


@lru_cache(maxsize=1)
def _low_pass() -> npt.NDArray[np.float64]:
    """A windowed sinc, half of its height at 900 Hz."""
    taps = np.arange(-64, 65)
    shape = np.sinc(2 * 900 / RATE * taps) * np.hanning(len(taps))
    scaled: npt.NDArray[np.float64] = shape / shape.sum()
    return scaled


def _without_slips(hz: Floats) -> Floats:
    """Frames that stand alone, or an octave from both neighbours, are taken for slips."""
    kept: Floats = hz.copy()
    padded = np.pad(np.log2(hz), 1, constant_values=np.nan)
    left, right = (np.abs(padded[1:-1] - each) for each in (padded[:-2], padded[2:]))
    near = (left < 0.25) | (right < 0.25)
    kept[~near] = np.nan
    return kept


def _hsl(
    hue: npt.NDArray[np.float64], saturation: float, light: npt.NDArray[np.float64]
) -> npt.NDArray[np.float64]:
    """Hue and lightness [U] of 0 to 1 -> red, green, blue [U, 3] of 0 to 255."""
    spread = saturation * np.minimum(light, 1 - light)
    parts = []
    for offset in (0, 8, 4):
        k = (offset + hue * 12) % 12
        parts.append(light - spread * np.maximum(-1, np.minimum(np.minimum(k - 3, 9 - k), 1)))
    return 255 * np.stack(parts, axis=-1)


def _data_uri(pixels: npt.NDArray[np.generic]) -> str:
    """Pixels [H, W, 3] as a PNG file in an address."""
    height, width, _ = pixels.shape
    rows = np.ascontiguousarray(pixels, np.uint8).reshape(height, -1)
    raw = np.concatenate((np.zeros((height, 1), np.uint8), rows), axis=1).tobytes()
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    parts = [(b"IHDR", header), (b"IDAT", zlib.compress(raw, 6)), (b"IEND", b"")]
    png = b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in parts
    )
    return "data:image/png;base64," + base64.b64encode(png).decode("ascii")
