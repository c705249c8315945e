"""How a step's gradient becomes a new state: all of it or nothing, decided here or on the device.

On a CPU the host looks at the gradient and then commits. A GPU must not be waited for at every
step, so there the decision is the device's: one number, 1 from the first gradient on that was not
finite, undoes what each later step would change, until the host looks (``Deferred.settle``).

K codebook size.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from vconv.config import Config
from vconv.nn.autoencoder import Autoencoder

from .health import Updates
from .objective import average_weight, learning_rate
from .world import World

if TYPE_CHECKING:
    from .state import TrainState


class Norms:
    """The running statistics of a network's batch norms, as they are when this is made."""

    def __init__(self, network: nn.Module) -> None:
        norms = [m for m in network.modules() if isinstance(m, nn.BatchNorm1d)]
        buffers = [buffer for norm in norms for buffer in norm.buffers()]
        self._before = [(buffer, buffer.clone()) for buffer in buffers]
        # Without the counts of batches.
        self.running = [buffer for buffer in buffers if buffer.is_floating_point()]

    def restore(self) -> None:
        for buffer, before in self._before:
            buffer.copy_(before)

    def set(self, values: Sequence[Tensor]) -> None:
        for buffer, value in zip(self.running, values, strict=True):
            buffer.copy_(value)

    def restore_if(self, failed: Tensor) -> None:
        """Restore them where ``failed``, a scalar on their device, is true."""
        for buffer, before in self._before:
            buffer.copy_(torch.where(failed, before, buffer))


@dataclass
class Gradient:
    """What a step commits: the parameters' ``grad`` is set and clipped, its norm before that is
    ``norm``; ``statistics`` are the batch norms' new ones."""

    norm: Tensor
    norms: Norms
    statistics: Sequence[Tensor]


def commit(
    state: TrainState,
    found: Gradient,
    config: Config,
    world: World,
    updates: Updates | None = None,
) -> dict[str, Tensor]:
    """Change the state at once; figures to log. The step is counted by the caller.

    Raises FloatingPointError, the state as it was, when the gradient is not finite.
    """
    if not math.isfinite(float(found.norm)):
        found.norms.restore()
        state.optimizer.zero_grad(set_to_none=True)
        raise _not_finite(state.step, float(found.norm))
    found.norms.set(found.statistics)
    for group in state.optimizer.param_groups:
        group["lr"] = rate_of(state.step, config)
    state.optimizer.step()
    if updates is not None:
        updates.measure()
    state.optimizer.zero_grad(set_to_none=True)
    figures = state.model.bottleneck.commit(
        seed=config.train.seed, step=state.step, gather=world.gather
    )
    _share_bottleneck(state, world)
    state.update_average(average_weight(state.step + 1, config.train.average))
    return figures


class Deferred:
    """Commits without the host: what it needs of the host's is sent ahead by ``send``.

    failed: on the device, 1 from the first step on whose gradient was not finite.
    """

    def __init__(self, model: Autoencoder, optimizer: torch.optim.AdamW, config: Config) -> None:
        device = next(model.parameters()).device
        self._config = config
        self._rate = torch.zeros((), device=device)
        self._weight = torch.zeros((), device=device)
        self._step = torch.zeros((), dtype=torch.long, device=device)
        self._picks = model.bottleneck.picks(seed=0, step=0, vectors=1).to(device)
        self.failed = torch.zeros((), device=device)
        self._failed_at = torch.zeros((), dtype=torch.long, device=device)
        self._failed_norm = torch.zeros((), device=device)
        # Fused AdamW does nothing where `found_inf` is 1; a scaler of gradients would set it.
        optimizer.found_inf = self.failed  # type: ignore[attr-defined]
        for group in optimizer.param_groups:
            group["lr"] = self._rate
            group["capturable"] = True

    def send(self, model: Autoencoder, step: int, vectors: int) -> None:
        """Before a step: its numbers, without waiting until the device has them. ``vectors``: how
        many latent vectors all processes see in it."""
        config = self._config
        self._rate.fill_(rate_of(step, config))
        self._weight.fill_(average_weight(step + 1, config.train.average))
        self._step.fill_(step)
        if len(self._picks):
            picks = model.bottleneck.picks(seed=config.train.seed, step=step, vectors=vectors)
            on_gpu = self._picks.device.type == "cuda"
            self._picks.copy_(picks.pin_memory() if on_gpu else picks, non_blocking=True)

    @torch.no_grad()
    def commit(
        self,
        state: TrainState,
        found: Gradient,
        config: Config,
        world: World,
        updates: Updates | None = None,
    ) -> dict[str, Tensor]:
        """As the function ``commit``, but where a gradient was not finite nothing changes, then
        and at all later steps."""
        failing = ~torch.isfinite(found.norm)
        first = failing & (self.failed == 0)
        self._failed_at.copy_(torch.where(first, self._step, self._failed_at))
        self._failed_norm.copy_(torch.where(first, found.norm, self._failed_norm))
        self.failed.copy_(torch.where(failing, 1.0, self.failed))
        failed = self.failed > 0
        found.norms.set(found.statistics)
        found.norms.restore_if(failed)
        state.optimizer.step()
        if updates is not None:
            updates.measure()
        state.optimizer.zero_grad(set_to_none=True)
        bottleneck = state.model.bottleneck
        kept = [(t, t.clone()) for t in bottleneck.state_dict().values() if t.is_floating_point()]
        figures = bottleneck.commit(
            seed=config.train.seed, step=state.step, gather=world.gather, picks=self._picks
        )
        _share_bottleneck(state, world)
        for tensor, before in kept:
            tensor.copy_(torch.where(failed, before, tensor))
        state.update_average(self._weight * (1 - self.failed))
        return figures

    def settle(self, state: TrainState) -> None:
        """Wait for the device. Raises FloatingPointError when a gradient was not finite; the state
        is then the one before that step, and its step too."""
        if float(self.failed):
            state.step = int(self._failed_at)
            raise _not_finite(state.step, float(self._failed_norm))


def rate_of(step: int, config: Config) -> float:
    """The learning rate of a step."""
    train = config.train
    return learning_rate(
        step,
        base=train.learning_rate,
        warmup=train.warmup,
        halve_at=train.halve_at,
        steps=train.steps,
        final_decay=train.final_decay,
    )


def _share_bottleneck(state: TrainState, world: World) -> None:
    # Sums over many vectors: on a GPU their order, and with it the last bits, is nobody's promise.
    tensors = state.model.bottleneck.state_dict().values()
    world.broadcast(tensor for tensor in tensors if tensor.is_floating_point())


def _not_finite(step: int, norm: float) -> FloatingPointError:
    return FloatingPointError(f"the gradient at step {step} is {norm}")
