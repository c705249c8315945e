"""The encoder of Chorowski et al. 2019 (section III): nine convolutions, 100 Hz to 50 Hz.

B batch, M feature channels, H width, F frames, U units.
"""

from __future__ import annotations

from torch import Tensor, nn

from .layers import ConvNorm, SlidingNorm


class Encoder(nn.Module):
    """features [B, M, F] -> encodings [B, H, U]; ``geometry.ENCODER`` says which F make which U.

    ``instance_norm``: normalise the features over so many frames first.
    """

    def __init__(self, features: int, width: int, *, instance_norm: int | None = None) -> None:
        super().__init__()
        self.norm = nn.Identity() if instance_norm is None else SlidingNorm(instance_norm)
        self.layers = nn.Sequential(
            ConvNorm(features, width, 3),
            ConvNorm(width, width, 3, residual=True),
            ConvNorm(width, width, 4, stride=2),
            ConvNorm(width, width, 3, residual=True),
            ConvNorm(width, width, 3, residual=True),
            *(ConvNorm(width, width, 1, residual=True) for _ in range(4)),
        )

    def forward(self, features: Tensor) -> Tensor:
        encodings: Tensor = self.layers(self.norm(features))
        return encodings
