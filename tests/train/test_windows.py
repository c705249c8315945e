"""The window plan: coverage, bijection, independence of history."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vconv.errors import InputError, UsageError
from vconv.train.windows import WindowPlan, permute

LENGTHS = [5_000, 90, 2_345, 0, 1_000, 640, 12_001]
SPEAKERS = [0, 1, 0, 2, 1, 2, 0]
WINDOW, LEFT, RIGHT = 64, 30, 17


def plan_of(lengths: list[int] = LENGTHS, seed: int = 3, **options: float | None) -> WindowPlan:
    speakers = [SPEAKERS[i % len(SPEAKERS)] for i in range(len(lengths))]
    return WindowPlan(lengths, speakers, WINDOW, LEFT, RIGHT, seed, **options)


def predicted(plan: WindowPlan, lengths: list[int], epoch: int) -> list[np.ndarray]:
    """How often each sample of each utterance is a target in an epoch."""
    first = sum(plan.epoch_size(e) for e in range(epoch))
    windows = plan.locate_many(np.arange(first, first + plan.epoch_size(epoch)))
    assert set(windows.epoch) == {epoch}
    counts = [np.zeros(length, int) for length in lengths]
    for utterance, start in zip(windows.utterance, windows.start, strict=True):
        assert start >= LEFT
        assert start + WINDOW + RIGHT <= lengths[utterance]
        counts[utterance][start : start + WINDOW] += 1
    return counts


@settings(max_examples=40, deadline=None)
@given(
    lengths=st.lists(st.integers(0, 3_000), max_size=12),
    seed=st.integers(0, 2**40),
    buffer_mb=st.none() | st.floats(0.0005, 0.02),
    epoch=st.integers(0, 3),
)
def test_every_sample_is_predicted_once_but_for_less_than_a_window_at_each_end(
    lengths: list[int], seed: int, buffer_mb: float | None, epoch: int
) -> None:
    lengths = [*lengths, 2_000]
    plan = plan_of(lengths, seed, buffer_mb=buffer_mb)
    for length, times in zip(lengths, predicted(plan, lengths, epoch), strict=True):
        targets = times[LEFT : max(LEFT, length - RIGHT)]
        assert times.sum() == targets.sum()
        assert targets.max(initial=0) <= 1
        if len(targets) >= 2 * WINDOW - 1:
            once = np.flatnonzero(targets)
            assert once[0] < WINDOW
            assert len(targets) - 1 - once[-1] < WINDOW
            assert (targets[once[0] : once[-1] + 1] == 1).all()


@settings(max_examples=60, deadline=None)
@given(size=st.integers(1, 3_000), key=st.integers(0, 2**64 - 1))
def test_the_permutation_is_a_bijection(size: int, key: int) -> None:
    places = permute(np.arange(size), size, key)
    assert np.array_equal(np.sort(places), np.arange(size))


def test_the_permutation_of_a_huge_range_stays_inside_and_does_not_collide() -> None:
    size = 10**15 + 7
    places = permute(np.arange(size - 20_000, size), size, 5)
    assert places.min() >= 0
    assert places.max() < size
    assert len(np.unique(places)) == 20_000


def test_the_permutation_looks_random() -> None:
    size = 20_000
    places = permute(np.arange(size), size, 11).astype(float)
    # A uniform permutation has correlation of standard deviation 1/sqrt(n) with the identity.
    assert abs(np.corrcoef(np.arange(size), places)[0, 1]) < 5 / np.sqrt(size)
    # |difference| of two uniform places: mean n/3, standard deviation n/sqrt(18).
    steps = np.abs(np.diff(places))
    assert abs(steps.mean() - size / 3) < 5 * size / np.sqrt(18 * size)


def test_neighbouring_samples_are_far_apart() -> None:
    lengths = [20_000] * 50
    plan = plan_of(lengths)
    found = plan.locate_many(np.arange(plan.epoch_size(0)))
    # By chance one pair in fifty lies in the same utterance.
    assert 0.01 < (np.diff(found.utterance) == 0).mean() < 0.03


def test_a_window_depends_on_seed_and_number_only() -> None:
    plan = plan_of(buffer_mb=0.01)
    numbers = np.arange(4 * plan.epoch_size(0))
    whole = plan.locate_many(numbers)
    backwards = plan_of(buffer_mb=0.01)
    shuffled = np.random.default_rng(0).permutation(numbers)
    for g in shuffled[:200]:
        window = backwards.locate(int(g))
        assert window.utterance == whole.utterance[g]
        assert window.start == whole.start[g]
        assert window.epoch == whole.epoch[g]
        assert window.speaker == SPEAKERS[window.utterance]
    mixed = backwards.locate_many(shuffled)
    assert np.array_equal(mixed.start, whole.start[shuffled])


def test_epochs_and_seeds_differ_in_order_and_phase() -> None:
    plan, other = plan_of(), plan_of(seed=4)
    size = min(plan.epoch_size(0), plan.epoch_size(1), other.epoch_size(0))
    first = plan.locate_many(np.arange(size))
    second = plan.locate_many(np.arange(size) + plan.epoch_size(0))
    third = other.locate_many(np.arange(size))
    for batch in (second, third):
        assert (first.utterance != batch.utterance).mean() > 0.2
        assert len(set(first.start) & set(batch.start)) < 0.5 * len(set(first.start))


def test_phases_are_spread_evenly() -> None:
    plan = WindowPlan([1_000] * 64_000, [0] * 64_000, 64, 0, 0, 1)
    starts = plan.locate_many(np.arange(plan.epoch_size(0))).start % 64
    counts = np.bincount(starts, minlength=64) / 64_000 / 15
    # Four standard deviations of a binomial share of 1/64 among 64,000 utterances.
    assert np.abs(counts - 1 / 64).max() < 4 * np.sqrt(1 / 64 / 64_000) * 1.07


def test_a_group_is_whole_files_within_the_budget_and_exhausted_before_the_next() -> None:
    lengths = [3_000 + 100 * i for i in range(40)]
    samples = 20_000
    plan = plan_of(lengths, buffer_mb=samples * 2 / 1e6)
    for epoch in (0, 1):
        first = sum(plan.epoch_size(e) for e in range(epoch))
        order = plan.locate_many(np.arange(plan.epoch_size(epoch)) + first).utterance
        # Between a file's first and last window only files of its own group may be met, so the
        # files on air at any time fit the budget.
        begins = {u: np.flatnonzero(order == u)[0] for u in range(40)}
        ends = {u: np.flatnonzero(order == u)[-1] for u in range(40)}
        on_air = [
            sum(lengths[u] for u in range(40) if begins[u] <= t <= ends[u])
            for t in range(0, len(order), 7)
        ]
        assert max(on_air) <= samples
        assert np.mean(on_air) > 0.5 * samples


def test_a_file_longer_than_the_budget_is_a_group_of_its_own() -> None:
    plan = plan_of([9_000, 100_000, 9_000], buffer_mb=0.02)
    order = plan.locate_many(np.arange(plan.epoch_size(0))).utterance
    assert len(np.flatnonzero(np.diff(order))) == 2


def test_a_fraction_draws_that_share_of_each_group_without_repeating() -> None:
    whole = plan_of([20_000] * 10, buffer_mb=0.1)
    part = plan_of([20_000] * 10, buffer_mb=0.1, fraction=0.25)
    assert part.epoch_size(0) == pytest.approx(whole.epoch_size(0) / 4, abs=5)
    found = part.locate_many(np.arange(part.epoch_size(0)))
    pairs = set(zip(found.utterance.tolist(), found.start.tolist(), strict=True))
    assert len(pairs) == len(found)
    assert len(set(found.utterance)) == 10


def test_left_out_utterances_are_never_drawn() -> None:
    plan = plan_of()
    drawn = plan.locate_many(np.arange(3 * plan.epoch_size(0))).utterance
    assert set(drawn) <= {0, 2, 4, 5, 6}


@pytest.mark.parametrize("lengths", [[], [0, 0], [LEFT + RIGHT + 2 * WINDOW - 2]])
def test_a_corpus_without_a_window_is_refused(lengths: list[int]) -> None:
    with pytest.raises(InputError, match="long enough"):
        plan_of(lengths)


def test_the_shortest_corpus_has_a_window_in_every_epoch() -> None:
    plan = plan_of([LEFT + RIGHT + 2 * WINDOW - 1])
    assert min(plan.epoch_size(epoch) for epoch in range(200)) == 1


@pytest.mark.parametrize(
    "options", [{"buffer_mb": 0.0}, {"fraction": 0.0}, {"fraction": 1.5}, {"seed": -1}]
)
def test_numbers_out_of_range_are_refused(options: dict[str, float]) -> None:
    with pytest.raises(UsageError):
        plan_of(**options)  # type: ignore[arg-type]
