"""The bottleneck: what it lets through are the units, and who spoke should not be among it.

B batch, H encoder width, D latent width, U units, K codebook size, N vectors.

Training calls, in this order and without asking which bottleneck it has:
``forward`` in the step, ``commit`` after the optimiser, and ``start`` when ``vectors_wanted``
says that the bottleneck is due to be initialised from real encodings.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

VECTORS_PER_CODE = 30  # k-means needs about this many to place a code (LESSONS: at least 30)
LAPLACE = 1e-5  # smoothing of the EMA counts (van den Oord et al. 2017, appendix A.1)


@dataclass
class BottleneckResult:
    """z [B, D, U] for the decoder, codes [B, U] (-1 before a codebook exists), a penalty to be
    added to the loss (a mean), and figures to log."""

    z: Tensor
    codes: Tensor
    penalty: Tensor
    metrics: dict[str, Tensor] = field(default_factory=dict)


class VQ(nn.Module):
    """Vector quantisation with a codebook learned by exponential moving averages.

    van den Oord et al. 2017, equation 3 without its second term, and appendix A.1. Projection
    and batch norm come before it; for the first ``warmup_steps`` steps latents pass unquantised,
    then k-means places the codes, once. Codes that fall out of use restart from the batch.
    """

    codebook: Tensor
    ema_count: Tensor
    ema_sum: Tensor
    started: Tensor

    def __init__(
        self,
        inputs: int,
        dim: int,
        codebook_size: int,
        *,
        commitment_weight: float,
        decay: float,
        warmup_steps: int,
        restart_below: float,
    ) -> None:
        super().__init__()
        self.project = nn.Conv1d(inputs, dim, 1, bias=False)
        self.norm = nn.BatchNorm1d(dim)
        self.commitment_weight = commitment_weight
        self.decay = decay
        self.warmup_steps = warmup_steps
        self.restart_below = restart_below
        self.register_buffer("codebook", torch.zeros(codebook_size, dim))
        self.register_buffer("ema_count", torch.zeros(codebook_size))
        self.register_buffer("ema_sum", torch.zeros(codebook_size, dim))
        self.register_buffer("started", torch.zeros((), dtype=torch.bool))
        self._pending: tuple[Tensor, Tensor] | None = None

    @property
    def codebook_size(self) -> int:
        return self.codebook.shape[0]

    def latents(self, encodings: Tensor) -> Tensor:
        """encodings [B, H, U] -> [B, D, U], before quantisation."""
        latents: Tensor = self.norm(self.project(encodings))
        return latents

    def distances(self, latents: Tensor) -> Tensor:
        """latents [B, D, U] -> squared distances less the latent's own norm, [B, U, K]."""
        flat = latents.transpose(1, 2)
        return self.codebook.square().sum(1) - 2 * torch.matmul(flat, self.codebook.T)

    def lookup(self, codes: Tensor) -> Tensor:
        """codes [B, U] -> latents [B, D, U]."""
        return functional.embedding(codes, self.codebook).transpose(1, 2)

    def forward(self, encodings: Tensor) -> BottleneckResult:
        with torch.autocast(encodings.device.type, enabled=False):
            latents = self.latents(encodings.float())
            if not self.started:
                codes = torch.full_like(latents[:, 0], -1, dtype=torch.long)
                return BottleneckResult(latents, codes, latents.new_zeros(()))
            codes = self.distances(latents.detach()).argmin(2)
            quantised = self.lookup(codes)
            commitment = functional.mse_loss(latents, quantised)
            if self.training:
                vectors = latents.detach().transpose(1, 2).reshape(-1, latents.shape[1])
                self._pending = (vectors, codes.reshape(-1))
            return BottleneckResult(
                z=latents + (quantised - latents).detach(),
                codes=codes,
                penalty=self.commitment_weight * commitment,
                metrics={
                    "commitment": commitment.detach(),
                    "perplexity": perplexity(codes, self.codebook_size),
                },
            )

    def vectors_wanted(self, step: int) -> int:
        """How many latent vectors ``start`` wants before this step; 0 when it is not due."""
        due = step >= self.warmup_steps and not bool(self.started)
        return VECTORS_PER_CODE * self.codebook_size if due else 0

    @torch.no_grad()
    def start(self, vectors: Tensor, *, seed: int, step: int) -> None:
        """Place the codes by k-means on real latents [N, D]; keyed by (seed, step)."""
        from scipy.cluster.vq import kmeans2
        from sklearn.cluster import kmeans_plusplus

        # k-means++ from scikit-learn: scipy's own takes time quadratic in the codebook's size.
        points = vectors.double().cpu().numpy()
        random = np.random.RandomState(np.random.Philox(key=[seed, step]))
        begin, _ = kmeans_plusplus(points, self.codebook_size, random_state=random)
        centres, labels = kmeans2(points, begin, iter=20, minit="matrix", missing="warn")
        counts = np.bincount(labels, minlength=self.codebook_size)
        mean_count = len(labels) / self.codebook_size
        # The scale of the counts is set by `commit`: a code's share of one step's vectors. Only
        # ratios matter here, so an average code starts with 1.
        self.ema_count.copy_(torch.from_numpy(np.maximum(counts / mean_count, 0.1)))
        self.codebook.copy_(torch.from_numpy(centres))
        self.ema_sum.copy_(self.codebook * self.ema_count[:, None])
        self.started.fill_(True)

    @torch.no_grad()
    def commit(self, *, seed: int, step: int) -> dict[str, Tensor]:
        """Apply the last training forward's statistics: EMA update, then restart dead codes."""
        if self._pending is None:
            return {}
        vectors, codes = self._pending
        self._pending = None
        size = self.codebook_size
        # Counts are normalised to a mean of one per code, so that neither the batch size nor the
        # window changes what `restart_below` means.
        scale = size / len(codes)
        counts = torch.bincount(codes, minlength=size).to(vectors.dtype) * scale
        sums = torch.zeros_like(self.ema_sum).index_add_(0, codes, vectors) * scale
        self.ema_count.lerp_(counts, 1 - self.decay)
        self.ema_sum.lerp_(sums, 1 - self.decay)
        dead = (self.ema_count < self.restart_below).nonzero()[:, 0]
        if len(dead):
            random = np.random.Generator(np.random.Philox(key=[seed, step]))
            picked = torch.from_numpy(random.integers(len(codes), size=len(dead)))
            self.ema_count[dead] = 1.0
            self.ema_sum[dead] = vectors[picked.to(vectors.device)]
        total = self.ema_count.sum()
        smoothed = (self.ema_count + LAPLACE) / (total + size * LAPLACE) * total
        self.codebook.copy_(self.ema_sum / smoothed[:, None])
        return {"restarts": torch.tensor(float(len(dead)))}


def perplexity(codes: Tensor, size: int) -> Tensor:
    """exp of the entropy of the codes' empirical distribution (scalar)."""
    share = torch.bincount(codes.reshape(-1), minlength=size).float() / codes.numel()
    return torch.exp(-(share * (share + 1e-10).log()).sum())
