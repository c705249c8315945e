"""WAV that comes down a pipe: its header read without going back, its sound as it arrives.

Only what can be converted on the fly is understood here: linear PCM, floats, mu-law and A-law.
Everything else is left to libsndfile, which wants a file; so what was looked at is kept.
"""

import io
import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import BinaryIO

import numpy as np
import numpy.typing as npt

from .guards import Samples

UNKNOWN = 0xFFFFFFFF  # a streaming writer's length
# sox and arecord write the largest signed length, less some of their own, into a pipe.
_NO_LENGTH = 0x7FFFF000
_MAX_HEADER = 1 << 16  # bytes before the sound
_MAX_TAIL = 1 << 20  # bytes after it
_EXTENSIBLE = 0xFFFE
_GUID_TAIL = bytes.fromhex("000000001000800000aa00389b71")  # of a format's number as a GUID
_PCM, _FLOAT, _ALAW, _MULAW = 1, 3, 6, 7


@dataclass(frozen=True)
class Layout:
    """How the sound is stored: `coding` is WAV's number of it, `data_bytes` None where the length
    is open, `tail_bytes` what follows the sound."""

    rate: int
    channels: int
    coding: int
    bits: int
    data_bytes: int | None
    tail_bytes: int = 0

    @property
    def frame_bytes(self) -> int:
        """Bytes of one sample of every channel."""
        return self.channels * self.bits // 8

    @property
    def frames(self) -> int | None:
        """The declared length."""
        return None if self.data_bytes is None else self.data_bytes // self.frame_bytes

    def samples(self, data: bytes) -> Samples:
        """Whole frames as bytes -> [T, C], to the bit what libsndfile makes of them."""
        return _DECODERS[self.coding, self.bits](data).reshape(-1, self.channels)


def raw_layout(rate: int) -> Layout:
    """Sound without a header: 16 bits, little-endian, one channel."""
    return Layout(rate, 1, _PCM, 16, None)


class Peeked(io.RawIOBase):
    """A stream whose first bytes were looked at, and that reads from its beginning all the same.

    `layout`: of a WAV that can be converted as it comes; else None. With `layout` given, nothing
    is looked at. `read_sound` and reading it as a file exclude each other.
    """

    def __init__(self, stream: BinaryIO, layout: Layout | None = None) -> None:
        super().__init__()
        # What is there, and no waiting for more: read1 of a buffered stream, read of a raw one.
        self._read_some: Callable[[int], bytes] = getattr(stream, "read1", stream.read)
        self._head = bytearray()
        self._at = 0
        self.layout = layout if layout is not None else self._look()
        self._left = self.layout.data_bytes if self.layout is not None else None

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        """The looked-at bytes again, then the others."""
        data = bytes(self._head[self._at : self._at + len(buffer)])
        self._at += len(data)
        data = data or self._read_some(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def read_sound(self, most: int) -> bytes:
        """What has arrived of the sound, `most` bytes at most; waits for the first of them. b"" at
        its end, `missing` bytes before the declared one."""
        if self._left is not None:
            most = min(most, self._left)
        data = self._read_some(most) if most else b""
        if self._left is not None:
            self._left -= len(data)
        return data

    @property
    def missing(self) -> int:
        """Bytes of the declared sound that have not come."""
        return self._left or 0

    def skip_tail(self) -> None:
        """Take what follows the sound, so that whoever writes it can end in peace."""
        left = self.layout.tail_bytes if self.layout is not None else 0
        while left > 0 and (data := self._read_some(left)):
            left -= len(data)

    def _take(self, count: int) -> bytes:
        """The next bytes, kept; fewer at the end of the stream."""
        begin = len(self._head)
        while len(self._head) - begin < count:
            data = self._read_some(count - (len(self._head) - begin))
            if not data:
                break
            self._head += data
        return bytes(self._head[begin:])

    def _look(self) -> Layout | None:
        head = self._take(12)
        if head[:4] != b"RIFF" or head[8:] != b"WAVE":
            return None
        whole = struct.unpack("<I", head[4:8])[0]
        form: tuple[int, int, int, int] | None = None
        while len(self._head) < _MAX_HEADER:
            header = self._take(8)
            if len(header) < 8:
                return None
            name, length = struct.unpack("<4sI", header)
            if name == b"data":
                return None if form is None else _layout(form, whole, length, len(self._head))
            if length > _MAX_HEADER:
                return None
            content = self._take(length + length % 2)
            if name == b"fmt ":
                form = _form(content)
        return None


def wav_header(rate: int, frames: int | None) -> bytes:
    """The header of a mono 16-bit WAV; with sizes of 0xFFFFFFFF where the length is not known."""
    size = UNKNOWN if frames is None or 2 * frames + 36 > UNKNOWN else 2 * frames
    whole = UNKNOWN if size == UNKNOWN else size + 36
    return struct.pack("<4sI4s4sIHHIIHH4sI", b"RIFF", whole, b"WAVE", b"fmt ", 16, _PCM, 1, rate,
                       2 * rate, 2, 16, b"data", size)  # fmt: skip


def _form(content: bytes) -> tuple[int, int, int, int] | None:
    """(coding, channels, rate, bits) of a fmt chunk, if it is one of ours."""
    if len(content) < 16:
        return None
    coding, channels, rate, _, align, bits = struct.unpack("<HHIIHH", content[:16])
    if coding == _EXTENSIBLE and content[26:40] == _GUID_TAIL:
        coding = struct.unpack("<H", content[24:26])[0]
    known = (coding, bits) in _DECODERS and align == channels * bits // 8 > 0
    return (coding, channels, rate, bits) if known else None


def _layout(form: tuple[int, int, int, int], whole: int, length: int, begin: int) -> Layout:
    coding, channels, rate, bits = form
    # With a length of 0 the sound is streamed, unless the file says that chunks follow it.
    if length >= _NO_LENGTH or (length == 0 and not begin < whole + 8 < _NO_LENGTH):
        return Layout(rate, channels, coding, bits, None)
    tail = 0 if whole >= _NO_LENGTH else whole + 8 - begin - length
    return Layout(rate, channels, coding, bits, length, min(max(tail, 0), _MAX_TAIL))


# -- codings ---------------------------------------------------------------------------------------


def _linear(layout: str, scale: float, offset: int = 0) -> Callable[[bytes], Samples]:
    def decode(data: bytes) -> Samples:
        samples: Samples = np.frombuffer(data, layout).astype(np.float32)
        samples -= np.float32(offset)
        samples *= np.float32(scale)
        return samples

    return decode


def _24_bits(data: bytes) -> Samples:
    wide = np.zeros((len(data) // 3, 4), np.uint8)
    wide[:, 1:] = np.frombuffer(data, np.uint8).reshape(-1, 3)
    return _linear("<i4", 2.0**-31)(wide.tobytes())


def _floats(layout: str) -> Callable[[bytes], Samples]:
    def decode(data: bytes) -> Samples:
        # A number beyond float32 becomes infinite, which the guard refuses by its place.
        with np.errstate(over="ignore"):
            samples: Samples = np.frombuffer(data, layout).astype(np.float32)
        return samples

    return decode


def _table(values: npt.NDArray[np.int64]) -> Callable[[bytes], Samples]:
    table = (values * 2.0**-15).astype(np.float32)

    def decode(data: bytes) -> Samples:
        samples: Samples = table[np.frombuffer(data, np.uint8)]
        return samples

    return decode


def _mulaw() -> npt.NDArray[np.int64]:
    """The 256 values of G.711 mu-law at 16 bits: sign, 3 bits of exponent, 4 of mantissa."""
    code = ~np.arange(256) & 0xFF
    magnitude = ((((code & 0x0F) << 3) + 0x84) << ((code >> 4) & 7)) - 0x84
    return np.where(code & 0x80, -magnitude, magnitude)


def _alaw() -> npt.NDArray[np.int64]:
    """The 256 values of G.711 A-law at 16 bits; every other bit is stored inverted."""
    code = np.arange(256) ^ 0x55
    exponent, mantissa = (code >> 4) & 7, code & 0x0F
    magnitude = np.where(
        exponent == 0, (mantissa << 4) + 8, ((mantissa << 4) + 0x108) << np.maximum(exponent - 1, 0)
    )
    return np.where(code & 0x80, magnitude, -magnitude)


_DECODERS: dict[tuple[int, int], Callable[[bytes], Samples]] = {
    (_PCM, 8): _linear("u1", 2.0**-7, offset=128),
    (_PCM, 16): _linear("<i2", 2.0**-15),
    (_PCM, 24): _24_bits,
    (_PCM, 32): _linear("<i4", 2.0**-31),
    (_FLOAT, 32): _floats("<f4"),
    (_FLOAT, 64): _floats("<f8"),
    (_ALAW, 8): _table(_alaw()),
    (_MULAW, 8): _table(_mulaw()),
}
