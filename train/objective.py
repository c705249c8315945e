"""The loss of a batch and the schedules of a run: pure functions.

B batch, N of them decoded at once, W window, RF receptive field, D latent width, U units,
Q levels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Executor

import torch
from torch import Tensor
from torch.nn import functional

from vconv.nn.autoencoder import Autoencoder
from vconv.nn.layers import replace_by_neighbours

from .batches import Batch


def decoded_nll(
    model: Autoencoder,
    latents: Tensor,
    prosody: Tensor,
    speakers: Tensor,
    codes: Tensor,
    jitter: Tensor,
    window: int,
    first: int,
    last: int,
    autocast: bool,
) -> Tensor:
    """Mean nats per sample of each item [N], from its latents [N, D, U].

    prosody [N, 0 or 2, U], speakers [N], codes [N, RF + W], jitter [N, U]; ``first`` and ``last``
    delimit the conditioning steps in use. Everything that costs time in a step is in here, and
    nothing that depends on a value, so that it can be compiled in one piece.
    """
    with torch.autocast(latents.device.type, dtype=torch.bfloat16, enabled=autocast):
        targets = codes[:, -window:]
        logits = model.decode(
            torch.cat([replace_by_neighbours(latents, jitter), prosody], dim=1),
            model.speaker_vectors(speakers),
            codes[:, :-1],
            model.decoder.wavenet.no_context(len(targets)),
            steps=slice(first, last),
            wanted=window,
        )
    return nll_per_item(logits, targets)


Nll = Callable[
    [Autoencoder, Tensor, Tensor, Tensor, Tensor, Tensor, int, int, int, bool],
    Tensor,
]


def backward(
    model: Autoencoder,
    batch: Batch,
    *,
    window: int,
    steps: slice,
    decode_batch: int | None,
    step: int | None = None,
    pool: Executor | None = None,
    nll: Nll = decoded_nll,
) -> dict[str, Tensor]:
    """Set the gradient of the loss: mean nats per sample, plus the bottleneck's penalty.

    Returns figures to log. All terms are means, so that neither the batch size nor the window's
    length changes their balance. Where the bottleneck draws several samples of a latent, each is
    decoded: the batch is repeated (Kingma & Welling 2014, equation 7). ``step`` is the bottleneck's
    place in its warm-up. The decoder sees ``decode_batch`` windows at a time (None: all),
    in the pool's threads at once if there is one. The parts' gradients are added in the order of
    the windows, so that the number of threads changes nothing; those of the latents then go
    through the encoder once. ``nll``: the likelihood, or what it was compiled to.
    """
    units = model.encode(batch.wav, noise=batch.noise, step=step)
    z = units.z.detach().requires_grad_()
    decoder = [*model.speakers.parameters(), *model.decoder.parameters()]
    size = len(z)
    item = torch.arange(len(batch.wav), device=z.device).repeat_interleave(size // len(batch.wav))
    with torch.no_grad():
        prosody = model.prosody(batch.clean, batch.speakers)
    autocast = torch.is_autocast_enabled(z.device.type)

    def part(rows: slice) -> tuple[Tensor, tuple[Tensor, ...]]:
        of = item[rows]
        each = nll(
            model,
            z[rows],
            prosody[of],
            batch.speakers[of],
            batch.codes[of],
            batch.jitter[of],
            window,
            steps.start,
            steps.stop,
            autocast,
        )
        mean = each.sum() / size
        return mean.detach(), torch.autograd.grad(mean, [z, *decoder])

    width = decode_batch or size
    parts = [slice(first, first + width) for first in range(0, size, width)]
    total = z.new_zeros(())
    sums: list[Tensor] = []
    for mean, gradients in pool.map(part, parts) if pool else map(part, parts):
        total += mean
        if sums:
            torch._foreach_add_(sums, gradients)
        else:
            sums = list(gradients)
    for parameter, gradient in zip(decoder, sums[1:], strict=True):
        parameter.grad = gradient
    # An inverter's units have nothing to learn before them; a penalty may be a constant.
    roots = [(units.z, sums[0]), (units.penalty, torch.ones_like(units.penalty))]
    learning = [(root, seed) for root, seed in roots if root.requires_grad]
    if learning:
        torch.autograd.backward([root for root, _ in learning], [seed for _, seed in learning])
    return {"nll": total, **units.metrics}


def nll_per_item(logits: Tensor, targets: Tensor) -> Tensor:
    """logits [B, W, Q], targets [B, W] -> mean nats per sample of each item [B]."""
    return functional.cross_entropy(logits.float().transpose(1, 2), targets, reduction="none").mean(
        1
    )


def average_weight(step: int, decay: float) -> float:
    """By what share of the way the weight average moves to the model of this step. Early on the
    decay is smaller, so that the start is forgotten: (1 + step) / (10 + step)."""
    return 1 - min(decay, (1 + step) / (10 + step))


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
