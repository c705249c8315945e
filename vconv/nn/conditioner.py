"""From units and a speaker to the WaveNet's conditioning.

B batch, D latent width, E speaker width, C conditioning channels, U units, F conditioning steps:
frames with linear upsampling, samples with transposed upsampling.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ..geometry import TRANSPOSED, UNIT_FRAMES

# The same from units and from frames, and whole numbers of strides: all outputs of a layer have
# equally many taps.
_KERNELS = tuple(kernel for kernel, _ in TRANSPOSED[UNIT_FRAMES])


class LinearConditioner(nn.Module):
    """Units are mixed with their neighbours, joined with the speaker's vector, repeated to 100 Hz
    and refined there; between frames the WaveNet's sampler interpolates linearly.

    ``repeats``: frames per unit. Stateless: U units give repeats * (U - 2) - 4 frames.
    """

    def __init__(self, latents: int, speaker: int, channels: int, repeats: int) -> None:
        super().__init__()
        self.repeats = repeats
        self.mix = nn.Conv1d(latents, channels, 3)
        self.frames = nn.ModuleList(
            [nn.Conv1d(channels + speaker, channels, 3), nn.Conv1d(channels, channels, 3)]
        )

    def forward(self, latents: Tensor, speaker: Tensor) -> Tensor:
        """latents [B, D, U], speaker [B, E] -> conditioning [B, F, C]."""
        x = _with_speaker(self.mix(latents), speaker).repeat_interleave(self.repeats, dim=2)
        for conv in self.frames:
            x = torch.relu(conv(x))
        return x.transpose(1, 2)


class TransposedConditioner(nn.Module):
    """Units are mixed with their neighbours, joined with the speaker's vector and brought to the
    sample rate by four transposed convolutions, linear throughout (Chorowski et al. 2019).

    ``strides``: 5, 4, 4, 4 from units, 5, 4, 4, 2 from frames; their product is the samples in
    each. Only outputs to which all the inputs that could contribute do exist are kept
    (``geometry.upsampling_chain``). Stateless.
    """

    def __init__(self, latents: int, speaker: int, channels: int, strides: Sequence[int]) -> None:
        super().__init__()
        self.mix = nn.Conv1d(latents, channels, 3)
        self.upsample = nn.ModuleList()
        for index, (kernel, stride) in enumerate(zip(_KERNELS, strides, strict=True)):
            inputs = channels + speaker if index == 0 else channels
            # At either end kernel - stride outputs lack a tap; `padding` drops so many.
            conv = nn.ConvTranspose1d(inputs, channels, kernel, stride, padding=kernel - stride)
            # An output sums kernel / stride taps. Torch's default takes it for all of them, and
            # with no more than a third of the variance that would keep it up: four such layers
            # in a row leave the conditioning a hundredth of the units' size.
            nn.init.normal_(conv.weight, std=(inputs * kernel / stride) ** -0.5)
            self.upsample.append(conv)

    def forward(self, latents: Tensor, speaker: Tensor) -> Tensor:
        """latents [B, D, U], speaker [B, E] -> conditioning [B, F, C]."""
        x = _with_speaker(self.mix(latents), speaker)
        for conv in self.upsample:
            x = conv(x)
        return x.transpose(1, 2)


def _with_speaker(units: Tensor, speaker: Tensor) -> Tensor:
    """units [B, C, U], speaker [B, E] -> [B, C + E, U]."""
    return torch.cat([units, speaker[:, :, None].expand(-1, -1, units.shape[2])], dim=1)
