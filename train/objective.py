"""The loss of a batch and the schedule of the learning rate: pure functions.

B batch, W window, Q levels.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor
from torch.nn import functional

from vconv.nn.autoencoder import Autoencoder

from .batches import Batch


def loss(
    model: Autoencoder, batch: Batch, *, window: int, steps: slice
) -> tuple[Tensor, dict[str, Tensor]]:
    """Mean negative log-likelihood in nats per sample, plus the bottleneck's penalty.

    Returns (loss, figures to log). All terms are means, so that neither the batch size nor the
    window's length changes their balance.
    """
    logits, units = model(
        batch.wav,
        batch.codes[:, :-1],
        batch.speakers,
        steps=steps,
        wanted=window,
        jitter=batch.jitter,
    )
    nll = functional.cross_entropy(logits.float().flatten(0, 1), batch.codes[:, -window:].flatten())
    return nll + units.penalty, {"nll": nll.detach(), **units.metrics}


def nll_per_item(logits: Tensor, targets: Tensor) -> Tensor:
    """logits [B, W, Q], targets [B, W] -> mean nats per sample of each item [B]."""
    return functional.cross_entropy(logits.float().transpose(1, 2), targets, reduction="none").mean(
        1
    )


def learning_rate(
    step: int,
    *,
    base: float,
    warmup: int,
    halve_at: Sequence[int],
    steps: int,
    final_decay: int,
) -> float:
    """The rate of a step: linear warm-up, halved at each mark, linear to zero over the last
    ``final_decay`` of ``steps`` steps."""
    rate = base * min(1.0, (step + 1) / warmup if warmup else 1.0)
    rate *= 0.5 ** sum(step >= mark for mark in halve_at)
    if final_decay and step >= steps - final_decay:
        rate *= max(0.0, (steps - step) / final_decay)
    return rate
