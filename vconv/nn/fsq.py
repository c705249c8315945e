"""Finite scalar quantisation (Mentzer et al. 2024): a few numbers a unit, each rounded to one of
a few levels. Nothing is learned for it and nothing can collapse.

B batch, H encoder width, D numbers a unit (one for each of ``levels``), U units, K codes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from .bottleneck import AE, BottleneckResult, perplexity

MARGIN = 1e-3  # of the outermost levels' interval, which tanh would only reach at infinity


class FSQ(AE):
    """Each latent is bounded by tanh to the range of its levels and rounded.

    Latents and codebook are in units of half the number of levels, so that z lies in [-1, 1]. A
    unit's code counts its numbers' levels, the first changing fastest (appendix A.1).
    """

    codebook: Tensor
    shift: Tensor
    reach: Tensor
    offset: Tensor
    width: Tensor
    steps: Tensor

    def __init__(self, inputs: int, levels: Sequence[int]) -> None:
        super().__init__(inputs, len(levels))
        self.codebook_size = math.prod(levels)
        count = torch.tensor(levels, dtype=torch.float32)
        # An even number of levels lies half a level off centre, so that 0 can be one of them; the
        # shift brings an input of 0 (nearly) to it. By tan as in the paper's listing: the inverse,
        # atanh, has no value for two levels.
        reach = (count - 1) * (1 - MARGIN) / 2
        offset = torch.where(count % 2 == 1, 0.0, 0.5)
        self.register_buffer("reach", reach)
        self.register_buffer("offset", offset)
        self.register_buffer("shift", torch.tan(offset / reach))
        self.register_buffer("width", torch.div(count, 2, rounding_mode="floor"))
        steps = torch.tensor([math.prod(levels[:i]) for i in range(len(levels))])
        digits = torch.arange(self.codebook_size)[:, None] // steps % torch.tensor(levels)
        self.register_buffer("codebook", (digits - self.width) / self.width)
        self.register_buffer("steps", steps, persistent=False)

    def latents(self, encodings: Tensor) -> Tensor:
        """Bounded, not rounded, in the codebook's units."""
        free = super().latents(encodings).transpose(1, 2)
        bounded = torch.tanh(free + self.shift) * self.reach - self.offset
        return (bounded / self.width).transpose(1, 2)

    def quantise(self, latents: Tensor) -> tuple[Tensor, Tensor]:
        digits = (torch.round(latents.transpose(1, 2) * self.width) + self.width).long()
        codes = (digits * self.steps).sum(2)
        return codes, functional.embedding(codes, self.codebook).transpose(1, 2)

    def forward(
        self, encodings: Tensor, *, noise: Tensor | None = None, step: int | None = None
    ) -> BottleneckResult:
        with torch.autocast(encodings.device.type, enabled=False):
            latents = self.latents(encodings.float())
            codes, quantised = self.quantise(latents.detach())
            return BottleneckResult(
                z=latents + (quantised - latents).detach(),
                codes=codes,
                penalty=latents.new_zeros(()),
                metrics={"perplexity": perplexity(codes, self.codebook_size)},
            )
