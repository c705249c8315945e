"""What counts as equal: codes and pitches only where they are decided, and those always."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from vconv.export.comparison import (
    CODE_MARGIN,
    Comparison,
    UnitGaps,
    drawn_inside,
    nearest,
    pitch_gap,
)
from vconv.nn.fsq import FSQ


@pytest.mark.parametrize("figure", [2e-4, float("nan"), float("inf")])
def test_a_figure_beyond_its_bound_or_none_at_all_fails(figure: float) -> None:
    assert not Comparison("x", figure, 1e-4).passed
    assert str(Comparison("x", figure, 1e-4)).startswith("FAIL")


@pytest.mark.parametrize("apart", [0.1, 3.0, 40.0])
def test_a_code_is_decided_outside_of_a_margin_about_the_border(apart: float) -> None:
    """Whatever the codes' distance: the margin is measured along the line between them."""
    codebook = np.array([[0.0, 7.0], [apart, 7.0], [500.0, 7.0]])
    inside, outside = 0.9 * CODE_MARGIN, 1.1 * CODE_MARGIN
    steps = np.array([-outside, -inside, inside, outside])
    encodings = np.stack([apart / 2 + steps, np.full(4, 6.0)], axis=1)
    codes, decided = nearest(encodings, codebook)
    assert codes.tolist() == [0, 0, 1, 1]
    assert decided.tolist() == [True, False, False, True]


def test_the_nearest_border_may_not_be_that_of_the_second_nearest_code() -> None:
    # The second code is nearer by squared distance, the border to the third by its own measure.
    codebook = np.array([[0.0, 0.0], [0.01, 0.0], [0.0, 2.0]])
    _, decided = nearest(np.array([[0.005 - 2 * CODE_MARGIN, 1 - 0.5 * CODE_MARGIN]]), codebook)
    assert not decided.any()


def test_twins_in_a_codebook_decide_nothing() -> None:
    _, decided = nearest(np.zeros((1, 4)), np.ones((2, 4)))
    assert not decided.any()


@pytest.mark.parametrize("levels", [(2,), (4, 3, 5), (8, 5, 5, 5)])
def test_the_nearest_row_is_what_fsq_rounds_to(levels: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    fsq = FSQ(6, levels).eval()
    latents = fsq.latents(3 * torch.randn(4, 6, 200))
    wanted, _ = fsq.quantise(latents)
    codes, decided = nearest(latents.transpose(1, 2).detach().numpy(), fsq.codebook.numpy())
    np.testing.assert_array_equal(codes[decided], wanted.numpy()[decided])
    assert decided.mean() > 0.95


def test_without_a_codebook_every_code_is_none_of_them() -> None:
    codes, decided = nearest(np.zeros((2, 3, 4)), None)
    assert (codes == -1).all()
    assert decided.all()


def units(count: int = 4) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    random = np.random.default_rng(0)
    pitch = np.stack([random.uniform(6, 8, (1, count)), np.full((1, count), 0.8)], axis=-1)
    return random.integers(9, size=(1, count)), random.standard_normal((1, count, 3)), pitch


def gaps(found: tuple[np.ndarray, ...], decided: np.ndarray | None = None) -> list[float | None]:
    """Of codes, latents and pitch."""
    every = np.ones((1, 4), np.bool_)
    gathered = UnitGaps()
    gathered.add(units(), units(), every, every)
    gathered.add(found, units(), every if decided is None else decided, every)
    return [comparison.figure for comparison in gathered.comparisons("here")]


def test_a_code_that_differs_counts_where_it_is_decided_only() -> None:
    codes, latents, pitch = units()
    codes[0, 2] += 1
    latents[0, 2] += 1  # of another code, so another latent
    assert gaps((codes, latents, pitch)) == [1, 0, 0]
    assert gaps((codes, latents, pitch), np.array([[True, True, False, True]])) == [0, 0, 0]


def test_latents_count_where_the_codes_agree() -> None:
    codes, latents, pitch = units()
    latents[0, 2, 1] += 0.25
    assert gaps((codes, latents, pitch)) == [0, pytest.approx(0.25), 0]


def test_other_shapes_and_nans_are_infinitely_far() -> None:
    codes, latents, pitch = units()
    assert gaps(units(5))[:2] == [math.inf, math.inf]
    assert gaps((codes, latents[..., :2], pitch))[1] == math.inf
    latents[0, 0, 0] = math.nan
    assert math.isnan(gaps((codes, latents, pitch))[1] or 0)
    assert not [c for c in [Comparison("x", gaps((codes, latents, pitch))[1], 1e-4)] if c.passed]


def test_pitch_counts_where_it_is_clear_and_its_octave_where_there_is_voice() -> None:
    _, _, wanted = units()
    wanted[0, 1, 1] = 0.05
    clear = np.array([[True, True, False, True]])

    def gap(unit: int, column: int) -> float:
        found = wanted.copy()
        found[0, unit, column] += 0.5
        return pitch_gap(found, wanted, clear)

    assert [gap(unit, 0) for unit in range(4)] == pytest.approx([0.5, 0, 0, 0.5])
    assert [gap(unit, 1) for unit in range(4)] == pytest.approx([0.5, 0.5, 0, 0.5])


def test_a_draw_lies_inside_of_its_own_code_s_interval_only() -> None:
    random = np.random.default_rng(0)
    logits = 2 * random.standard_normal((500, 9)).astype(np.float32)
    uniforms = random.uniform(size=500)
    steps = torch.softmax(torch.from_numpy(logits).double(), 1).cumsum(1)
    drawn = torch.searchsorted(steps, torch.from_numpy(uniforms)[:, None])[:, 0].numpy()
    assert (drawn_inside(logits, drawn, uniforms) > -1e-12).all()
    assert (drawn_inside(logits, (drawn + 1) % 9, uniforms) < 0).all()
    exact = np.log([[0.25, 0.5, 0.25]])
    assert drawn_inside(exact, np.array([1]), np.array([0.7])) == pytest.approx(0.05)
    assert drawn_inside(exact, np.array([2]), np.array([0.7])) == pytest.approx(-0.05)
