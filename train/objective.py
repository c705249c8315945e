"""The loss of a batch and the schedule of the learning rate: pure functions.

B batch, W window, Q levels.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from vconv.nn.autoencoder import Autoencoder
from vconv.nn.layers import replace_by_neighbours

from .batches import Batch


def backward(
    model: Autoencoder, batch: Batch, *, window: int, steps: slice, decode_batch: int | None
) -> dict[str, Tensor]:
    """Add the gradient of the loss: mean nats per sample, plus the bottleneck's penalty.

    Returns figures to log. All terms are means, so that neither the batch size nor the window's
    length changes their balance. The decoder sees ``decode_batch`` windows at a time (None: all);
    their latents' gradients are gathered and sent through the encoder once.
    """
    units = model.encode(batch.wav)
    z = units.z.detach().requires_grad_()
    nll = z.new_zeros(())
    size = len(z)
    for first in range(0, size, decode_batch or size):
        rows = slice(first, first + (decode_batch or size))
        targets = batch.codes[rows, -window:]
        logits = model.decode(
            replace_by_neighbours(z[rows], batch.jitter[rows]),
            model.speaker_vectors(batch.speakers[rows]),
            batch.codes[rows, :-1],
            model.decoder.wavenet.no_context(len(targets)),
            steps=steps,
            wanted=window,
        )
        part = nll_per_item(logits, targets).sum() / size
        part.backward()  # type: ignore[no-untyped-call]
        nll += part.detach()
    # z's gradient and the penalty's (a constant before a codebook exists) reach the encoder.
    roots, gradients = [units.z], [z.grad]
    if units.penalty.requires_grad:
        roots.append(units.penalty)
        gradients.append(None)
    torch.autograd.backward(roots, gradients)
    return {"nll": nll, **units.metrics}


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
