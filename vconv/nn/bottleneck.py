"""The bottleneck: what it lets through are the units, and who spoke should not be among it.

B batch, H encoder width, D latent width, U units, K codebook size, L samples per datapoint.

Training, export and validation treat all kinds alike, through ``Bottleneck``. In training they
call, in this order: ``forward`` in the step, once for each microbatch, ``commit`` after the
optimiser, and ``start`` when ``vectors_wanted`` says that the bottleneck is due to be initialised
from real encodings.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

ACTIVE_VARIANCE = 0.01  # of a dimension's mean over data (Burda et al. 2016, section 5.2)


@dataclass
class BottleneckResult:
    """z [B * L, D, U] for the decoder (L draws of each item in turn; 1 where nothing is drawn),
    codes [B, U] (-1 where there is no codebook), a penalty to be added to the loss (a mean, in
    nats a sample), and figures to log."""

    z: Tensor
    codes: Tensor
    penalty: Tensor
    metrics: dict[str, Tensor] = field(default_factory=dict)


class Bottleneck(nn.Module):
    """Latents pass as they are: the interface, and what a kind does that has nothing to add.

    codebook_size: how many codes there are; 0 without a codebook.
    """

    codebook_size = 0

    def latents(self, encodings: Tensor) -> Tensor:
        """encodings [B, H, U] -> what is quantised, [B, D, U]."""
        return encodings

    def quantise(self, latents: Tensor) -> tuple[Tensor, Tensor]:
        """latents [B, D, U] -> codes [B, U] (-1 without a codebook), z [B, D, U]."""
        return torch.full_like(latents[:, 0], -1, dtype=torch.long), latents

    def forward(
        self, encodings: Tensor, *, noise: Tensor | None = None, step: int | None = None
    ) -> BottleneckResult:
        """encodings [B, H, U], noise [B, L, D, U] (None: nothing is drawn), step (None: as at
        the end of all warm-ups)."""
        with torch.autocast(encodings.device.type, enabled=False):
            codes, z = self.quantise(self.latents(encodings.float()))
            return BottleneckResult(z, codes, z.new_zeros(()))

    def phase(self, step: int) -> Hashable:
        """All that decides which operators a training step is, and with which constants, beside
        its batch: two steps of one phase differ in their numbers only."""
        return None

    def forget(self) -> None:
        """Leave out of the next ``commit`` what forwards since the last one noted."""

    def vectors_wanted(self, step: int) -> int:
        """How many latent vectors ``start`` wants before this step; 0 when it is not due."""
        return 0

    def start(self, vectors: Tensor, *, seed: int, step: int) -> None:
        """Initialise from real latents [N, D]; keyed by (seed, step)."""

    def picks(self, *, seed: int, step: int, vectors: int) -> Tensor:
        """What ``commit`` draws after a step in which all processes saw so many vectors, on the
        host: [codes], keyed by (seed, step); nothing where codes do not restart."""
        return torch.zeros(0, dtype=torch.long)

    def commit(
        self,
        *,
        seed: int,
        step: int,
        gather: Callable[[Tensor], Tensor] = lambda own: own,
        picks: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """Apply what the training forwards since the last call found out, after the optimiser;
        figures to log. ``gather`` puts the rows [n, ...] of all processes one after another;
        ``picks`` are those of this (seed, step), where they are on the device already."""
        return {}


class AE(Bottleneck):
    """A narrow projection, normalised: an autoencoder that may pass what fits its width."""

    def __init__(self, inputs: int, dim: int) -> None:
        super().__init__()
        self.project = nn.Conv1d(inputs, dim, 1, bias=False)
        self.norm = nn.BatchNorm1d(dim)

    def latents(self, encodings: Tensor) -> Tensor:
        latents: Tensor = self.norm(self.project(encodings))
        return latents


class VAE(Bottleneck):
    """Gaussian units (Kingma & Welling 2014), pulled towards a standard normal prior.

    The penalty is the second term of the negative evidence bound, in nats a sample: the KL of
    each unit over the samples it stands for. It is weighted by a warm-up (Bowman et al. 2016), and
    a dimension costs at least ``free_bits`` (Kingma et al. 2016, section 3.3: the mean over the
    batch is bounded, so that below it there is no gradient). Each of a datapoint's L draws is
    decoded, to estimate the first term (equation 7). Without noise the units are the means.
    """

    def __init__(
        self,
        inputs: int,
        dim: int,
        *,
        kl_weight: float,
        kl_warmup: int,
        free_bits: float,
        unit_hop: int,
    ) -> None:
        super().__init__()
        self.project = nn.Conv1d(inputs, 2 * dim, 1)
        self.kl_weight = kl_weight
        self.kl_warmup = kl_warmup
        self.free_nats = free_bits * math.log(2)
        self.unit_hop = unit_hop

    def latents(self, encodings: Tensor) -> Tensor:
        """The means."""
        return self._gaussians(encodings)[0]

    def phase(self, step: int) -> Hashable:
        return annealing(step, self.kl_warmup)

    def _gaussians(self, encodings: Tensor) -> tuple[Tensor, Tensor]:
        """encodings [B, H, U] -> means and log-variances [B, D, U]."""
        mean, log_variance = self.project(encodings).chunk(2, dim=1)
        return mean, log_variance

    def forward(
        self, encodings: Tensor, *, noise: Tensor | None = None, step: int | None = None
    ) -> BottleneckResult:
        with torch.autocast(encodings.device.type, enabled=False):
            mean, log_variance = self._gaussians(encodings.float())
            codes, z = self.quantise(mean)
            if noise is not None:
                z = mean[:, None] + torch.exp(0.5 * log_variance)[:, None] * noise
                z = z.flatten(0, 1)
            kl = gaussian_kl(mean, log_variance).mean((0, 2))
            weight = self.kl_weight * annealing(step, self.kl_warmup)
            active = mean.detach().var((0, 2), correction=0) > ACTIVE_VARIANCE
            return BottleneckResult(
                z,
                codes,
                penalty=weight * kl.clamp_min(self.free_nats).sum() / self.unit_hop,
                metrics={"kl": kl.detach().sum(), "active_dimensions": active.sum().float()},
            )


def gaussian_kl(mean: Tensor, log_variance: Tensor) -> Tensor:
    """KL(N(mean, variance) || N(0, 1)) in nats, elementwise (Kingma & Welling 2014, appendix B)."""
    return 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance)


def annealing(step: int | None, warmup: int) -> float:
    """The share of a weight that rises linearly over its warm-up: 1 from step ``warmup`` on."""
    return 1.0 if step is None or not warmup else min(1.0, step / warmup)


def perplexity(codes: Tensor, size: int) -> Tensor:
    """exp of the entropy of the codes' empirical distribution (scalar)."""
    share = occurrences(codes.reshape(-1), size) / codes.numel()
    return torch.exp(-(share * (share + 1e-10).log()).sum())


def occurrences(codes: Tensor, size: int) -> Tensor:
    """codes [N] -> how often each occurs, float32 [size]: exact, whatever the order of the sums.

    ``torch.bincount`` asks a GPU for the largest code first, and the host waits for the answer.
    """
    ones = torch.ones(codes.shape, device=codes.device)
    return torch.zeros(size, device=codes.device).scatter_add_(0, codes, ones)
