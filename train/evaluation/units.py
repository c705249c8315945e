"""What becomes of the units: of the output's own, and of a whole codebook.

U units, K codes.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import numpy.typing as npt

from .content import edits

Codes = npt.NDArray[np.integer]


def unit_errors(codes: Codes, again: Codes) -> dict[str, list[int]]:
    """The input's codes [U] and those of the output encoded anew: edits, and places that differ,
    each with what it is a share of."""
    both = min(len(codes), len(again))
    differ = int((codes[:both] != again[:both]).sum())
    return {
        "unit_error": [edits(codes.tolist(), again.tolist()), len(codes)],
        "unit_disagreement": [differ, both],
    }


def use(codes: Iterable[Codes], size: int) -> dict[str, float]:
    """Perplexity (2^entropy) of a codebook over recordings, and the share of it that occurs."""
    counts = np.zeros(size)
    for each in codes:
        counts += np.bincount(each, minlength=size)
    share = counts[counts > 0] / counts.sum()
    return {
        "perplexity": float(np.exp(-(share * np.log(share)).sum())),
        "codes_used": float(np.mean(counts > 0)),
    }
