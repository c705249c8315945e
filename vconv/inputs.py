"""What a conversion can be given: a file, its bytes, or samples; all become blocks of mono floats.

Files go through the guards of `reading`; samples from a program meet the same limits here.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from .errors import InputError, UsageError
from .guards import MAX_AMPLITUDE, RATES_HZ
from .reading import AudioReader, Samples, Source, read_blocks

if TYPE_CHECKING:
    from typing import Protocol

    class Tensor(Protocol):
        """What of a torch tensor is used; torch itself is not imported."""

        def detach(self) -> Any: ...

    Input = Source | npt.NDArray[Any] | Tensor

BLOCK_SECONDS = 0.4  # how often a conversion tells its progress, and can be cancelled
_INTEGER_SCALE = {"int16": 2.0**15, "int32": 2.0**31}


@dataclass(frozen=True)
class Recording:
    """An opened input: printable name, rate in Hz, duration where it is declared, and its blocks
    (mono float32 [T], 0.4 s each), to be read once."""

    name: str
    rate: int
    seconds: float | None
    blocks: Iterator[Samples]
    reader: AudioReader | None = None

    @property
    def mix_cancels(self) -> bool:
        """Whether the channels were in antiphase; known once the blocks are read."""
        return self.reader is not None and self.reader.mix_cancels


@contextmanager
def open_input(
    x: Input,
    *,
    sample_rate: int | None = None,
    channel: int | None = None,
    allow_truncated: bool = False,
    max_seconds: float | None = None,
) -> Iterator[Recording]:
    """Open a path, the bytes of a file, a seekable binary file, or samples [T] with their rate.

    Raises InputError for a recording that cannot be used, UsageError for a wrong call.
    """
    if _is_samples(x):
        if sample_rate is None:
            raise UsageError("Samples need their rate: pass sample_rate=, in Hz.")
        checked_rate(sample_rate)
        samples = as_samples(x)
        seconds = len(samples) / sample_rate
        if max_seconds is not None and seconds > max_seconds:
            raise InputError(
                f"The samples last {seconds:,.0f} s, longer than the {max_seconds:g} s allowed."
            )
        size = int(BLOCK_SECONDS * sample_rate)
        blocks = (samples[i : i + size] for i in range(0, len(samples), size))
        yield Recording("<samples>", sample_rate, seconds, blocks)
        return
    if sample_rate is not None:
        raise UsageError("sample_rate= is for samples; a file says its own rate.")
    with read_blocks(
        x,  # type: ignore[arg-type]  # what is not samples is a Source, or refused there
        block_seconds=BLOCK_SECONDS,
        channel=channel,
        allow_truncated=allow_truncated,
        max_seconds=max_seconds,
    ) as reader:
        info = reader.info
        yield Recording(reader.name, info.rate, info.seconds, iter(reader), reader)


def checked_rate(rate: int, what: str = "The sample rate") -> int:
    """The rate, if recordings may have it; UsageError otherwise."""
    low, high = RATES_HZ
    if not low <= rate <= high or rate != int(rate):
        raise UsageError(f"{what} must be {low:,} to {high:,} Hz, found {rate!r}.")
    return int(rate)


def as_samples(x: Any, first: int = 0) -> Samples:
    """An array or tensor [T] (also [1, T] or [T, 1]) of floats or 16 or 32-bit integers -> float32.

    ``first`` is the number of samples before these, for the message. Raises UsageError for
    another shape or type, InputError for samples that are not finite or absurdly large.
    """
    if hasattr(x, "detach"):
        x = x.detach().cpu()
    array = np.asarray(x)
    if array.ndim == 2 and 1 in array.shape:
        array = array.reshape(-1)
    if array.ndim != 1:
        raise UsageError(f"Samples must be mono, of shape [T], found {list(array.shape)}.")
    if array.dtype.kind == "f":
        samples = array.astype(np.float32)
    elif array.dtype.name in _INTEGER_SCALE:
        samples = (array / _INTEGER_SCALE[array.dtype.name]).astype(np.float32)
    else:
        raise UsageError(f"Samples must be floats, int16 or int32, found {array.dtype}.")
    inside = np.abs(samples) <= MAX_AMPLITUDE  # false for NaN
    if not inside.all():
        at = int(np.argmin(inside))
        value = float(samples[at])
        what = "NaN" if math.isnan(value) else f"{value:g}"
        raise InputError(
            f"<samples>: contains {what} at sample {first + at:,}; samples must be finite and at "
            f"most {MAX_AMPLITUDE:g} times full scale."
        )
    return samples


def _is_samples(x: Any) -> bool:
    return hasattr(x, "__array__")  # arrays and tensors
