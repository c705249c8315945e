"""Jitter: its rate, its rule, and that it depends on nothing but seed and sample number."""

import numpy as np
import pytest

from vconv.train.noise import Stream, generator, jitter_sources


def test_units_are_replaced_at_the_given_total_rate_from_either_side_alike() -> None:
    offsets = jitter_sources(1, range(3_000), 40) - np.arange(40)
    inner = offsets[:, 1:-1]
    n = inner.size
    sd = np.sqrt(0.12 * 0.88 / n)
    assert abs((inner != 0).mean() - 0.12) < 4 * sd
    # Redirections (0.06 x 0.88 x 0.06 of units) move some from left to right.
    left, right = (inner == -1).mean(), (inner == 1).mean()
    assert left == pytest.approx(0.06 - 0.06 * 0.88 * 0.06, abs=4 * sd)
    assert right == pytest.approx(0.06 + 0.06 * 0.88 * 0.06, abs=4 * sd)


@pytest.mark.parametrize("probability", [0.12, 0.5, 0.9, 1.0])
def test_a_source_is_a_neighbour_and_never_used_three_times_running(probability: float) -> None:
    sources = jitter_sources(2, range(2_000), 25, probability)
    assert sources.min() == 0
    assert sources.max() == 24
    assert np.abs(sources - np.arange(25)).max() == 1
    thrice = (sources[:, 2:] == sources[:, 1:-1]) & (sources[:, 1:-1] == sources[:, :-2])
    assert not thrice.any()


def test_jitter_does_not_depend_on_the_batch() -> None:
    whole = jitter_sources(7, range(100, 140), 30)
    for g in (139, 100, 117):
        assert np.array_equal(jitter_sources(7, [g], 30)[0], whole[g - 100])
    assert np.array_equal(jitter_sources(7, [120, 103], 30), whole[[20, 3]])


def test_jitter_differs_by_seed_and_sample() -> None:
    rows = np.concatenate([jitter_sources(7, range(20), 60), jitter_sources(8, range(20), 60)])
    assert len(np.unique(rows, axis=0)) > 35


def test_no_probability_leaves_every_unit() -> None:
    assert np.array_equal(jitter_sources(0, [5], 9, 0.0)[0], np.arange(9))


@pytest.mark.parametrize("units", [1, 2, 3])
def test_the_shortest_sequences_stay_inside(units: int) -> None:
    sources = jitter_sources(0, range(200), units, 1.0)
    assert sources.shape == (200, units)
    assert set(np.unique(sources)) <= set(range(units))


def test_streams_of_one_sample_are_unrelated() -> None:
    draws = [generator(3, 4, stream).random(2_000) for stream in Stream]
    assert abs(np.corrcoef(draws)[np.triu_indices(3, 1)]).max() < 0.1
    assert np.array_equal(draws[0], generator(3, 4, Stream.JITTER).random(2_000))
