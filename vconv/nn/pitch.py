"""Pitch and voicing as a fixed network, so that an exported encoder tells them too.

B batch, T samples, U units, N DFT bins, L lags.

Boersma 1993 ("Accurate short-term analysis of the fundamental frequency and the harmonics-to-noise
ratio of a sampled sound", equations 8 to 10): the pitch period is the lag of the highest peak of
the signal's autocorrelation, which is that of a windowed stretch divided by the window's own.
The autocorrelation is the cosine transform of the power spectrum, so it is evaluated directly at
lags spaced evenly on a logarithmic scale, at whatever fraction of a sample they fall. Each unit is
decided by itself, without a path through its neighbours: a chunk and the file give the same pitch.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

SAMPLE_RATE = 16000
DECIMATION = 4
LOWPASS_TAPS = 63
HANN_LENGTH = 256  # decimated samples: 64 ms, nearly four periods of the lowest pitch
WINDOW = (HANN_LENGTH - 1) * DECIMATION + LOWPASS_TAPS  # samples that one estimate needs: 1083

MIN_HZ = 60.0
MAX_HZ = 500.0
LAGS_PER_OCTAVE = 48
_RATE = SAMPLE_RATE // DECIMATION
_N_FFT = 384  # the Hann window and half as much silence: lags up to 128 do not wrap around
# The signal's mean leaks into lower bins; the peaks of higher harmonics are narrower than the grid.
_BAND_HZ = (40.0, 1300.0)
# What each octave down costs (Boersma's OctaveCost): two periods repeat as well as one. Praat's
# 0.01 relies on a path through the frames; without one 0.03 errs least, up about as often as down.
_OCTAVE_COST = 0.03
# Added to the power that peaks are normalised by: what is softer is unvoiced. Low enough for the
# ends of words in soft recordings, and above what rounding to 16 bits leaves, about -109 dB.
_FLOOR_DB = -85.0
# Peaks from which a unit begins to be voiced, and at which it is wholly so.
_UNVOICED, _VOICED = 0.45, 0.65


def _lowpass() -> Tensor:
    """Windowed sinc that lets pass what decimation keeps: [1, 1, taps]. Half the decimated rate
    lies in the middle of its slope; what still folds back lies above the band that is used."""
    time = torch.arange(LOWPASS_TAPS, dtype=torch.float64) - LOWPASS_TAPS // 2
    taps = torch.sinc(time / DECIMATION) * torch.kaiser_window(
        LOWPASS_TAPS, periodic=False, beta=6.0, dtype=torch.float64
    )
    return (taps / taps.sum()).float()[None, None]


def _bins() -> Tensor:
    low, high = (math.ceil(hz * _N_FFT / _RATE) for hz in _BAND_HZ)
    return torch.arange(low, high, dtype=torch.float64)


def _hann() -> Tensor:
    """Symmetric about the middle of its samples, no sample wasted on a zero."""
    time = torch.arange(HANN_LENGTH, dtype=torch.float64)
    return torch.sin(math.pi * (time + 0.5) / HANN_LENGTH).square()


def _dft_basis() -> Tensor:
    """Hann-windowed DFT as convolution kernels, cosines then sines: [2N, 1, 256]."""
    time = torch.arange(HANN_LENGTH, dtype=torch.float64)
    phase = 2 * math.pi / _N_FFT * _bins()[:, None] * time
    return torch.cat([torch.cos(phase), torch.sin(phase)]).mul(_hann())[:, None].float()


def _lag_octaves() -> Tensor:
    """log2 of the frequencies 1 / lag, from high to low; one more at each end, for a peak is
    higher than both its neighbours."""
    steps = math.ceil(LAGS_PER_OCTAVE * math.log2(MAX_HZ / MIN_HZ))
    return math.log2(MAX_HZ) - torch.arange(-1, steps + 2, dtype=torch.float64) / LAGS_PER_OCTAVE


def _autocorrelation() -> Tensor:
    """From power to autocorrelation over the Hann window's own (Boersma's eq. 8): [L, N]."""
    lags = _RATE * torch.exp2(-_lag_octaves())
    share = lags / HANN_LENGTH
    hann = (1 - share) * (2 / 3 + torch.cos(2 * math.pi * share) / 3)
    hann += torch.sin(2 * math.pi * share) / (2 * math.pi)
    cosines = torch.cos(2 * math.pi / _N_FFT * lags[:, None] * _bins())
    return (cosines / hann[:, None]).float()


class Pitch(nn.Module):
    """log2 F0 and voicing of units, every ``hop`` samples.

    ``left`` and ``right`` samples are cropped off the signal first, then each unit is told from
    WINDOW samples: T samples give (T - left - right - WINDOW) // hop + 1 units, and unit u is
    centred on sample left + WINDOW // 2 + u * hop.
    """

    lowpass: Tensor
    basis: Tensor
    autocorrelation: Tensor
    cost: Tensor
    speaker_means: Tensor

    def __init__(self, left: int, right: int, speakers: int, hop: int = 320) -> None:
        super().__init__()
        assert hop % DECIMATION == 0
        self.margins = (-left, -right)
        self.hop = hop
        octaves = _lag_octaves()
        self.highest = float(octaves[1])
        self.floor = 10 ** (_FLOOR_DB / 10) * _N_FFT / 2 * float(_hann().square().sum())
        # Recomputed, not stored: they are constants of the code, not of the training.
        self.register_buffer("lowpass", _lowpass(), persistent=False)
        self.register_buffer("basis", _dft_basis(), persistent=False)
        self.register_buffer("autocorrelation", _autocorrelation(), persistent=False)
        cost = _OCTAVE_COST * (octaves[1] - octaves[1:-1])
        self.register_buffer("cost", cost.float()[:, None], persistent=False)
        # Mean log2 F0 of each speaker over voiced units; zeros until they are measured.
        self.register_buffer("speaker_means", torch.zeros(speakers))

    def forward(self, wav: Tensor) -> Tensor:
        """wav [B, T] -> [B, 2, U]: log2(F0 / 1 Hz), and voicing from 0 to 1."""
        # In fp32 whatever the autocast: the power of a frame spans more than bf16 resolves.
        with torch.autocast(wav.device.type, enabled=False):
            r = self._normalised_autocorrelation(wav)
            before, here, after = r[:, :-2], r[:, 1:-1], r[:, 2:]
            peaks = (here > before) & (here >= after)
            best = torch.where(peaks, here - self.cost, -10.0).argmax(1, keepdim=True)
            before, here, after, found = (x.gather(1, best) for x in (before, here, after, peaks))
            # The parabola through the peak and its neighbours; with no peak, anything finite.
            curvature = (2 * here - before - after).clamp(min=1e-6)
            offset = (0.5 * (after - before) / curvature).clamp(-0.5, 0.5)
            height = here + 0.25 * (after - before) * offset
            octave = self.highest - (best + offset) / LAGS_PER_OCTAVE
            voicing = ((height - _UNVOICED) / (_VOICED - _UNVOICED)).clamp(0, 1) * found
            return torch.cat([octave, voicing], dim=1)

    def _normalised_autocorrelation(self, wav: Tensor) -> Tensor:
        """wav [B, T] -> [B, L, U], 1 at the lags after which the signal repeats."""
        # Padding by less than nothing: of a slice's length the exporter knows only that it is some.
        wav = functional.pad(wav, self.margins)[:, None]
        low = functional.conv1d(wav, self.lowpass, stride=DECIMATION)
        spectrum = functional.conv1d(low, self.basis, stride=self.hop // DECIMATION)
        real, imaginary = spectrum.chunk(2, dim=1)
        power = real.square() + imaginary.square()
        total = power.sum(1, keepdim=True) + self.floor
        return torch.matmul(self.autocorrelation, power) / total


def relative(pitch: Tensor, mean: Tensor) -> Tensor:
    """pitch [B, 2, U], mean log2 F0 of each item's speaker [B] -> [B, 2, U]: octaves above the
    mean, 0 where unvoiced, and voicing."""
    octave, voicing = pitch.unbind(1)
    return torch.stack([(octave - mean[:, None]) * voicing, voicing], dim=1)


def voiced_sums(pitch: Tensor) -> tuple[Tensor, Tensor]:
    """pitch [B, 2, U] -> the sum of log2 F0 weighted by voicing and the sum of voicing, each [B].

    Mean log2 F0 over voiced units, of however many waveforms: the first sums over the second.
    """
    octave, voicing = pitch.unbind(1)
    return (octave * voicing).sum(1), voicing.sum(1)
