"""A figure over items, with an interval over sentences.

Items of one sentence are not independent, so sentences are drawn anew, whole (Efron's bootstrap of
clusters). Every figure is a sum over items by a sum of weights; of a plain mean these are 1.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

DRAWS = 1000
_SEED = 0

Stat = dict[str, Any]
Term = tuple[str, float, float]
"""The sentence of an item, its value times its weight, its weight."""


def stat(terms: Sequence[Term]) -> Stat | None:
    """Items, sentences, mean (sum by sum), median of the items, 95 % interval of the mean; None
    of nothing."""
    terms = [term for term in terms if term[1:] != (0, 0)]
    names = list(dict.fromkeys(sentence for sentence, _, _ in terms))
    index = {name: i for i, name in enumerate(names)}
    sums, weights = np.zeros(len(names)), np.zeros(len(names))
    for sentence, value, weight in terms:
        sums[index[sentence]] += value
        weights[index[sentence]] += weight
    if weights.sum() == 0:
        return None
    low, high = interval(sums, weights)
    return {
        "items": len(terms),
        "sentences": len(names),
        "mean": float(sums.sum() / weights.sum()),
        "median": float(np.median([value / weight for _, value, weight in terms if weight])),
        "low": low,
        "high": high,
    }


def interval(
    sums: NDArray[np.floating], weights: NDArray[np.floating]
) -> tuple[float | None, float | None]:
    """The 2.5th and 97.5th percentile of sum by sum over sentences [S] drawn with replacement;
    None of fewer than two sentences."""
    if len(sums) < 2:
        return None, None
    drawn = draws(len(sums), DRAWS)
    below = weights[drawn].sum(1)
    found = sums[drawn].sum(1)[below != 0] / below[below != 0]
    low, high = np.percentile(found, [2.5, 97.5])
    return float(low), float(high)


def resampled(
    figure: Callable[[NDArray[np.intp]], float], sentences: int, count: int
) -> tuple[float | None, float | None]:
    """The interval of any figure of drawn sentences (their indices)."""
    if sentences < 2:
        return None, None
    low, high = np.percentile([figure(row) for row in draws(sentences, count)], [2.5, 97.5])
    return float(low), float(high)


def draws(sentences: int, count: int) -> NDArray[np.intp]:
    """The same indices [count, sentences] at every call."""
    return np.random.default_rng(_SEED).integers(0, sentences, (count, sentences))
