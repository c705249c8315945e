"""Log-mel frames and MFCCs as fixed networks, so that an exported encoder takes a waveform.

B batch, T samples, N DFT bins (257), M mel bands (80), F frames, K cepstral coefficients (13).

Frames lie wholly inside the signal: T samples give (T - 400) // 160 + 1 frames, and nothing looks
at the whole file, so a chunk and the file give the same features. Both kinds have the interface
`channels`, `raw` (as computed), `forward` (normalised by the corpus statistics `mean` and `std`).
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..errors import SetupError
from ..geometry import FRAME_HOP, FRAME_LENGTH

SAMPLE_RATE = 16000
N_FFT = 512
N_MELS = 80
N_MFCC = 13
DELTA_REACH = 2  # frames to each side: regression over five
LOG_FLOOR = 1e-6


def _dft_basis() -> Tensor:
    """Hann-windowed DFT of one frame as convolution kernels, cosines then sines: [2N, 1, 400].

    The frame is zero-padded to N_FFT samples, which only sets the bins' frequencies; where in
    the padded block it stands does not change the power.
    """
    window = torch.hann_window(FRAME_LENGTH, periodic=True, dtype=torch.float64)
    time = torch.arange(FRAME_LENGTH, dtype=torch.float64)
    bins = torch.arange(N_FFT // 2 + 1, dtype=torch.float64)
    phase = 2 * math.pi / N_FFT * bins[:, None] * time
    return torch.cat([torch.cos(phase), torch.sin(phase)]).mul(window)[:, None].float()


def _torchaudio() -> Any:
    try:
        import torchaudio.functional
    except (ImportError, OSError) as error:
        raise SetupError(
            "torchaudio cannot be imported with this torch; install a matching pair, such as "
            "torch 2.11 with torchaudio 2.11 (pip install 'vconv[train]')."
        ) from error
    return torchaudio.functional


def _mel_filters() -> Tensor:
    """HTK mel filterbank without normalisation, as [M, N]."""
    filters: Tensor = _torchaudio().melscale_fbanks(
        N_FFT // 2 + 1, 0.0, SAMPLE_RATE / 2, N_MELS, SAMPLE_RATE, norm=None, mel_scale="htk"
    )
    return filters.T.contiguous()


def _dct_matrix() -> Tensor:
    """Orthonormal DCT-II, its first coefficients, as [K, M]."""
    matrix: Tensor = _torchaudio().create_dct(N_MFCC, N_MELS, norm="ortho")
    return matrix.T.contiguous()


def _delta_kernels() -> Tensor:
    """Slope of the line fitted to five frames, a kernel for each coefficient: [K, 1, 5]."""
    offsets = torch.arange(-DELTA_REACH, DELTA_REACH + 1.0)
    return (offsets / offsets.square().sum()).repeat(N_MFCC, 1, 1)


def _log_mel(wav: Tensor, basis: Tensor, filters: Tensor) -> Tensor:
    """ln(mel power + 1e-6) of 25 ms frames every 10 ms: wav [B, T] -> [B, M, F]."""
    spectrum = functional.conv1d(wav[:, None], basis, stride=FRAME_HOP)
    real, imaginary = spectrum.chunk(2, dim=1)
    mel = torch.matmul(filters, real.square() + imaginary.square())
    return torch.log(mel + LOG_FLOOR)


def _register(module: nn.Module, channels: int, **constants: Tensor) -> None:
    """Constants of the code are recomputed, not stored; the corpus statistics are stored."""
    for name, constant in constants.items():
        module.register_buffer(name, constant, persistent=False)
    module.register_buffer("mean", torch.zeros(channels))
    module.register_buffer("std", torch.ones(channels))


class LogMel(nn.Module):
    """ln(mel power + 1e-6) of 25 ms frames every 10 ms, normalised by corpus statistics."""

    basis: Tensor
    filters: Tensor
    mean: Tensor
    std: Tensor

    def __init__(self) -> None:
        super().__init__()
        _register(self, N_MELS, basis=_dft_basis(), filters=_mel_filters())

    @property
    def channels(self) -> int:
        return self.mean.numel()

    def raw(self, wav: Tensor) -> Tensor:
        """wav [B, T] -> log-mel [B, M, F], not normalised."""
        return _log_mel(wav, self.basis, self.filters)

    def forward(self, wav: Tensor) -> Tensor:
        """wav [B, T] -> features [B, M, F], zero mean and unit variance over the corpus."""
        # In fp32 whatever the autocast: the power of a frame spans more than bf16 resolves.
        with torch.autocast(wav.device.type, enabled=False):
            return (self.raw(wav) - self.mean[:, None]) / self.std[:, None]


class MFCC(nn.Module):
    """13 MFCCs of the log-mel frames, their deltas and delta-deltas, normalised by corpus
    statistics (Chorowski et al. 2019, section III).

    Deltas are taken where all their frames exist, so F log-mel frames give F - 8
    (``geometry.DELTAS``).
    """

    basis: Tensor
    filters: Tensor
    dct: Tensor
    delta: Tensor
    mean: Tensor
    std: Tensor

    def __init__(self) -> None:
        super().__init__()
        _register(
            self,
            3 * N_MFCC,
            basis=_dft_basis(),
            filters=_mel_filters(),
            dct=_dct_matrix(),
            delta=_delta_kernels(),
        )

    @property
    def channels(self) -> int:
        return self.mean.numel()

    def cepstra(self, log_mel: Tensor) -> Tensor:
        """log-mel [B, M, F] -> statics, deltas, delta-deltas [B, 3K, F - 8], not normalised."""
        statics = torch.matmul(self.dct, log_mel)
        deltas = functional.conv1d(statics, self.delta, groups=N_MFCC)
        accelerations = functional.conv1d(deltas, self.delta, groups=N_MFCC)
        near, far = DELTA_REACH, 2 * DELTA_REACH
        return torch.cat([statics[:, :, far:-far], deltas[:, :, near:-near], accelerations], dim=1)

    def raw(self, wav: Tensor) -> Tensor:
        """wav [B, T] -> statics, deltas, delta-deltas [B, 3K, F - 8], not normalised."""
        return self.cepstra(_log_mel(wav, self.basis, self.filters))

    def forward(self, wav: Tensor) -> Tensor:
        """wav [B, T] -> features [B, 3K, F - 8], zero mean and unit variance over the corpus."""
        with torch.autocast(wav.device.type, enabled=False):
            return (self.raw(wav) - self.mean[:, None]) / self.std[:, None]


Features = LogMel | MFCC


def build_features(kind: str) -> Features:
    """The features of a configured kind, one of ``geometry.FEATURES``."""
    return LogMel() if kind == "logmel80" else MFCC()
