"""Which window of the corpus each training sample is: a pure function of (seed, sample number).

An epoch cuts every utterance into windows of W samples from a fresh phase, and visits them in the
order of a keyed permutation. Nothing is shuffled in memory and nothing is remembered, so training
resumes at any sample number, and a batch does not depend on what was drawn before it.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from vconv.errors import InputError, UsageError

Indices = npt.NDArray[np.int64]
_Words = npt.NDArray[np.uint64]

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)  # 2^64 / golden ratio: keeps zeros from staying zero
# With 6, or with halves of 2 bits, small ranges show structure (tests/train/test_windows.py).
_ROUNDS, _HALF_BITS = 8, 3
_BYTES_PER_SAMPLE = 2  # int16 on disk and in the page cache
# What a key is for, so that phases, file orders and permutations are unrelated.
_PHASE, _ORDER, _PERMUTATION = 1, 2, 3


@dataclass(frozen=True)
class Window:
    """One training excerpt: its W targets begin at `start`, counted from the utterance's start."""

    utterance: int
    start: int
    speaker: int
    epoch: int


@dataclass(frozen=True)
class Windows:
    """A batch of windows, each field [B] int64; see `Window`."""

    utterance: Indices
    start: Indices
    speaker: Indices
    epoch: Indices

    def __len__(self) -> int:
        return len(self.utterance)


def scramble(words: _Words) -> _Words:
    """A bijection of 64-bit words [...] in which every input bit reaches every output bit.

    It is the finaliser of SplitMix64 (Steele, Lea & Flood 2014).
    """
    words = (words ^ (words >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    words = (words ^ (words >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    words ^= words >> np.uint64(31)
    return words


def keyed(*parts: int | _Words) -> _Words:
    """A 64-bit key [...] from integers or arrays of them, in order."""
    key = np.zeros(1, np.uint64)
    for part in parts:
        word = np.atleast_1d(np.asarray(part)).astype(np.uint64)  # scalars would warn to wrap
        key = scramble(key ^ scramble(word + _GOLDEN))
        key = key + _GOLDEN
    return key


def permute(positions: Indices, size: int, key: int) -> Indices:
    """Positions [B] in [0, size) -> where the permutation of that range named by `key` puts them.

    A Feistel network on the smallest even number of bits that holds `size`, at least six (Luby &
    Rackoff 1988): a bijection whatever its round function. A result outside the range is sent
    through again (cycle walking, Black & Rogaway 2002), fewer than four times on average from a
    `size` of 17 on.
    """
    half = max(_HALF_BITS, (int(size - 1).bit_length() + 1) // 2)
    shift, mask = np.uint64(half), np.uint64((1 << half) - 1)
    keys = [keyed(key, turn) for turn in range(_ROUNDS)]
    words = positions.astype(np.uint64)
    outside = np.arange(len(words))
    while len(outside):
        left, right = words[outside] >> shift, words[outside] & mask
        for round_key in keys:
            left, right = right, left ^ (scramble(right ^ round_key) & mask)
        words[outside] = (left << shift) | right
        outside = outside[words[outside] >= np.uint64(size)]
    return words.astype(np.int64)


@dataclass(frozen=True)
class _Epoch:
    """How one epoch is cut: utterances in visiting order, and their windows counted up."""

    phases: Indices  # [N], by utterance
    order: Indices  # [N], the utterance at each place
    ends: Indices  # [N], windows up to and including each place
    group_begins: Indices  # [G], the first window of each group
    group_sizes: Indices  # [G], all windows of each group
    draw_ends: Indices  # [G], samples drawn up to and including each group

    @property
    def samples(self) -> int:
        return int(self.draw_ends[-1])


class WindowPlan:
    """The windows of a corpus in training order.

    Args:
        lengths: of the utterances [N], in samples; 0 leaves one out (a held-out one).
        speakers: their speakers [N].
        window: W, the targets of one window, in samples.
        left, right: samples of context a window needs before its first and after its last target:
            the targets of an utterance are its samples [left, length - right).
        seed: of the phases, the file order and the permutations.
        buffer_mb: whole files in a random order are taken up to this much audio, and their windows
            are exhausted before the next group; None takes the corpus as one group.
        fraction: the share of a group's windows drawn before the next one; 1 exhausts it.

    In an epoch every target is predicted exactly once, except fewer than W at each end of an
    utterance (at most once with a `fraction` below 1).

    Raises `InputError` when no utterance is long enough, `UsageError` for a number out of range.
    """

    def __init__(
        self,
        lengths: npt.ArrayLike,
        speakers: npt.ArrayLike,
        window: int,
        left: int,
        right: int,
        seed: int,
        buffer_mb: float | None = None,
        fraction: float = 1.0,
    ) -> None:
        if window < 1 or left < 0 or right < 0 or seed < 0:
            raise UsageError(
                "A window needs at least one target, and contexts and seed of 0 or more; found "
                f"window {window}, left {left}, right {right}, seed {seed}."
            )
        if buffer_mb is not None and not buffer_mb > 0:
            raise UsageError(f"data.buffer_mb must be positive or null, found {buffer_mb}.")
        if not 0 < fraction <= 1:
            raise UsageError(f"The fraction of a group must be over 0 and at most 1: {fraction}.")
        self._lengths = np.asarray(lengths, np.int64)
        self._speakers = np.asarray(speakers, np.int64)
        self._window, self._left, self._seed = window, left, seed
        self._targets = np.maximum(self._lengths - left - right, 0)
        self._budget = None if buffer_mb is None else int(buffer_mb * 1e6 / _BYTES_PER_SAMPLE)
        self._fraction = fraction
        # From 2 W - 1 targets on, an utterance holds a window at every phase: no epoch is empty.
        needed = left + 2 * window - 1 + right
        if not len(self._targets) or self._targets.max() < 2 * window - 1:
            longest = int(self._lengths.max()) if len(self._lengths) else 0
            raise InputError(
                f"No utterance of the corpus is long enough: the longest has {longest:,} samples "
                f"with its silence, a window of {window:,} with its context needs {needed:,}."
            )
        self._epoch_ends: list[int] = []  # samples up to and including each epoch met so far
        self._latest: tuple[int, _Epoch] = (0, self._cut(0))

    def epoch_size(self, epoch: int) -> int:
        """The number of samples drawn in an epoch."""
        return self._epoch(epoch).samples

    def locate(self, g: int) -> Window:
        """The window of sample number `g`."""
        found = self.locate_many([g])
        return Window(
            int(found.utterance[0]), int(found.start[0]), int(found.speaker[0]), int(found.epoch[0])
        )

    def locate_many(self, gs: npt.ArrayLike) -> Windows:
        """The windows of sample numbers [B], whatever their order."""
        numbers = np.asarray(gs, np.int64)
        utterances, starts, epochs = (np.empty(numbers.shape, np.int64) for _ in range(3))
        while not self._epoch_ends or self._epoch_ends[-1] <= numbers.max(initial=0):
            begin = self._epoch_ends[-1] if self._epoch_ends else 0
            self._epoch_ends.append(begin + self._epoch(len(self._epoch_ends)).samples)
        epochs[:] = np.searchsorted(self._epoch_ends, numbers, side="right")
        for epoch in np.unique(epochs):
            chosen = epochs == epoch
            begin = self._epoch_ends[epoch - 1] if epoch else 0
            utterances[chosen], starts[chosen] = self._within(int(epoch), numbers[chosen] - begin)
        return Windows(utterances, starts, self._speakers[utterances], epochs)

    def _within(self, epoch: int, draws: Indices) -> tuple[Indices, Indices]:
        """Draws [B] of an epoch, counted from its start -> their utterances and starts [B]."""
        cut = self._epoch(epoch)
        groups = np.searchsorted(cut.draw_ends, draws, side="right")
        places = np.empty_like(draws)
        for group in np.unique(groups):
            chosen = groups == group
            begin = int(cut.draw_ends[group - 1]) if group else 0
            key = int(keyed(self._seed, epoch, _PERMUTATION, int(group))[0])
            permuted = permute(draws[chosen] - begin, int(cut.group_sizes[group]), key)
            places[chosen] = cut.group_begins[group] + permuted
        slots = np.searchsorted(cut.ends, places, side="right")
        utterances = cut.order[slots]
        before = np.where(slots > 0, cut.ends[slots - 1], 0)
        starts = self._left + cut.phases[utterances] + (places - before) * self._window
        return utterances, starts

    def _epoch(self, epoch: int) -> _Epoch:
        number, cut = self._latest
        if number != epoch:
            cut = self._cut(epoch)
            self._latest = (epoch, cut)
        return cut

    def _cut(self, epoch: int) -> _Epoch:
        utterances = np.arange(len(self._lengths), dtype=np.uint64)
        hashed = keyed(self._seed, epoch, _PHASE, utterances)
        phases = (hashed % np.uint64(self._window)).astype(np.int64)
        counts = np.maximum((self._targets - phases) // self._window, 0)
        order = np.arange(len(counts))
        group_ends = np.array([len(counts)])
        if self._budget is not None:
            order = np.argsort(keyed(self._seed, epoch, _ORDER, utterances), kind="stable")
            group_ends = self._groups(order, counts, self._budget)
        ends = np.cumsum(counts[order])
        window_ends = ends[group_ends - 1]
        sizes = np.diff(window_ends, prepend=0)
        draws = np.ceil(self._fraction * sizes).astype(np.int64)
        return _Epoch(phases, order, ends, window_ends - sizes, sizes, np.cumsum(draws))

    def _groups(self, order: Indices, counts: Indices, budget: int) -> Indices:
        """The ends [G] of the runs of `order` that fit the budget; a longer file is one alone."""
        used = np.where(counts[order] > 0, self._lengths[order], 0)
        filled = np.cumsum(used)
        ends = []
        begin = 0
        while begin < len(order):
            before = filled[begin - 1] if begin else 0
            end = int(np.searchsorted(filled, before + budget, side="right"))
            begin = max(end, begin + 1)
            ends.append(begin)
        return np.array(ends)
