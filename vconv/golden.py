"""golden.npz, read: what the eager network makes of one fixed input (vconv.export makes it).

T samples, M feature channels, U units, D latent width, E speaker width, C conditioning channels,
L layers, G gate channels, Q levels.
"""

from __future__ import annotations

import io
import math
import struct
import zipfile
import zlib
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import numpy.typing as npt
from numpy.lib import format as npy

from .errors import ModelError
from .geometry import Geometry, Plan

LOGIT_STEPS = 1000
_MAX_BYTES = 200_000_000  # all arrays together, unpacked
_PACKED = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)

# What zipfile and numpy raise for archives and arrays that are damaged, encrypted or foreign.
UNREADABLE = (
    ValueError, TypeError, KeyError, OSError, EOFError, RuntimeError, struct.error,
    zipfile.BadZipFile, zlib.error,
)  # fmt: skip

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Golden:
    """The arrays of golden.npz.

    signal [T]; features [F, M] normalised; encodings [U, D] before quantisation; latents [U, D]
    after it; codes [U]; pitch [U, 2] (log2 of F0 in Hz, voicing; [U, 0] of a model without);
    speaker [E]; conditioning [made, L * 2G] (or [made, C] at the sample rate), what the
    conditioner makes of the first ``plan.units`` units; forced [T'], the signal's own mu-law codes
    from sample ``plan.left`` on; logits [1000, Q], which predict the first of them from the
    initial state.
    """

    signal: Floats
    features: Floats
    encodings: Floats
    latents: Floats
    codes: npt.NDArray[np.int64]
    pitch: Floats
    speaker: Floats
    conditioning: Floats
    forced: npt.NDArray[np.uint8]
    logits: Floats

    def to_bytes(self) -> bytes:
        """As an .npz file; the same arrays give the same bytes."""
        file = io.BytesIO()
        np.savez_compressed(file, **{f.name: getattr(self, f.name) for f in fields(self)})
        return file.getvalue()

    @classmethod
    def from_bytes(cls, data: bytes, where: str) -> Golden:
        """Read an .npz file of unknown origin: no pickle, bounded memory. ModelError if it is not
        a whole golden.npz."""
        try:
            with zipfile.ZipFile(io.BytesIO(data)) as archive:
                entries = {e.filename.removesuffix(".npy"): e for e in archive.infolist()}
                wanted = {f.name for f in fields(cls)}
                if set(entries) | {"pitch"} != wanted:
                    raise ValueError(f"it holds {', '.join(sorted(entries)) or 'nothing'}")
                if sum(entry.file_size for entry in entries.values()) > _MAX_BYTES:
                    raise ValueError("its arrays are too large")
                # Of other kinds zipfile unpacks as much as comes, whatever size is declared.
                if any(entry.compress_type not in _PACKED for entry in entries.values()):
                    raise ValueError("it is not deflated")
                arrays = {n: _array(archive.read(e), n) for n, e in entries.items()}
                # Bundles of format 1 have no pitch and do not say so.
                arrays.setdefault("pitch", np.zeros((arrays["codes"].size, 0), np.float32))
                return cls(**arrays)
        except UNREADABLE as error:
            raise ModelError(f"{where}: not a whole golden file ({error}).") from None


def _array(data: bytes, name: str) -> npt.NDArray[Any]:
    file = io.BytesIO(data)
    version = npy.read_magic(file)
    read = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
    try:
        shape, _, dtype = read(file)
    except (MemoryError, RecursionError):  # of Python's parser, by which numpy reads it
        raise ValueError(f"the header of its array {name} is nested too deeply") from None
    # Before numpy allocates what the header claims.
    if dtype.hasobject or math.prod(shape) * dtype.itemsize != len(data) - file.tell():
        raise ValueError(f"its array {name} is damaged")
    file.seek(0)
    array: npt.NDArray[Any] = npy.read_array(file, allow_pickle=False)
    return array


def golden_plan(geometry: Geometry) -> tuple[Plan, int]:
    """The excerpt whose samples the logits predict, and their number T'."""
    hop = geometry.unit_hop
    samples = -(-LOGIT_STEPS // hop) * hop
    return geometry.plan(samples), samples
