"""The optimiser: AdamW, or Muon for the matrices and AdamW for everything else.

Muon moves a matrix by its momentum made orthogonal (all its singular values near 1): directions
in which gradients are small but steady get as long a step as the loudest one.
Source: K. Jordan et al., "Muon: an optimizer for hidden layers in neural networks", 2024.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from vconv.config import TrainConfig
from vconv.nn.autoencoder import Autoencoder

_ADAMW_SLOTS = ("step", "exp_avg", "exp_avg_sq")
_MUON_SLOTS = ("momentum",)
_MOMENTUM = 0.95
# A quintic that takes singular values in (0, 1] to about 1 in five iterations; it does not
# converge to 1, it is as steep as can be at 0 (Jordan et al.).
_QUINTIC = (3.4445, -4.7750, 2.0315)
_ITERATIONS = 5


class Muon(torch.optim.AdamW):
    """AdamW in which the parameters that ``matrices`` names take Muon's steps.

    A step has the root mean square ``lr``, as AdamW's have at most, so one learning rate serves
    both. It may be a tensor, and ``found_inf`` one that is 1 where nothing is to change, as for
    AdamW. A tensor of more than two dimensions is a matrix of its first against all others.
    """

    def __init__(
        self,
        parameters: list[torch.nn.Parameter],
        matrices: list[torch.nn.Parameter],
        *,
        lr: float,
        weight_decay: float,
    ) -> None:
        super().__init__(parameters, lr=lr, weight_decay=weight_decay, fused=True)
        self._matrices = matrices

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> None:  # type: ignore[override]
        """Move every parameter that has a gradient; the matrices' gradients are then gone."""
        assert closure is None
        group = self.param_groups[0]
        found_inf: Tensor | None = getattr(self, "found_inf", None)
        for matrix in self._matrices:
            if matrix.grad is None:
                continue
            state = self.state[matrix]
            if not state:
                state["momentum"] = torch.zeros_like(matrix)
            gradient = matrix.grad
            lr: float | Tensor = group["lr"]
            share: float | Tensor = 1 - _MOMENTUM
            if found_inf is not None:
                # Nothing moves, and no NaN gets far enough to be multiplied by that nothing.
                gradient = torch.where(found_inf > 0, 0.0, gradient)
                lr, share = lr * (1 - found_inf), share * (1 - found_inf)
            momentum = state["momentum"].lerp_(gradient, share)
            ahead = gradient.lerp(momentum, _MOMENTUM)  # Nesterov's
            direction = orthogonal(ahead.flatten(1)).view_as(matrix)
            # m x n with singular values of 1: the mean square is min(m, n) / (m n) = 1 / max(m, n).
            scale = max(matrix.flatten(1).shape) ** 0.5
            matrix.mul_(1 - lr * group["weight_decay"])
            if isinstance(lr, Tensor):  # of a device that must not be asked for it
                matrix.sub_(direction * (lr * scale))
            else:
                matrix.add_(direction, alpha=-lr * scale)
            matrix.grad = None  # AdamW passes it by
        super().step()

    def is_matrix(self, parameter: Tensor) -> bool:
        return any(parameter is matrix for matrix in self._matrices)


def orthogonal(matrix: Tensor) -> Tensor:
    """[m, n] -> [m, n]: nearly the orthogonal factor of its polar decomposition (singular values
    between 0.68 and 1.21 where the matrix's own are at least 1 / 500 of its norm)."""
    a, b, c = _QUINTIC
    tall = matrix.shape[0] > matrix.shape[1]
    x: Tensor = matrix / matrix.norm().clamp_min(1e-12)
    x = x.T if tall else x
    for _ in range(_ITERATIONS):
        square = x @ x.T
        x = a * x + (b * square + c * square @ square) @ x
    return x.T if tall else x


def build_optimizer(train: TrainConfig, model: Autoencoder) -> torch.optim.AdamW:
    """The optimiser that the configuration names, over all of the model's parameters."""
    parameters = list(model.parameters())
    if train.optimizer == "muon":
        return Muon(
            parameters,
            list(_hidden_matrices(model)),
            lr=train.learning_rate,
            weight_decay=train.weight_decay,
        )
    return torch.optim.AdamW(
        parameters, lr=train.learning_rate, weight_decay=train.weight_decay, fused=True
    )


def slots(optimizer: torch.optim.AdamW, parameter: Tensor) -> tuple[str, ...]:
    """The names of what the optimiser keeps of a parameter, once it has moved it."""
    if isinstance(optimizer, Muon) and optimizer.is_matrix(parameter):
        return _MUON_SLOTS
    return _ADAMW_SLOTS


def _hidden_matrices(model: Autoencoder) -> Iterator[torch.nn.Parameter]:
    """The weights between layers. Tables (speakers, codes of samples, a codebook) have rows of
    their own that are rarely touched, and the logits are no hidden layer: those stay AdamW's."""
    wavenet = model.decoder.wavenet
    others = (wavenet.embedding.weight, wavenet.logits.weight)
    for parameter in model.decoder.parameters():
        if parameter.ndim > 1 and not any(parameter is other for other in others):
            yield parameter
