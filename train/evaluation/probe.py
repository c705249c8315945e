"""Whether a second of units says who spoke: a linear classifier.

K codes, D numbers of a latent, U units.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

PROBE_SECONDS = 1.0
Floats = npt.NDArray[np.floating]


def histograms(codes: npt.NDArray[np.integer], size: int, length: int) -> Iterator[Floats]:
    """How often each code occurs [K] in each whole stretch of ``length`` of codes [U]."""
    for begin in range(0, len(codes) - length + 1, length):
        yield np.bincount(codes[begin : begin + length], minlength=size).astype(np.float64)


def means(latents: Floats, length: int) -> Iterator[Floats]:
    """The mean [D] of each whole stretch of ``length`` of latents [U, D]."""
    for begin in range(0, len(latents) - length + 1, length):
        yield latents[begin : begin + length].mean(0, dtype=np.float64)


def accuracy(
    train: Sequence[tuple[object, Floats]], heldout: Sequence[tuple[object, Floats]]
) -> float:
    """How often a logistic regression, fitted to (speaker, features) pairs, names the speaker."""
    classifier = make_pipeline(StandardScaler(), LogisticRegression(max_iter=2000))
    classifier.fit(np.stack([x for _, x in train]), [str(who) for who, _ in train])
    right = classifier.predict(np.stack([x for _, x in heldout]))
    return float(np.mean(right == np.array([str(who) for who, _ in heldout])))
