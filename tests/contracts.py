"""What every network module must keep: one function per promise, used by the modules' tests.

Shapes: x [B, C, T] unless a test says otherwise.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from vconv.geometry import Chain, Span


def assert_reads_what_it_declares(
    f: Callable[[Tensor], Tensor], channels: int, chain: Chain
) -> None:
    """The receptive field measured from gradients is the one the geometry declares."""
    length = len(chain.inputs(Span(0, 1))) + 40
    x = torch.randn(1, channels, length, requires_grad=True)
    y = f(x)
    made = chain.outputs(Span(0, length))
    assert y.shape[2] == len(made)
    for step in {0, len(made) // 2, len(made) - 1}:
        (gradient,) = torch.autograd.grad(y[:, :, step].sum(), x, retain_graph=True)
        touched = gradient.abs().sum((0, 1)).nonzero()[:, 0]
        declared = chain.inputs(Span(made.start + step, made.start + step + 1))
        assert declared.start <= int(touched[0])
        assert int(touched[-1]) < declared.stop
        # Batch norm and ReLU may silence an input, but not all at an end in every channel.
        assert (int(touched[0]), int(touched[-1]) + 1) == (declared.start, declared.stop)


def assert_chunked_is_whole(
    f: Callable[[Tensor], Tensor], x: Tensor, chain: Chain, split: int, *, tolerance: float = 1e-5
) -> None:
    """Outputs computed from two overlapping chunks equal those computed from the whole."""
    whole = f(x)
    made = chain.outputs(Span(0, x.shape[2]))
    left = chain.inputs(Span(made.start, made.start + split))
    right = chain.inputs(Span(made.start + split, made.stop))
    parts = [f(x[:, :, span.start : span.stop]) for span in (left, right)]
    joined = torch.cat([parts[0][:, :, :split], parts[1][:, :, -(len(made) - split) :]], dim=2)
    torch.testing.assert_close(joined, whole, rtol=0, atol=tolerance)


def assert_items_are_independent(f: Callable[[Tensor], Tensor], x: Tensor) -> None:
    """Permuting the batch permutes the output."""
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(f(x[order]), f(x)[order], rtol=0, atol=1e-6)


def assert_no_future(f: Callable[[Tensor], Tensor], x: Tensor, step: int) -> None:
    """f: [B, T, C] -> [B, T, C']: outputs up to a step do not depend on later inputs."""
    x = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(f(x)[:, : step + 1].sum(), x)
    assert gradient[:, step + 1 :].abs().max() == 0
