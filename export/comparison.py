"""How parts of a bundle are compared: by number, as far as float32 decides them.

T samples, U units, K codes, D latent width, Q levels.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from vconv.bundle import ENCODER

TOLERANCE = 1e-4
PITCH_TOLERANCE = 1e-3  # of octaves and of voicing, 0 to 1
# A unit nearer than this to the border between two codes, in the latents' own units, may fall to
# either when float32 sums are taken in another order.
CODE_MARGIN = 1e-3
# A draw whose uniform is nearer to a step of the distribution than this may fall to either side.
DRAW_MARGIN = 1e-4
_AUDIBLE_VOICING = 0.1  # below it the pitch of a unit says nothing

Array = npt.NDArray[Any]
Mask = npt.NDArray[np.bool_]
Units = tuple[Array, Array, Array]
"""What encoder.onnx gives: codes [..., U], latents [..., U, D], pitch [..., U, 2] (or 0)."""


@dataclass(frozen=True)
class Comparison:
    """One check: its figure must not exceed its bound. Without a figure it was not made, and
    the note says why."""

    name: str
    figure: float | None
    bound: float
    note: str = ""

    @property
    def passed(self) -> bool:
        return self.figure is None or self.figure <= self.bound  # NaN fails

    def __str__(self) -> str:
        note = f" ({self.note})" if self.note else ""
        if self.figure is None:
            return f"-     {self.name}: not compared{note}"
        verdict = "ok   " if self.passed else "FAIL "
        return f"{verdict} {self.name}: {self.figure:.3g} <= {self.bound:.3g}{note}"


def difference(found: Array, wanted: Array) -> float:
    """The greatest absolute difference; infinite where the shapes differ."""
    if found.shape != wanted.shape:
        return math.inf
    if found.size == 0:
        return 0.0
    return float(np.max(np.abs(found.astype(np.float64) - wanted.astype(np.float64))))


def severity(gap: float) -> float:
    """To sort differences by: a NaN is as bad as an infinite one."""
    return math.inf if math.isnan(gap) else gap


def worst(*gaps: float) -> float:
    """The greatest of some differences."""
    return max(gaps, key=severity)


def nearest(encodings: Array, codebook: Array | None) -> tuple[Array, Mask]:
    """encodings [..., U, D] -> their codes [..., U], and where these are decided (``CODE_MARGIN``).
    Without a codebook all are -1, and decided."""
    if codebook is None:
        return np.full(encodings.shape[:-1], -1), np.ones(encodings.shape[:-1], np.bool_)
    x, rows = encodings.astype(np.float64), codebook.astype(np.float64)
    squares = (rows**2).sum(1)
    distances = squares - 2 * x @ rows.T  # squared, less the encoding's own norm
    codes = distances.argmin(-1)
    best = np.take_along_axis(distances, codes[..., None], -1)
    # How far from the plane between the nearest code and each other one: the difference of the
    # squared distances over twice the codes' own distance.
    apart = squares[codes][..., None] + squares - 2 * rows[codes] @ rows.T
    borders = (distances - best) / (2 * np.sqrt(np.maximum(apart, 1e-12)))
    np.put_along_axis(borders, codes[..., None], math.inf, -1)
    clear: Mask = borders.min(-1) > CODE_MARGIN
    return codes, clear


def quantised(encodings: Array, codes: Array, codebook: Array | None) -> Array:
    """The latents of codes: rows of the codebook, or without one the encodings themselves."""
    return encodings if codebook is None else codebook[np.clip(codes, 0, len(codebook) - 1)]


def pitch_gap(found: Array, wanted: Array, clear: Mask) -> float:
    """The greatest difference in voicing, or in octaves where voiced, among the clear units."""
    if found.shape != wanted.shape:
        return math.inf
    voiced = clear & (wanted[..., 1] > _AUDIBLE_VOICING)
    return worst(
        difference(found[clear][:, 1], wanted[clear][:, 1]),
        difference(found[voiced][:, 0], wanted[voiced][:, 0]),
    )


def drawn_inside(logits: Array, codes: Array, uniforms: Array) -> npt.NDArray[np.float64]:
    """How far each uniform [T] lies inside of the interval that its code [T] has in the
    distribution of the logits [T, Q]: [T], negative outside."""
    weights = np.exp(logits.astype(np.float64) - logits.max(1, keepdims=True))
    shares = weights / weights.sum(1, keepdims=True)
    at = codes[:, None].astype(np.int64)
    upper = np.take_along_axis(shares.cumsum(1), at, 1)[:, 0]
    lower = upper - np.take_along_axis(shares, at, 1)[:, 0]
    inside: npt.NDArray[np.float64] = np.minimum(uniforms - lower, upper - uniforms)
    return inside


class UnitGaps:
    """How far units are from what they should be, gathered over any number of encodings."""

    def __init__(self) -> None:
        self.codes = 0.0
        self.latents = 0.0
        self.pitch: float | None = None
        self.decided = np.zeros(0, np.bool_)

    def add(self, found: Units, wanted: Units, decided: Mask, clear: Mask | None) -> None:
        """``decided``: which codes are; ``clear``: which pitches are, None for a model without."""
        codes, latents, pitch = found
        self.decided = np.append(self.decided, decided)
        if codes.shape != wanted[0].shape:
            self.codes = self.latents = math.inf
            return
        same = codes == wanted[0]
        self.codes += int(np.count_nonzero(decided & ~same))
        self.latents = worst(self.latents, difference(latents[same], wanted[1][same]))
        if clear is not None:
            self.pitch = worst(self.pitch or 0.0, pitch_gap(pitch, wanted[2], clear))

    def comparisons(self, what: str, note: str = "") -> Iterator[Comparison]:
        """``what``: held against what; by default the note tells how many codes were decided."""
        note = note or among(self.decided)
        yield Comparison(f"{ENCODER}: codes {what}, differing", self.codes, 0, note)
        yield Comparison(
            f"{ENCODER}: latents {what}, where the codes agree", self.latents, TOLERANCE
        )
        if self.pitch is not None:
            yield Comparison(f"{ENCODER}: pitch {what}", self.pitch, PITCH_TOLERANCE)


def among(decided: Mask) -> str:
    """How many codes were compared, and how many were not."""
    undecided = np.count_nonzero(~decided)
    return (
        f"of {decided.size - undecided} units; {undecided} more lie within {CODE_MARGIN:g} of "
        "another code"
    )
