"""The window plan: coverage, bijection, independence of history, and an order without structure."""

import math
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from vconv.errors import InputError, UsageError
from vconv.train.windows import WindowPlan, permute

LENGTHS = [5_000, 90, 2_345, 0, 1_000, 640, 12_001]
SPEAKERS = [0, 1, 0, 2, 1, 2, 0]
WINDOW, LEFT, RIGHT = 64, 30, 17
# Every statistic is of fixed keys and so always the same. What is random lies above the first of
# these p-values, what is not below the second.
SIGNIFICANT, STRUCTURED = 1e-3, 1e-9
slow = pytest.mark.slow


def plan_of(lengths: list[int] = LENGTHS, seed: int = 3, **options: float | None) -> WindowPlan:
    speakers = [SPEAKERS[i % len(SPEAKERS)] for i in range(len(lengths))]
    return WindowPlan(lengths, speakers, WINDOW, LEFT, RIGHT, seed, **options)


def drawn(plan: WindowPlan, epoch: int) -> np.ndarray:
    """The windows of an epoch in their order [N, 2]: utterance, start."""
    first = sum(plan.epoch_size(e) for e in range(epoch))
    found = plan.locate_many(np.arange(first, first + plan.epoch_size(epoch)))
    return np.stack([found.utterance, found.start], axis=1)


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


# The order. K permutations of n; positions [K, n] say where in the order each of n things comes.


def p_of_distances(positions: np.ndarray) -> float:
    """Of the distances between the positions of neighbours, if the order were random.

    Of n (n - 1) / 2 pairs of places n - d are d apart. Chi-square over 40 equally likely ranges,
    of pairs that share no member.
    """
    n = positions.shape[1]
    distances = np.abs(positions[:, 0 : n - 1 : 2] - positions[:, 1:n:2]).ravel()
    expected = np.where(np.arange(n) > 0, 2 * (n - np.arange(n)) / (n * (n - 1)), 0)
    below = np.cumsum(expected)
    edges = np.unique(np.searchsorted(below, np.linspace(0, 1, 41)[1:-1]))
    shares = np.diff(below[edges], prepend=0, append=1)
    counts = np.bincount(np.searchsorted(edges, distances), minlength=len(shares))
    return float(stats.chisquare(counts, shares * counts.sum()).pvalue)


def p_of_serial_correlation(positions: np.ndarray) -> float:
    """Of the mean correlation of one position with the next, which is -1 / (n - 1) by chance."""
    count, n = positions.shape
    normalised = (positions - (n - 1) / 2) / np.sqrt((n**2 - 1) / 12)
    serial = (normalised[:, :-1] * normalised[:, 1:]).mean(axis=1)
    score = (serial.mean() + 1 / (n - 1)) * np.sqrt(count * (n - 1))
    return float(2 * stats.norm.sf(abs(score)))


def p_of_independence(first: np.ndarray, second: np.ndarray, n: int) -> float:
    """Of where two orders put the same things: chi-square over a grid of 8 x 8."""
    grid = np.histogram2d(first / n, second / n, bins=8, range=[[0, 1], [0, 1]])[0]
    return float(stats.chi2_contingency(grid).pvalue)


@pytest.mark.parametrize(("size", "keys"), [(64, 2000), (256, 600), (257, 400), (5_000, 40)])
def test_neighbours_are_as_far_apart_as_in_a_random_order(size: int, keys: int) -> None:
    places = np.stack([permute(np.arange(size), size, key) for key in range(keys)])
    for positions in (places, np.argsort(places, axis=1)):
        assert p_of_distances(positions) > SIGNIFICANT
        assert p_of_serial_correlation(positions) > SIGNIFICANT


@pytest.mark.parametrize(("size", "times"), [(3, 60), pytest.param(5, 40, marks=slow)])
def test_a_small_range_is_met_in_every_order_equally_often(size: int, times: int) -> None:
    keys = range(times * math.factorial(size))
    orders = [tuple(permute(np.arange(size), size, key)) for key in keys]
    counts = np.unique(orders, axis=0, return_counts=True)[1]
    assert len(counts) == math.factorial(size)
    assert stats.chisquare(counts).pvalue > SIGNIFICANT


def poor_orders(size: int, keys: int) -> dict[str, np.ndarray]:
    """Orders that are in use elsewhere, as positions [K, n]."""
    random = np.random.default_rng(0)
    here = np.arange(size)
    walks, begins = random.integers(2, size // 2, keys), random.integers(size, size=keys)
    buffered = []
    for _ in range(keys):  # the next from a buffer of a tenth
        buffer, order = list(here[: size // 10]), []
        for coming in [*here[size // 10 :], *[None] * (size // 10)]:
            order.append(buffer.pop(random.integers(len(buffer))))
            if coming is not None:
                buffer.append(coming)
        buffered.append(np.argsort(order))
    return {
        "none": np.tile(here, (keys, 1)),
        "rotations": (here + begins[:, None]) % size,
        "walks of a stride, the size a prime": (here * walks[:, None] + begins[:, None]) % size,
        "a buffer's": np.stack(buffered),
    }


def test_orders_with_structure_do_not_pass_for_random() -> None:
    for name, positions in poor_orders(257, 400).items():
        assert p_of_distances(positions) < STRUCTURED, name
    fair = np.random.default_rng(0).permuted(np.tile(np.arange(257), (400, 1)), axis=1)
    assert p_of_distances(fair) > SIGNIFICANT
    assert p_of_serial_correlation(fair) > SIGNIFICANT
    assert p_of_serial_correlation(poor_orders(257, 400)["none"]) < STRUCTURED


@pytest.mark.parametrize("buffer_mb", [None, 0.15])
def test_neighbouring_windows_of_a_file_come_far_apart(buffer_mb: float | None) -> None:
    """As far as in a random order of the corpus, or of their group."""
    shares = []
    for seed in range(6):
        plan = plan_of([6_000 + 10 * i for i in range(60)], seed, buffer_mb=buffer_mb)
        order = drawn(plan, 0)
        by_place = np.lexsort((order[:, 1], order[:, 0]))
        files, positions = order[by_place, 0], by_place
        # The first and second window of a file, the third and fourth, and so on.
        number = np.arange(len(files)) - np.searchsorted(files, files)
        pairs = np.flatnonzero((number[:-1] % 2 == 0) & (files[:-1] == files[1:]))
        ends = plan._epoch(0).draw_ends
        assert (len(ends) > 3) == (buffer_mb is not None)
        group = np.searchsorted(ends, positions[pairs], side="right")
        n = np.diff(ends, prepend=0)[group]
        d = np.abs(positions[pairs] - positions[pairs + 1])
        shares.append(1 - (n - d) * (n - d - 1) / (n * (n - 1)))  # of pairs at most so far apart
    found = np.concatenate(shares)
    assert len(found) > 15_000
    assert found.max() <= 1, "a file in two groups"
    assert stats.kstest(found, "uniform").pvalue > SIGNIFICANT


def test_batches_mix_speakers_as_random_draws_do() -> None:
    """Three speakers in turn, file by file; how many windows of a batch of 16 are the first's."""
    counts, expected = np.zeros(17), np.zeros(17)
    for seed in range(12):
        plan = WindowPlan([6_400] * 90, np.arange(90) // 30, WINDOW, 0, 0, seed)
        size = plan.epoch_size(0) // 16 * 16
        own = plan.locate_many(np.arange(plan.epoch_size(0))).speaker == 0
        counts += np.bincount(own[:size].reshape(-1, 16).sum(axis=1), minlength=17)
        expected += size / 16 * stats.hypergeom(len(own), own.sum(), 16).pmf(np.arange(17))
    rare = expected < 20
    observed = np.append(counts[~rare], counts[rare].sum())
    wanted = np.append(expected[~rare], expected[rare].sum())
    assert len(observed) > 8
    assert stats.chisquare(observed, wanted).pvalue > SIGNIFICANT


def test_the_orders_of_two_epochs_and_of_two_seeds_are_independent() -> None:
    """Where the k-th window of a file comes in each; every file has 93 windows at any phase."""
    lengths = [LEFT + RIGHT + 94 * WINDOW - 1] * 90

    def places(seed: int, epoch: int) -> np.ndarray:
        order = drawn(plan_of(lengths, seed), epoch)
        return np.argsort(order[:, 0] * 93 + (order[:, 1] - LEFT) // WINDOW)

    n = 90 * 93
    first = [places(seed, 0) for seed in range(8)]
    second = [places(seed, 1) for seed in range(8)]
    assert all(len(order) == n for order in first)
    assert p_of_independence(np.concatenate(first), np.concatenate(second), n) > SIGNIFICANT
    for shift in (1, 3):
        assert p_of_independence(np.concatenate(first), np.roll(first, shift, 0).ravel(), n) > (
            SIGNIFICANT
        )
    turned = (np.concatenate(first) + n // 5) % n
    assert p_of_independence(np.concatenate(first), turned, n) < STRUCTURED


# Numbers


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


@settings(max_examples=40, deadline=None)
@given(
    lengths=st.lists(st.integers(0, 4_000), max_size=20),
    seed=st.integers(0, 2**40),
    samples=st.integers(500, 12_000),
    fraction=st.floats(0.01, 1),
    epoch=st.integers(0, 2),
)
def test_groups_hold_to_the_budget_are_disjoint_and_each_gives_its_share_once(
    lengths: list[int], seed: int, samples: int, fraction: float, epoch: int
) -> None:
    lengths = [*lengths, 2_000]
    whole = plan_of(lengths, seed, buffer_mb=samples * 2 / 1e6)
    plan = plan_of(lengths, seed, buffer_mb=samples * 2 / 1e6, fraction=fraction)
    windows = drawn(whole, epoch)
    held = np.bincount(windows[:, 0], minlength=len(lengths))  # windows of each file
    # Whole files one after another, as long as they fit: by hand.
    groups: list[list[int]] = [[]]
    for file in plan._epoch(epoch).order:
        if held[file] and groups[-1] and sum(lengths[f] for f in [*groups[-1], file]) > samples:
            groups.append([])
        if held[file]:
            groups[-1].append(file)
    assert sorted(f for group in groups for f in group) == np.flatnonzero(held).tolist()
    assert all(len(g) == 1 or sum(lengths[f] for f in g) <= samples for g in groups)
    found = drawn(plan, epoch)
    assert len({*map(tuple, found)}) == len(found), "a window twice"
    assert {*map(tuple, found)} <= {*map(tuple, windows)}
    begin = 0
    for group in groups:
        share = math.ceil(fraction * held[group].sum())
        assert set(found[begin : begin + share, 0]) <= set(group)
        begin += share
    assert begin == len(found) == plan.epoch_size(epoch)


def test_with_a_fraction_every_window_has_the_same_chance() -> None:
    """200 epochs of groups of which a quarter is drawn, by the place within the file."""
    plan = plan_of([64 * 21 + LEFT + RIGHT] * 30, buffer_mb=0.02, fraction=0.25)
    found = plan.locate_many(np.arange(sum(plan.epoch_size(epoch) for epoch in range(200))))
    # The last window is there at phase 0 only.
    places = np.bincount((found.start - LEFT) // 64)[:20]
    assert stats.chisquare(places).pvalue > SIGNIFICANT
    files = np.bincount(found.utterance)
    assert stats.chisquare(files).pvalue > SIGNIFICANT


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


def test_the_plan_takes_memory_for_the_utterances_and_not_for_the_windows() -> None:
    sizes = []
    for window in (64, 6_400):
        tracemalloc.start()
        plan = WindowPlan([160_000] * 20_000, [0] * 20_000, window, 0, 0, 0, buffer_mb=32.0)
        plan.locate_many(plan.epoch_size(0) + np.arange(64))
        sizes.append(tracemalloc.get_traced_memory()[0] / 20_000)
        tracemalloc.stop()
    assert sizes[0] == pytest.approx(sizes[1], rel=0.05)
    assert max(sizes) < 100  # bytes an utterance; the first plan has 50 million windows
