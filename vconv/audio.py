"""Audio as the networks see it: mu-law levels, emphasis, resampling, reading and writing.

Everything here is numpy. The torch side uses the very tables of `MuLaw`, so codes agree exactly.
"""

import hashlib
import math
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path

import numpy as np
import numpy.typing as npt
import soundfile
import soxr

from .errors import UsageError
from .reading import AudioInfo, AudioReader, Samples, Source, printable, read_blocks, reason_of

__all__ = [
    "FORMATS",
    "SAMPLE_RATE",
    "AudioInfo",
    "AudioReader",
    "AudioWriter",
    "DCFilter",
    "MuLaw",
    "Resampler",
    "beside_prefix",
    "decoder_codes",
    "decoder_samples",
    "deemphasise",
    "first_order",
    "preemphasise",
    "printable",
    "read",
    "read_blocks",
    "replacing",
    "resampled_length",
    "sixteen_bits",
    "write_atomic",
    "writing",
]

Codes = npt.NDArray[np.uint8] | npt.NDArray[np.int16]

SAMPLE_RATE = 16_000
"""The rate of the model and of a prepared corpus, in Hz."""

FORMATS = {
    "wav": ("WAV", "PCM_16"),
    "flac": ("FLAC", "PCM_16"),
    "ogg": ("OGG", "VORBIS"),
    "mp3": ("MP3", "MPEG_LAYER_III"),
}
"""Output suffix -> libsndfile's container and coding."""


class MuLaw:
    """Mu-law quantisation to `levels` codes, by tables that numpy and torch share.

    The companded domain y = sign(x) ln(1 + mu |x|) / ln(1 + mu), mu = levels - 1, is cut into
    `levels` equal bins (ITU-T G.711's law, with equal bins instead of its segments). A code is
    decoded at its bin's centre. The thresholds are computed in float64, and stored as float32:
    encoding is nothing but comparisons with them, which no library can round differently.
    """

    def __init__(self, levels: int = 256) -> None:
        if not 2 <= levels <= 1 << 15:
            raise UsageError(f"The number of mu-law levels must be 2 to 32,768, found {levels}.")
        self.levels = levels

    @cached_property
    def edges(self) -> Samples:
        """The ascending thresholds between neighbouring codes [levels - 1]."""
        return self._expand(np.arange(1.0, self.levels))

    @cached_property
    def centres(self) -> Samples:
        """The value of each code [levels]."""
        return self._expand(np.arange(0.5, self.levels))

    def encode(self, samples: npt.ArrayLike) -> Codes:
        """Samples [...] (clipped to [-1, 1] by nature) -> codes [...], uint8 up to 256 levels."""
        x = np.asarray(samples, np.float32)
        shift, lowest, following = self._buckets
        codes: Codes = lowest[np.ascontiguousarray(x).view(np.uint32).reshape(x.shape) >> shift]
        codes += x >= following[codes]
        return codes

    @cached_property
    def _buckets(self) -> tuple[np.uint32, Codes, Samples]:
        """How many low bits of a float to leave out so that at most one threshold lies among the
        floats that then look alike; the code of the least of each such bucket; and the threshold
        that follows each code. Several times as fast as a search among all the thresholds."""
        edges = self.edges
        # Half the least ratio of neighbouring thresholds away from 0 must span a bucket.
        positive = edges[edges > 0]
        ratio = float(np.min(positive[1:] / positive[:-1])) if len(positive) > 1 else 2.0
        kept = min(23, max(0, math.ceil(-math.log2(ratio - 1)) + 1))
        shift = np.uint32(23 - kept)
        first = np.arange(1 << (9 + kept), dtype=np.uint32) << shift
        last = first | np.uint32((1 << int(shift)) - 1)
        least = np.where(first >> np.uint32(31), last, first).view(np.float32)  # negative: the last
        least = np.where(np.isnan(least), first.view(np.float32), least)  # infinity's bucket
        lowest = np.searchsorted(edges, least, side="right")
        kind = np.uint8 if self.levels <= 256 else np.int16
        following = np.append(edges, np.float32(np.nan))  # nothing follows the last
        return shift, lowest.astype(kind), following

    def decode(self, codes: npt.ArrayLike) -> Samples:
        """Codes [...] -> samples [...]."""
        samples: Samples = self.centres[np.asarray(codes)]
        return samples

    def _expand(self, positions: npt.NDArray[np.float64]) -> Samples:
        """Positions on the axis of codes, 0 to `levels` -> samples."""
        mu = self.levels - 1.0
        companded = positions * (2.0 / self.levels) - 1.0
        magnitude = np.expm1(np.abs(companded) * np.log1p(mu)) / mu
        samples: Samples = (np.sign(companded) * magnitude).astype(np.float32)
        return samples


def first_order(
    x: npt.ArrayLike, coefficient: float, carry: float = 0.0
) -> tuple[npt.NDArray[np.float64], float]:
    """The recursion y[n] = x[n] + a y[n - 1] along [T], y[-1] = `carry` -> (y [T], new carry).

    By prefix doubling: with y_0 = x and y_(i+1)[n] = y_i[n] + a^(2^i) y_i[n - 2^i], after i steps
    y_i[n] holds the last 2^i terms of the sum over a^k x[n - k]; the loop ends when all are in,
    or when the next power of `a` is too small to matter. float64 throughout.
    """
    y = np.array(x, np.float64)
    if len(y) == 0:
        return y, carry
    y[0] += coefficient * carry
    reach, power = 1, float(coefficient)
    while reach < len(y) and abs(power) > 1e-20:
        # The right-hand side is a new array: every term is taken from before this step.
        y[reach:] += power * y[:-reach].copy()
        reach, power = 2 * reach, power * power
    return y, float(y[-1])


def preemphasise(
    x: npt.ArrayLike, coefficient: float, previous: float = 0.0
) -> tuple[Samples, float]:
    """y[n] = x[n] - a x[n - 1] along [T], x[-1] = `previous` -> (y [T], the last of x)."""
    wide = np.concatenate(([previous], np.asarray(x, np.float64)))
    return (wide[1:] - coefficient * wide[:-1]).astype(np.float32), float(wide[-1])


def deemphasise(x: npt.ArrayLike, coefficient: float, carry: float = 0.0) -> tuple[Samples, float]:
    """The inverse of `preemphasise`, block by block: x [T], carry -> (y [T], carry)."""
    y, carry = first_order(x, coefficient, carry)
    return y.astype(np.float32), carry


def decoder_codes(wav: npt.ArrayLike, *, mulaw: MuLaw, preemphasis: float, gain: float) -> Codes:
    """wav [T] -> the codes [T] the decoder predicts: pre-emphasis, gain, clipping, mu-law."""
    emphasised, _ = preemphasise(wav, preemphasis)
    return mulaw.encode(np.clip(emphasised * np.float32(gain), -1.0, 1.0))


def decoder_samples(
    codes: npt.ArrayLike, *, mulaw: MuLaw, preemphasis: float, gain: float, carry: float = 0.0
) -> tuple[Samples, float]:
    """The inverse of `decoder_codes` but for quantisation: codes [T], carry -> (wav [T], carry)."""
    return deemphasise(mulaw.decode(codes).astype(np.float64) / gain, preemphasis, carry)


class DCFilter:
    """Removes a constant offset: the causal high-pass y[n] = x[n] - x[n - 1] + a y[n - 1].

    a = 1 - 2 pi f / rate puts its -3 dB point near `cutoff_hz`. It keeps its state between blocks.
    """

    def __init__(self, sample_rate: int = SAMPLE_RATE, cutoff_hz: float = 20.0) -> None:
        self._coefficient = 1.0 - 2.0 * np.pi * cutoff_hz / sample_rate
        self._previous = 0.0
        self._carry = 0.0

    def __call__(self, block: npt.ArrayLike) -> Samples:
        """The next block [T] -> filtered [T]."""
        wide = np.concatenate(([self._previous], np.asarray(block, np.float64)))
        y, self._carry = first_order(wide[1:] - wide[:-1], self._coefficient, self._carry)
        self._previous = float(wide[-1])
        return y.astype(np.float32)


def resampled_length(length: int, in_hz: int, out_hz: int) -> int:
    """The samples a recording of `length` has at another rate: length x out / in, halves up."""
    return (2 * length * out_hz + in_hz) // (2 * in_hz)


class Resampler:
    """Mono resampling in blocks (soxr HQ, linear phase); the whole has `resampled_length` samples.

    Blocks come out later and of other lengths than they went in; their sum does not depend on how
    the input was cut.
    """

    def __init__(self, in_hz: int, out_hz: int) -> None:
        self._rates = (in_hz, out_hz)
        self._stream = (
            None
            if in_hz == out_hz
            else soxr.ResampleStream(in_hz, out_hz, 1, dtype="float32", quality="HQ")
        )
        self._pushed = 0
        self._pulled = 0

    def push(self, block: npt.ArrayLike, last: bool = False) -> Samples:
        """The next input block [T] -> whatever output is ready; `last` drains the rest."""
        x = np.ascontiguousarray(block, np.float32)
        if self._stream is None:
            return x
        self._pushed += len(x)
        y: Samples = self._stream.resample_chunk(x, last=last)
        if last:
            # soxr's own count may be one off at the end; the length is part of our contract.
            wanted = resampled_length(self._pushed, *self._rates) - self._pulled
            y = y[:wanted] if len(y) >= wanted else np.pad(y, (0, wanted - len(y)))
        self._pulled += len(y)
        return y


def read(
    source: Source,
    *,
    sample_rate: int = SAMPLE_RATE,
    channel: int | None = None,
    allow_truncated: bool = False,
    max_seconds: float | None = None,
) -> Samples:
    """A whole recording as mono float32 [T] at `sample_rate`, through the guards of `AudioReader`.

    Raises `InputError` for anything that is not a sound recording of a sane shape.
    """
    with read_blocks(
        source, channel=channel, allow_truncated=allow_truncated, max_seconds=max_seconds
    ) as reader:
        resampler = Resampler(reader.info.rate, sample_rate)
        blocks = [resampler.push(block) for block in reader]
        blocks.append(resampler.push(np.zeros(0, np.float32), last=True))
    return np.concatenate(blocks)


class AudioWriter:
    """Writes mono blocks [T] to an open sound file, clipped to full scale."""

    def __init__(self, name: str, sound: soundfile.SoundFile, path: Path) -> None:
        """``path``: where the file is to be found when it is complete."""
        self.path = path
        self._name = name
        self._sound = sound
        self._exact = sound.subtype == "PCM_16"
        self.frames = 0

    def write(self, block: npt.ArrayLike) -> None:
        """Append a block [T]; `UsageError` when it cannot be written."""
        x = np.asarray(block, np.float32)
        with writing(self._name):
            self._sound.write(sixteen_bits(x) if self._exact else np.clip(x, -1.0, 1.0))
        self.frames += len(x)


@contextmanager
def write_atomic(
    path: str | os.PathLike[str], sample_rate: int = SAMPLE_RATE, *, in_place: bool = True
) -> Iterator[AudioWriter]:
    """Write a sound file beside `path` and rename it there when the block ends without an error;
    unless it shall be left beside (not `in_place`), for the caller to rename.

    On an error the temporary file is removed and whatever was at `path` is untouched. The suffix
    names the format, one of `FORMATS`. Raises `UsageError` for another suffix, a rate the format
    cannot have, or a place that cannot be written to.
    """
    target = Path(path)
    name = printable(target)
    suffix = target.suffix.lower().lstrip(".")
    if suffix not in FORMATS:
        raise UsageError(
            f"{name}: the format {suffix or '(no suffix)'!r} cannot be written; allowed are "
            f"{', '.join(FORMATS)}."
        )
    container, coding = FORMATS[suffix]
    with replacing(target, in_place=in_place) as beside:
        # By name, as bytes: through a Python file a full disk goes unnoticed, and a name may be
        # undecodable.
        where = os.fsencode(beside) if os.name == "posix" else os.fspath(beside)
        with writing(name):
            sound = soundfile.SoundFile(where, "w", sample_rate, 1, coding, format=container)
        try:
            yield AudioWriter(name, sound, target if in_place else beside)
        finally:
            with writing(name):
                sound.close()


@contextmanager
def replacing(path: str | os.PathLike[str], *, in_place: bool = True) -> Iterator[Path]:
    """A new, empty file beside `path`, renamed there when the block ends without an error; unless
    it shall be left beside (not `in_place`), for the caller to rename.

    On an error it is removed and whatever was at `path` is untouched. Raises `UsageError` for a
    place that cannot be written to.
    """
    target = Path(path)
    name = printable(target)
    beside = target.with_name(f"{beside_prefix(target)}{secrets.token_hex(4)}{target.suffix}")
    if os.path.exists(target) and not os.path.isfile(target):
        raise UsageError(f"{name}: is there and is no file; choose another output.")
    try:
        with writing(name):
            beside.open("xb").close()  # says better than libsndfile why it cannot be made
        yield beside
        with writing(name):
            with beside.open("rb+") as file:
                os.fsync(file.fileno())
            if in_place:
                os.replace(beside, target)
    except BaseException:
        beside.unlink(missing_ok=True)
        raise


def beside_prefix(target: Path) -> str:
    """How the names of what is written beside a target begin, so that what a killed process left
    there can be told from another target's."""
    return f".vconv-{hashlib.sha256(os.fsencode(target.name)).hexdigest()[:12]}-"


def sixteen_bits(x: Samples) -> npt.NDArray[np.int16]:
    """Samples rounded to 1/32768, as they are read back; libsndfile would cut them off."""
    rounded: npt.NDArray[np.int16] = np.clip(np.rint(x * 32768.0), -32768, 32767).astype(np.int16)
    return rounded


@contextmanager
def writing(name: str) -> Iterator[None]:
    """Whatever goes wrong with writing the file of that name becomes a `UsageError`."""
    try:
        yield
    except (OSError, soundfile.LibsndfileError) as error:
        reason = reason_of(error).replace("system error", "system error, such as a full disk")
        raise UsageError(f"{name}: cannot be written ({reason}).") from error
