"""Finite scalar quantisation against the formula of its paper, worked out number by number."""

import itertools
import math

import pytest
import torch

from vconv.nn.fsq import FSQ

LEVELS = pytest.mark.parametrize("levels", [(8, 5, 5, 5), (8, 6, 5), (3,), (2, 7)])


def fsq(levels) -> FSQ:
    torch.manual_seed(0)
    return FSQ(9, levels).eval()


def bounded(x: float, count: int) -> float:
    """Mentzer et al. 2024, appendix A.1: the bound of one number."""
    half = (count - 1) * (1 - 1e-3) / 2
    offset = 0.5 if count % 2 == 0 else 0.0
    return math.tanh(x + math.tan(offset / half)) * half - offset


@LEVELS
def test_latents_codes_and_units_are_those_of_the_formula(levels):
    bottleneck = fsq(levels)
    encodings = 3 * torch.randn(2, 9, 40)
    free = bottleneck.norm(bottleneck.project(encodings))
    latents = bottleneck.latents(encodings)
    result = bottleneck(encodings)
    for b, u in itertools.product(range(2), range(40)):
        code, weight = 0, 1
        for d, count in enumerate(levels):
            value = bounded(free[b, d, u].item(), count)
            assert latents[b, d, u].item() == pytest.approx(value / (count // 2), abs=1e-5)
            if abs(value - math.floor(value) - 0.5) < 1e-5:
                continue  # a tie of float32 and float64
            digit = round(value)
            assert result.z[b, d, u].item() == pytest.approx(digit / (count // 2), abs=1e-6)
            code += weight * (digit + count // 2)
            weight *= count
        assert result.codes[b, u] == code


@LEVELS
def test_the_codebook_lists_every_combination_of_levels(levels):
    book = fsq(levels).codebook
    assert len(book) == math.prod(levels)
    assert len({tuple(row) for row in book.tolist()}) == len(book)
    values = [sorted({(i - n // 2) / (n // 2) for i in range(n)}) for n in levels]
    for d, expected in enumerate(values):
        assert sorted(set(book[:, d].tolist())) == pytest.approx(expected)


@LEVELS
def test_rounding_is_taking_the_nearest_row_of_the_codebook(levels):
    bottleneck = fsq(levels)
    latents = bottleneck.latents(3 * torch.randn(2, 9, 60))
    codes, z = bottleneck.quantise(latents)
    distances = (latents.transpose(1, 2)[:, :, None] - bottleneck.codebook).square().sum(3)
    assert torch.equal(codes, distances.argmin(2))
    assert torch.equal(z, bottleneck.codebook[codes].transpose(1, 2))


@LEVELS
def test_every_code_can_be_reached(levels):
    bottleneck = fsq(levels)
    bottleneck.project = bottleneck.norm = torch.nn.Identity()
    # The formula's inverse, at every row of the codebook.
    half = torch.tensor([(n - 1) * (1 - 1e-3) / 2 for n in levels])
    offset = torch.tensor([0.5 if n % 2 == 0 else 0.0 for n in levels])
    width = torch.tensor([n // 2 for n in levels])
    wanted = bottleneck.codebook * width
    free = torch.atanh(((wanted + offset) / half).clamp(-0.9999, 0.9999)) - torch.tan(offset / half)
    codes = bottleneck(free.T[None]).codes
    assert torch.equal(codes[0], torch.arange(len(wanted)))


def test_gradients_pass_the_rounding_and_not_the_bound():
    bottleneck = fsq((8, 5))
    bottleneck.project = bottleneck.norm = torch.nn.Identity()
    free = torch.randn(1, 2, 6, requires_grad=True)
    bottleneck(free).z.sum().backward()
    for d, count in enumerate((8, 5)):
        for u in range(6):
            x, step = free[0, d, u].item(), 1e-5
            slope = (bounded(x + step, count) - bounded(x - step, count)) / (2 * step)
            assert free.grad[0, d, u].item() == pytest.approx(slope / (count // 2), rel=1e-3)


def test_nothing_is_due_and_nothing_is_pending():
    bottleneck = fsq((8, 5))
    assert bottleneck.vectors_wanted(10_000) == 0
    assert bottleneck.train().commit(seed=0, step=1) == {}
