"""A recording's pitch relative to its speaker's own, and how far a voice may shift it.

U units.
"""

from __future__ import annotations

import numpy as np

from .errors import UsageError
from .manifest import Manifest
from .reading import Samples

PRIOR_UNITS = 25  # half a second of voice
MAX_SEMITONES = 24


class RelativePitch:
    """Pitch as it is heard -> pitch relative to the mean of all that was heard so far.

    The decoder was trained on log2 F0 less the speaker's mean, and a source's speaker is not
    known. So the mean is estimated on the way, from ``prior`` (the mean of the voices that the
    model knows), which counts like so many voiced units. What was said of a unit is never
    changed afterwards: a stream and the file give the same.
    """

    def __init__(self, prior: float) -> None:
        """``prior``: log2 of an F0 in Hz."""
        self._sum = PRIOR_UNITS * prior
        self._weight = float(PRIOR_UNITS)

    def __call__(self, pitch: Samples) -> Samples:
        """The next units' log2 F0 and voicing [U, 2] -> octaves above the mean, which includes
        these units (0 where unvoiced), and voicing [U, 2]. [U, 0] of a model without stays."""
        octave, voicing = pitch[:, :1].astype(np.float64), pitch[:, 1:].astype(np.float64)
        self._sum += float((octave * voicing).sum())
        self._weight += float(voicing.sum())
        relative = np.where(voicing > 0, octave - self._sum / self._weight, 0.0)
        return np.concatenate((relative, voicing), axis=1).astype(np.float32)


def shifted(pitch: Samples, octaves: float) -> Samples:
    """Relative pitch and voicing [U, 2] -> what the decoder is told of them [U, 2]: pitch times
    voicing, that many octaves higher, and voicing."""
    relative, voicing = pitch[:, :1], pitch[:, 1:]
    return np.concatenate(((relative + np.float32(octaves)) * voicing, voicing), axis=1)


def checked_semitones(semitones: float, model: Manifest) -> float:
    """UsageError unless the model can shift the pitch so far."""
    if not -MAX_SEMITONES <= semitones <= MAX_SEMITONES:
        raise UsageError(
            f"The pitch must be -{MAX_SEMITONES} to {MAX_SEMITONES} semitones, found {semitones:g}."
        )
    if semitones and not model.model.decoder.pitch:
        raise UsageError(f"The model {model.name!r} was trained without pitch; it cannot shift it.")
    return float(semitones)
