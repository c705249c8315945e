"""Whose voice it is: embeddings of Resemblyzer, their cosines, errors of a verifier.

V voices, N items, 256 numbers of an embedding of unit length.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.floating]

WIDTH = 256


class Embedder:
    """Resemblyzer's encoder (GE2E, Wan et al. 2018), on one thread."""

    def __init__(self) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # pkg_resources, scipy.ndimage.morphology: old names
            import resemblyzer

        self._preprocess: Any = resemblyzer.preprocess_wav
        self._encoder: Any = resemblyzer.VoiceEncoder("cpu", verbose=False)

    def __call__(self, wav: Floats) -> Floats | None:
        """[T] at 16 kHz -> [256]; None where there is no speech to be found."""
        if not np.any(wav):
            return None
        speech = self._preprocess(np.clip(wav, -1, 1))
        if not len(speech):
            return None
        made: Floats = self._encoder.embed_utterance(speech)
        return made if np.isfinite(made).all() else None


def centroid(embeddings: Sequence[Floats]) -> Floats:
    """The mean of unit vectors, of unit length."""
    mean = np.mean(embeddings, 0)
    return np.asarray(mean / np.linalg.norm(mean))


def identified(enrolment: Mapping[str, Sequence[Floats]]) -> tuple[int, int]:
    """(Recordings whose nearest centroid is their speaker's, all): each is left out of its own."""
    names = list(enrolment)
    sums = np.stack([np.sum(enrolment[name], 0) for name in names])
    right = count = 0
    for index, name in enumerate(names):
        for embedding in enrolment[name]:
            if len(enrolment[name]) < 2:
                continue
            left = sums.copy()
            left[index] -= embedding
            left /= np.linalg.norm(left, axis=1, keepdims=True)
            right += int(np.argmax(left @ embedding)) == index
            count += 1
    return right, count


def equal_error_rate(genuine: Floats, impostor: Floats) -> float:
    """Where false acceptances and false rejections are equally frequent, interpolated."""
    from sklearn.metrics import roc_curve

    labels = np.concatenate([np.ones(len(genuine)), np.zeros(len(impostor))])
    false, true, _ = roc_curve(labels, np.concatenate([genuine, impostor]))
    gap = false - (1 - true)  # from -1 to 1, rising
    at = int(np.argmax(gap >= 0))
    if at == 0 or gap[at] == 0:
        return float(false[at])
    share = -gap[at - 1] / (gap[at] - gap[at - 1])
    return float(false[at - 1] + share * (false[at] - false[at - 1]))
