"""Log-mel frames as a fixed network, so that an exported encoder takes a waveform.

B batch, T samples, N DFT bins (257), M mel bands (80), F frames.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..errors import SetupError
from ..geometry import FRAME_HOP, FRAME_LENGTH

SAMPLE_RATE = 16000
N_FFT = 512
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


def _mel_filters(n_mels: int) -> Tensor:
    """HTK mel filterbank without normalisation, as [M, N]."""
    try:
        from torchaudio.functional import melscale_fbanks
    except (ImportError, OSError) as error:
        raise SetupError(
            "torchaudio cannot be imported with this torch; install a matching pair, such as "
            "torch 2.11 with torchaudio 2.11 (pip install 'vconv[train]')."
        ) from error
    filters: Tensor = melscale_fbanks(
        N_FFT // 2 + 1, 0.0, SAMPLE_RATE / 2, n_mels, SAMPLE_RATE, norm=None, mel_scale="htk"
    )
    return filters.T.contiguous()


class LogMel(nn.Module):
    """ln(mel power + 1e-6) of 25 ms frames every 10 ms, normalised by corpus statistics.

    Frames lie wholly inside the signal: T samples give (T - 400) // 160 + 1 frames, and nothing
    looks at the whole file, so a chunk and the file give the same features.
    """

    basis: Tensor
    filters: Tensor
    mean: Tensor
    std: Tensor

    def __init__(self, n_mels: int = 80) -> None:
        super().__init__()
        # Recomputed, not stored: they are constants of the code, not of the training.
        self.register_buffer("basis", _dft_basis(), persistent=False)
        self.register_buffer("filters", _mel_filters(n_mels), persistent=False)
        self.register_buffer("mean", torch.zeros(n_mels))
        self.register_buffer("std", torch.ones(n_mels))

    @property
    def channels(self) -> int:
        return self.mean.numel()

    def log_mel(self, wav: Tensor) -> Tensor:
        """wav [B, T] -> log-mel [B, M, F], not normalised."""
        spectrum = functional.conv1d(wav[:, None], self.basis, stride=FRAME_HOP)
        real, imaginary = spectrum.chunk(2, dim=1)
        mel = torch.matmul(self.filters, real.square() + imaginary.square())
        return torch.log(mel + LOG_FLOOR)

    def forward(self, wav: Tensor) -> Tensor:
        """wav [B, T] -> features [B, M, F], zero mean and unit variance over the corpus."""
        # In fp32 whatever the autocast: the power of a frame spans more than bf16 resolves.
        with torch.autocast(wav.device.type, enabled=False):
            return (self.log_mel(wav) - self.mean[:, None]) / self.std[:, None]
