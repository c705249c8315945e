"""Vector quantisation: units are the nearest of K learned vectors.

B batch, H encoder width, D latent width, U units, K codebook size, N vectors.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from .bottleneck import AE, BottleneckResult, occurrences, perplexity

VECTORS_PER_CODE = 30  # k-means needs about this many to place a code (LESSONS: at least 30)
LAPLACE = 1e-5  # smoothing of the EMA counts (van den Oord et al. 2017, appendix A.1)


class VQ(AE):
    """Vector quantisation (van den Oord et al. 2017).

    For the first ``warmup_steps`` steps latents pass unquantised, then k-means places the codes,
    once. Then each code is the moving average of the latents it stands for (appendix A.1), or,
    with ``gradient``, follows them by the second term of equation 3. Codes that fall out of use
    restart from the batch.
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
        gradient: bool,
        commitment_weight: float,
        decay: float,
        warmup_steps: int,
        restart_below: float,
    ) -> None:
        super().__init__(inputs, dim)
        self.codebook_size = codebook_size
        self.gradient = gradient
        self.commitment_weight = commitment_weight
        self.decay = decay
        self.warmup_steps = warmup_steps
        self.restart_below = restart_below
        codebook = torch.zeros(codebook_size, dim)
        if gradient:
            self.codebook = nn.Parameter(codebook)
        else:
            self.register_buffer("codebook", codebook)
            self.register_buffer("ema_sum", torch.zeros(codebook_size, dim))
        self.register_buffer("ema_count", torch.zeros(codebook_size))
        self.register_buffer("started", torch.zeros((), dtype=torch.bool))
        self._pending: list[tuple[Tensor, Tensor]] = []
        self._seen = _Seen()

    def distances(self, latents: Tensor) -> Tensor:
        """latents [B, D, U] -> squared distances less the latent's own norm, [B, U, K]."""
        flat = latents.transpose(1, 2)
        return self.codebook.square().sum(1) - 2 * torch.matmul(flat, self.codebook.T)

    def lookup(self, codes: Tensor) -> Tensor:
        """codes [B, U] -> latents [B, D, U]."""
        return functional.embedding(codes, self.codebook).transpose(1, 2)

    def quantise(self, latents: Tensor) -> tuple[Tensor, Tensor]:
        codes = self.distances(latents).argmin(2)
        return codes, self.lookup(codes)

    def forward(
        self, encodings: Tensor, *, noise: Tensor | None = None, step: int | None = None
    ) -> BottleneckResult:
        with torch.autocast(encodings.device.type, enabled=False):
            latents = self.latents(encodings.float())
            if not self._seen.value(self.started):
                codes = torch.full_like(latents[:, 0], -1, dtype=torch.long)
                return BottleneckResult(latents, codes, latents.new_zeros(()))
            codes, quantised = self.quantise(latents)
            commitment = functional.mse_loss(latents, quantised.detach())
            penalty = self.commitment_weight * commitment
            if self.gradient:
                penalty = penalty + functional.mse_loss(quantised, latents.detach())
            if self.training:
                vectors = latents.detach().transpose(1, 2).reshape(-1, latents.shape[1])
                self._pending.append((vectors, codes.reshape(-1)))
            return BottleneckResult(
                # Straight through: the decoder's gradient reaches the encoder unchanged.
                z=latents + (quantised - latents).detach(),
                codes=codes,
                penalty=penalty,
                metrics={
                    "commitment": commitment.detach(),
                    "perplexity": perplexity(codes, self.codebook_size),
                },
            )

    def phase(self, step: int) -> Hashable:
        return self._seen.value(self.started)

    def forget(self) -> None:
        self._pending = []

    def vectors_wanted(self, step: int) -> int:
        due = step >= self.warmup_steps and not self._seen.value(self.started)
        return VECTORS_PER_CODE * self.codebook_size if due else 0

    @torch.no_grad()
    def start(self, vectors: Tensor, *, seed: int, step: int) -> None:
        """Place the codes by k-means on real latents [N, D]; keyed by (seed, step)."""
        from scipy.cluster.vq import kmeans2
        from sklearn.cluster import kmeans_plusplus
        from threadpoolctl import threadpool_limits

        # k-means++ from scikit-learn: scipy's own takes time quadratic in the codebook's size.
        points = vectors.double().cpu().numpy()
        random = np.random.RandomState(np.random.Philox(key=[seed, step]))
        with threadpool_limits(1):  # their number would show in the last bits
            begin, _ = kmeans_plusplus(points, self.codebook_size, random_state=random)
            centres, labels = kmeans2(points, begin, iter=20, minit="matrix", missing="warn")
        counts = np.bincount(labels, minlength=self.codebook_size)
        mean_count = len(labels) / self.codebook_size
        # The scale of the counts is set by `commit`: a code's share of one step's vectors. Only
        # ratios matter here, so an average code starts with 1.
        self.ema_count.copy_(torch.from_numpy(np.maximum(counts / mean_count, 0.1)))
        self.codebook.copy_(torch.from_numpy(centres))
        if not self.gradient:
            self.ema_sum.copy_(self.codebook * self.ema_count[:, None])
        self.started.fill_(True)

    def picks(self, *, seed: int, step: int, vectors: int) -> Tensor:
        """The vectors that dead codes restart from [K], the first dead one from the first: drawn
        for all, since only the device knows how many are dead."""
        random = np.random.Generator(np.random.Philox(key=[seed, step]))
        return torch.from_numpy(random.integers(vectors, size=self.codebook_size))

    @torch.no_grad()
    def commit(
        self,
        *,
        seed: int,
        step: int,
        gather: Callable[[Tensor], Tensor] = lambda own: own,
        picks: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """Apply the training forwards' statistics: EMA update, then restart dead codes.

        Nothing here waits for the device: what is dead is a mask, not a list.
        """
        if not self._pending:
            return {}
        vectors, codes = (gather(torch.cat(part)) for part in zip(*self._pending, strict=True))
        self._pending = []
        size = self.codebook_size
        # Counts are normalised to a mean of one per code, so that neither the batch size nor the
        # window changes what `restart_below` means.
        scale = size / len(codes)
        self.ema_count.lerp_(occurrences(codes, size) * scale, 1 - self.decay)
        dead = self.ema_count < self.restart_below
        if picks is None:
            picks = self.picks(seed=seed, step=step, vectors=len(codes)).to(vectors.device)
        restarted = vectors[picks[(dead.cumsum(0) - 1).clamp_min(0)]]
        self.ema_count.masked_fill_(dead, 1.0)
        if self.gradient:
            self.codebook.copy_(torch.where(dead[:, None], restarted, self.codebook))
        else:
            sums = torch.zeros_like(self.ema_sum).index_add_(0, codes, vectors) * scale
            self.ema_sum.lerp_(sums, 1 - self.decay)
            self.ema_sum.copy_(torch.where(dead[:, None], restarted, self.ema_sum))
            total = self.ema_count.sum()
            smoothed = (self.ema_count + LAPLACE) / (total + size * LAPLACE) * total
            self.codebook.copy_(self.ema_sum / smoothed[:, None])
        return {"restarts": dead.sum().float()}


class _Seen:
    """The value of a flag on a device, fetched again only after the flag has been written.

    Asking a GPU at every step would make the host wait for all that it still has to do.
    """

    def __init__(self) -> None:
        self._known: tuple[Tensor, int, bool] | None = None

    def value(self, flag: Tensor) -> bool:
        # torch counts the writes to a tensor's memory.
        if self._known is None or self._known[0] is not flag or self._known[1] != flag._version:
            self._known = (flag, flag._version, bool(flag))
        return self._known[2]

    def __deepcopy__(self, memo: object) -> _Seen:
        return _Seen()  # the copy's flag is another, with a count of its own
