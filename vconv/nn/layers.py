"""Small layers shared by the networks.

B batch, C channels, T steps (of whatever rate), K kernel, D dilation, Q rows of a table.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional


class ConvNorm(nn.Module):
    """Convolution without padding, batch norm, ReLU; optionally residual.

    x [B, C, T] -> y [B, C', T'], every output made of real input only. The residual path takes
    the input steps at the outputs' anchors, (kernel - 1) // 2 from the left.
    """

    def __init__(
        self, inputs: int, outputs: int, kernel: int, *, stride: int = 1, residual: bool = False
    ) -> None:
        super().__init__()
        self.conv = nn.Conv1d(inputs, outputs, kernel, stride=stride, bias=False)
        self.norm = nn.BatchNorm1d(outputs)
        self.residual = residual
        self.wing = (kernel - 1) // 2

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = torch.relu(self.norm(self.conv(x)))
        if self.residual:
            y = y + x[:, :, self.wing : self.wing + y.shape[2]]
        return y


class SlidingNorm(nn.Module):
    """Instance norm (Chen & Hain 2020 use it to remove the speaker) over a window of frames.

    x [B, C, F] -> y [B, C, F - frames + 1]: each channel of the middle frame, less its mean over
    the window, over its standard deviation there. A window instead of the utterance, because a
    stream has no end to wait for. What is constant over it (a gain, an equaliser, for log-mel)
    leaves no trace; ``floor`` keeps the noise of a silence from being blown up.
    """

    floor = 0.1  # variance, of features that have unit variance over the corpus

    def __init__(self, frames: int) -> None:
        super().__init__()
        self.frames = frames

    def forward(self, x: Tensor) -> Tensor:
        mean = functional.avg_pool1d(x, self.frames, stride=1)
        variance = functional.avg_pool1d(x.square(), self.frames, stride=1) - mean.square()
        middle = x[:, :, self.frames // 2 : self.frames // 2 + mean.shape[2]]
        return (middle - mean) * torch.rsqrt(variance.clamp_min(0) + self.floor)


class Lookup(torch.autograd.Function):
    """Rows of a table, table [Q, C], indices [...] -> [..., C], for a GPU.

    Its gradient is a product with the indices' indicators. Torch's own adds row to row, and where
    a few rows are taken by most of a million indices (the codes of silence), all wait for those.
    """

    @staticmethod
    def forward(ctx: Any, table: Tensor, indices: Tensor) -> Tensor:
        ctx.save_for_backward(indices)
        ctx.rows = table.shape[0]
        return functional.embedding(indices, table)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        (indices,) = ctx.saved_tensors
        rows = torch.arange(ctx.rows, device=indices.device)
        taken = (indices.reshape(-1, 1) == rows).to(gradient.dtype)
        return torch.mm(taken.T, gradient.reshape(taken.shape[0], -1)), None


def lookup(indices: Tensor, table: Tensor) -> Tensor:
    """indices [...], table [Q, C] -> rows [..., C], as ``functional.embedding``; see ``Lookup``."""
    rows: Tensor = Lookup.apply(table, indices)  # type: ignore[no-untyped-call]
    return rows


def replace_by_neighbours(latents: Tensor, sources: Tensor) -> Tensor:
    """Jitter: latents [B, C, U], sources [B, U] (indices into U) -> latents [B, C, U].

    The indices are drawn with the batch (``train.noise``); each item reads its own latents only.
    """
    return latents.gather(2, sources[:, None, :].expand(-1, latents.shape[1], -1))


def gated(hidden: Tensor) -> Tensor:
    """hidden [..., 2G] -> tanh(first half) * sigmoid(second half), [..., G].

    tanh(x) = 2 sigmoid(2x) - 1, because torch's sigmoid is four times as fast as its tanh on a
    CPU (measured, fp32, AVX2) and this is a sixth of a training step there.
    """
    filtered, gate = hidden.chunk(2, dim=-1)
    return (2 * torch.sigmoid(2 * filtered) - 1) * torch.sigmoid(gate)


def interpolate(steps: Tensor, hop: int) -> Tensor:
    """Linear interpolation from conditioning steps to samples.

    steps [B, F, C] -> [B, (F - 1) * hop, C]: sample j * hop + r lies r / hop of the way from
    step j to step j + 1. With hop 1 steps are samples already and come back as they are.
    """
    if hop == 1:
        return steps
    batch, frames, channels = steps.shape
    ramp = torch.arange(hop, device=steps.device, dtype=steps.dtype)[:, None] / hop
    here, there = steps[:, :-1, None], steps[:, 1:, None]
    return torch.addcmul(here, there - here, ramp).reshape(batch, (frames - 1) * hop, channels)
