"""From units and a speaker to the WaveNet's conditioning.

B batch, D latent width, E speaker width, C conditioning channels, U units, F frames.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..geometry import UNIT_FRAMES


class LinearConditioner(nn.Module):
    """Units are mixed with their neighbours, joined with the speaker's vector, repeated to 100 Hz
    and refined there; between frames the WaveNet's sampler interpolates linearly.

    Stateless: U units give 2 (U - 2) - 4 frames (``geometry.UPSAMPLING["linear"]``).
    """

    def __init__(self, latents: int, speaker: int, channels: int) -> None:
        super().__init__()
        self.repeats = UNIT_FRAMES  # TorchScript sees attributes, not a module's constants
        self.mix = nn.Conv1d(latents, channels, 3)
        self.frames = nn.ModuleList(
            [nn.Conv1d(channels + speaker, channels, 3), nn.Conv1d(channels, channels, 3)]
        )

    def forward(self, latents: Tensor, speaker: Tensor) -> Tensor:
        """latents [B, D, U], speaker [B, E] -> conditioning [B, F, C]."""
        units = self.mix(latents)
        speaker = speaker[:, :, None].expand(-1, -1, units.shape[2])
        x = torch.cat([units, speaker], dim=1).repeat_interleave(self.repeats, dim=2)
        for conv in self.frames:
            x = torch.relu(conv(x))
        return x.transpose(1, 2)
