"""Changes to the encoder's input alone, so that its units keep what is said and not who said it.

The decoder's target stays as it was, so every change here keeps the timing of the row. What a row
is given depends on (seed, sample number) alone, and switching one kind on or off does not change
what another draws.

B rows, T samples, F frequency bins, N frames.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import librosa
import numpy as np
import numpy.typing as npt
from scipy.fft import irfft, next_fast_len, rfft, rfftfreq
from scipy.interpolate import PchipInterpolator

from vconv.audio import SAMPLE_RATE
from vconv.config import AugmentConfig

from .noise import Stream, generator

Audio = npt.NDArray[np.float32]
Array = npt.NDArray[np.float64]

N_FFT = 512  # 32 ms, every 8: longer frames smear the phase vocoder's onsets
ORDER = 20  # of linear prediction: a resonance for every 800 Hz
BANDWIDTH_HZ = 40.0  # narrower peaks of the envelope are the pitch's harmonics, not resonances
# Resampling leaves little above this fraction of the lower Nyquist frequency.
PASSBAND = 0.9

OCTAVES_HZ: Array = np.geomspace(125.0, 8000.0, 7)  # 125 ... 8000: the equaliser's knots
SNR_RANGE_DB = 30.0


@dataclass(frozen=True)
class Augmentation:
    """What one row is given; a kind that is off has its neutral value.

    ``pitch`` and ``formant`` are factors of frequencies; ``equaliser_db`` is the response at
    ``OCTAVES_HZ``; ``colour`` the slope of the noise's power spectrum, from 0 (white) to 1 (pink).
    """

    pitch: float
    formant: float
    equaliser_db: Array
    gain_db: float
    snr_db: float | None
    colour: float

    @classmethod
    def draw(cls, random: np.random.Generator, config: AugmentConfig) -> Augmentation:
        """Always the same random numbers in the same order, whatever is on."""
        pitch, formant, gain, *equaliser = random.uniform(-1, 1, 3 + len(OCTAVES_HZ))
        above, colour = random.random(2)
        floor = config.noise_snr_db
        return cls(
            pitch=2 ** (config.pitch_semitones * pitch / 12),
            formant=(1 + config.formant) ** formant,
            equaliser_db=config.equaliser_db * np.asarray(equaliser),
            gain_db=config.gain_db * gain,
            snr_db=None if floor is None else floor + SNR_RANGE_DB * above,
            colour=colour,
        )


def augment(wav: Audio, seed: int, gs: Iterable[int], config: AugmentConfig) -> Audio:
    """Rows wav [B, T] of sample numbers gs [B] -> [B, T]: pitch, formants, equaliser, gain, noise.

    Sample t of a row still sounds at t. With everything off the result is ``wav`` itself.
    """
    if config == AugmentConfig():
        return wav
    return np.stack([_augmented(row, seed, int(g), config) for row, g in zip(wav, gs, strict=True)])


def _augmented(wav: Audio, seed: int, g: int, config: AugmentConfig) -> Audio:
    random = generator(seed, g, Stream.AUGMENT)
    given = Augmentation.draw(random, config)
    if not wav.any():
        return wav  # silence has no level for the noise to keep its distance from
    if config.pitch_semitones or config.formant:
        wav = move_voice(wav, given.pitch, given.formant)
    if config.equaliser_db:
        wav = equalise(wav, given.equaliser_db)
    if config.gain_db:
        wav = wav * np.float32(10 ** (given.gain_db / 20))
    if given.snr_db is not None:
        level = _rms(wav) * 10 ** (-given.snr_db / 20)
        wav = wav + coloured_noise(random, len(wav), given.colour, level)
    return wav


def move_voice(wav: Audio, pitch: float, formant: float) -> Audio:
    """wav [T] with its pitch and its resonances each times a factor [T], as loud at every moment.

    The pitch is moved by a phase vocoder and resampling, which take the resonances along; each
    bin is then weighted by the spectral envelope that it should have over the one that it came
    with. Both are the original's envelope, read at other frequencies.
    """
    spectrum = librosa.stft(wav, n_fft=N_FFT)  # [F, N]
    power = np.square(np.abs(spectrum))
    bins = np.arange(len(spectrum), dtype=np.float64)
    came_from = bins.copy()
    if pitch != 1:
        # The top of the band, which resampling takes away, stays the original's: there (above 5 kHz
        # when the pitch falls by half an octave) speech is noise, without a pitch.
        moved = bins < PASSBAND * min(pitch, 1.0) * bins[-1]
        spectrum = np.where(moved[:, None], _repitched(spectrum, pitch, len(wav)), spectrum)
        came_from[moved] /= pitch
    wanted = np.minimum(bins / formant, bins[-1])
    inverse = _inverse_envelope(power)
    weight = np.sqrt(_at(inverse, came_from) / _at(inverse, wanted))
    spectrum = spectrum * weight.astype(np.float32)
    # The vocoder spreads onsets and lets harmonics beat; the original's level, frame by frame,
    # also keeps the timing. The constant, a level of -107 dB, is for frames of silence.
    now = np.square(np.abs(spectrum))
    spectrum *= np.sqrt((power.sum(axis=0) + 1e-6) / (now.sum(axis=0) + 1e-6))
    result: Audio = librosa.istft(spectrum, n_fft=N_FFT, length=len(wav))
    result *= np.float32(_rms(wav) / _rms(result))
    return result


def _repitched(
    spectrum: npt.NDArray[np.complex64], pitch: float, samples: int
) -> npt.NDArray[np.complex64]:
    """Spectrum [F, N] of a sound -> the same with all its frequencies times ``pitch``."""
    # librosa.effects.pitch_shift, from a spectrum that is there already.
    slowed = librosa.phase_vocoder(spectrum, rate=1 / pitch)
    stretched = librosa.istft(slowed, n_fft=N_FFT, length=round(samples * pitch))
    resampled = librosa.resample(stretched, orig_sr=SAMPLE_RATE * pitch, target_sr=SAMPLE_RATE)
    shifted: npt.NDArray[np.complex64] = librosa.stft(
        librosa.util.fix_length(resampled, size=samples), n_fft=N_FFT
    )
    return shifted


def _inverse_envelope(power: Audio) -> Array:
    """Power spectra [F, N] -> the cosine series [ORDER + 1, N] of the prediction filter's power
    response: one over the envelope (Markel & Gray 1976, autocorrelation method)."""
    # Pre-emphasis takes off the voice source's slope, which is no resonance.
    flat = power * (1.9025 - 1.9 * np.cos(np.linspace(0, np.pi, len(power))))[:, None]  # 0.95
    lags = np.arange(ORDER + 1)
    # A lag window widens the peaks (Tohkura et al. 1978), a faint floor keeps silence solvable.
    window = np.exp(-0.5 * np.square(2 * np.pi * BANDWIDTH_HZ / SAMPLE_RATE * lags))
    correlation = irfft(flat, axis=0)[: ORDER + 1].T * window  # [N, ORDER + 1]
    correlation[:, 0] = correlation[:, 0] * (1 + 1e-9) + 1e-9
    toeplitz = correlation[:, np.abs(lags[1:, None] - lags[1:])]
    predictor = np.linalg.solve(toeplitz, correlation[:, 1:, None])[:, :, 0]
    whitener = np.concatenate([np.ones((len(predictor), 1)), -predictor], axis=1)
    series = [(whitener[:, : ORDER + 1 - q] * whitener[:, q:]).sum(axis=1) for q in lags]
    return np.stack([series[0], *(2 * term for term in series[1:])])


def _at(series: Array, bins: Array) -> Array:
    """The values of cosine series [ORDER + 1, N] at these (fractional) bins [F] -> [F, N]."""
    cosines = np.cos(2 * np.pi / N_FFT * np.outer(bins, np.arange(ORDER + 1)))
    # Not a matrix product: BLAS would start threads, which cost more here than they save.
    values: Array = np.einsum("fq,qn->fn", cosines, series)
    return values


def equalise(wav: Audio, response_db: Array) -> Audio:
    """wav [T] through a zero-phase filter of this response at ``OCTAVES_HZ`` [T].

    In between the response is interpolated over log frequency without leaving the knots' range.
    """
    # 100 ms of zeros, longer than the response of so smooth a curve, part the row's two ends.
    size = next_fast_len(len(wav) + SAMPLE_RATE // 10, real=True)
    hz = np.clip(rfftfreq(size, 1 / SAMPLE_RATE), OCTAVES_HZ[0], OCTAVES_HZ[-1])
    curve_db = PchipInterpolator(np.log2(OCTAVES_HZ), response_db)(np.log2(hz))
    weight = (10 ** (curve_db / 20)).astype(np.float32)
    filtered: Audio = irfft(rfft(wav, size) * weight, size)[: len(wav)]
    return filtered


def coloured_noise(random: np.random.Generator, samples: int, colour: float, level: float) -> Audio:
    """Noise [T] of power spectrum 1 / f ** colour (flat below 50 Hz) and of this RMS."""
    size = next_fast_len(samples, real=True)
    slope = np.maximum(rfftfreq(size, 1 / SAMPLE_RATE), 50) ** (-colour / 2)
    white = rfft(random.standard_normal(size, dtype=np.float32))
    noise: Audio = irfft(white * slope.astype(np.float32), size)[:samples]
    noise *= np.float32(level / _rms(noise))
    return noise


def _rms(wav: Audio) -> float:
    return float(np.sqrt(np.mean(np.square(wav, dtype=np.float64))))
