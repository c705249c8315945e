"""The containers that libsndfile cannot read: which one a file is, and whether all of it is there.

MPEG-4 (m4a, mp4, 3gp, mov), Matroska (webm, mka), ASF (wma) and bare AAC frames, known by their
content. Each says somewhere how many bytes belong to it, so that a recording cut short is found
before anything decodes it; most also say how long they last. Only headers are read.
"""

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO

_ASF = bytes.fromhex("3026b2758e66cf11a6d900aa0062ce6c")
_ASF_FILE = bytes.fromhex("a1dcab8c47a9cf118ee400c00c205365")
_EBML, _SEGMENT, _INFO, _TRACKS = 0x1A45DFA3, 0x18538067, 0x1549A966, 0x1654AE6B
_TRACK, _SCALE, _DURATION, _CLUSTER = 0xAE, 0x2AD7B1, 0x4489, 0x1F43B675
_FIRST_BOXES = (b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip", b"styp")
_MAX_PARTS = 300_000  # boxes, elements or frames looked at: a second's work


@dataclass(frozen=True)
class Container:
    """`demuxer` is ffmpeg's name of it, `name` the one for people."""

    demuxer: str
    name: str


@dataclass(frozen=True)
class Declared:
    """What a file says of itself: `missing`, a clause, where it is shorter than it says, and its
    duration where that is known of the sound alone."""

    missing: str | None = None
    seconds: float | None = None


MP4 = Container("mov", "MPEG-4 (m4a, mp4)")
MATROSKA = Container("matroska", "Matroska (webm, mka)")
ASF = Container("asf", "Windows Media (wma)")
AAC = Container("aac", "AAC")


def recognised(file: BinaryIO) -> Container | None:
    """Which of these containers it is, by its first bytes; None for all others."""
    file.seek(0)
    head = file.read(16).ljust(16, b"\0")
    if head[4:8] in _FIRST_BOXES:
        return MP4
    if head[:4] == _EBML.to_bytes(4, "big"):
        return MATROSKA
    if head == _ASF:
        return ASF
    file.seek(after_id3(head))
    first = file.read(2)
    # The sync word of MPEG audio, twelve ones, then the layer: 0 is AAC's, 1 to 3 are MP1 to MP3.
    return AAC if len(first) == 2 and first[0] == 0xFF and first[1] & 0xF6 == 0xF0 else None


def declared(file: BinaryIO, container: Container, size: int) -> Declared:
    """What a file of `size` bytes that is such a container declares."""
    if container is MP4:
        return _mp4(file, size)
    if container is MATROSKA:
        return _matroska(file, size)
    if container is ASF:
        return _asf(file, size)
    return _aac(file, size)


def after_id3(head: bytes) -> int:
    """Where the sound begins that follows an ID3 tag with these first bytes; 0 without a tag."""
    if head[:3] != b"ID3" or len(head) < 10:
        return 0
    shifts = (21, 14, 7, 0)
    return 10 + sum((byte & 0x7F) << at for byte, at in zip(head[6:10], shifts, strict=True))


def _short(wanted: int, size: int) -> str | None:
    return None if wanted <= size else f"{wanted:,} bytes are declared, {size:,} are there"


# -- MPEG-4: boxes of a 32-bit length, a name, and what they contain (ISO/IEC 14496-12) ------------


def _boxes(file: BinaryIO, at: int, end: int) -> Iterator[tuple[bytes, int, int]]:
    """(name, begin of the content, end) of the boxes in a span of the file."""
    for _ in range(_MAX_PARTS):
        file.seek(at)
        header = file.read(16)
        if at + 8 > end or len(header) < 8:
            return
        length, name = struct.unpack(">I4s", header[:8])
        own = 8
        if length == 1 and len(header) == 16:  # a 64-bit length follows
            length, own = struct.unpack(">Q", header[8:])[0], 16
        elif length == 0:  # up to the end
            length = end - at
        if length < own:
            return
        yield name, at + own, at + length
        at += length


def _box(file: BinaryIO, path: str, at: int, end: int) -> tuple[int, int] | None:
    """The span of the content of the box at a path of names."""
    for name in path.split("/"):
        found = next(((b, e) for n, b, e in _boxes(file, at, end) if n == name.encode()), None)
        if found is None:
            return None
        at, end = found
    return at, end


def _mp4(file: BinaryIO, size: int) -> Declared:
    ends = {name: (begin, end) for name, begin, end in _boxes(file, 0, size)}
    reach = max((end for _, end in ends.values()), default=0)
    if (missing := _short(reach, size)) is not None:
        return Declared(missing)
    if b"moov" not in ends:
        return Declared("its index (moov) is missing")
    movie = ends[b"moov"]
    for name, begin, end in _boxes(file, *movie):
        kind = _box(file, "mdia/hdlr", begin, end) if name == b"trak" else None
        if kind is not None and _bytes(file, kind[0] + 8, 4) == b"soun":
            return Declared(seconds=_mp4_seconds(file, movie, (begin, end)))
    return Declared()


def _mp4_seconds(file: BinaryIO, movie: tuple[int, int], track: tuple[int, int]) -> float | None:
    """What is to be played of a track (its edits), else how long its medium is."""
    edits, head = _box(file, "edts/elst", *track), _box(file, "mvhd", *movie)
    if edits is not None and head is not None:
        wide = _bytes(file, edits[0], 1) == b"\1"
        count = int.from_bytes(_bytes(file, edits[0] + 4, 4), "big")
        row, number = (20, 8) if wide else (12, 4)
        rows = _bytes(file, edits[0] + 8, row * min(count, 1_000))
        played = sum(
            int.from_bytes(rows[at : at + number], "big")
            for at in range(0, len(rows), row)
            # A medium time of -1 is a pause before the sound.
            if rows[at + number : at + 2 * number] != b"\xff" * number
        )
        scale = _duration(file, head[0])[0]
        if played and scale:
            return played / scale
    medium = _box(file, "mdia/mdhd", *track)
    scale, length = (0, 0) if medium is None else _duration(file, medium[0])
    return length / scale if scale and length else None


def _duration(file: BinaryIO, at: int) -> tuple[int, int]:
    """(ticks a second, ticks) of an mvhd or mdhd box; no ticks where that is unknown."""
    if _bytes(file, at, 1) == b"\1":
        scale, length = struct.unpack(">IQ", _bytes(file, at + 20, 12).ljust(12, b"\0"))
        return scale, 0 if length == 2**64 - 1 else length
    scale, length = struct.unpack(">II", _bytes(file, at + 12, 8).ljust(8, b"\0"))
    return scale, 0 if length == 2**32 - 1 else length


def _bytes(file: BinaryIO, at: int, count: int) -> bytes:
    file.seek(at)
    return file.read(count)


# -- Matroska: elements of an identifier, a length and what they contain (RFC 8794, RFC 9559) ------


def _elements(file: BinaryIO, at: int, end: int) -> Iterator[tuple[int, int, int | None]]:
    """(identifier, begin of the content, its end or None if unknown) in a span of the file."""
    for _ in range(_MAX_PARTS):
        if at >= end:
            return
        read = _bytes(file, at, 12)
        wide = 9 - read[0].bit_length() if read and read[0] else 9
        if wide > 4 or len(read) <= wide:
            return
        more = 9 - read[wide].bit_length()
        digits = read[wide : wide + more]
        if more > 8 or len(digits) < more:
            return
        length = int.from_bytes(digits, "big") - (1 << 7 * more)
        begin = at + wide + more
        open_ended = length == (1 << 7 * more) - 1  # all ones: written while it was recorded
        yield int.from_bytes(read[:wide], "big"), begin, None if open_ended else begin + length
        if open_ended:
            return
        at = begin + length


def _matroska(file: BinaryIO, size: int) -> Declared:
    for identifier, begin, end in _elements(file, 0, size):
        if identifier == _SEGMENT:
            missing = None if end is None else _short(end, size)
            return Declared(missing) if missing else _segment(file, begin, end or size, size)
    return Declared("its sound is missing")


def _segment(file: BinaryIO, begin: int, end: int, size: int) -> Declared:
    ticks, seconds_per_tick, tracks = 0.0, 1e-3, 0
    for identifier, at, stop in _elements(file, begin, end):
        if identifier == _INFO and stop is not None:
            for key, first, last in _elements(file, at, stop):
                value = _bytes(file, first, 0 if last is None else min(last - first, 8))
                if key == _SCALE:
                    seconds_per_tick = int.from_bytes(value, "big") * 1e-9
                elif key == _DURATION and len(value) in (4, 8):
                    ticks = struct.unpack(">f" if len(value) == 4 else ">d", value)[0]
        elif identifier == _TRACKS and stop is not None:
            tracks += sum(key == _TRACK for key, _, _ in _elements(file, at, stop))
        elif identifier == _CLUSTER and stop is not None and stop > size:
            return Declared(_short(stop, size))
    # Of several tracks the longest counts, which may be a film's.
    return Declared(seconds=ticks * seconds_per_tick if tracks == 1 and ticks > 0 else None)


# -- ASF and AAC -----------------------------------------------------------------------------------


def _asf(file: BinaryIO, size: int) -> Declared:
    """Objects of a 16-byte name and a 64-bit length; one of the header's tells the file's size."""
    header = int.from_bytes(_bytes(file, 16, 8), "little")
    at = 30
    for _ in range(1_000):
        name, length = _bytes(file, at, 16), int.from_bytes(_bytes(file, at + 16, 8), "little")
        if length < 24 or at + length > min(header, size):
            break
        if name == _ASF_FILE:
            live = bool(int.from_bytes(_bytes(file, at + 88, 1), "little") & 1)  # a broadcast
            whole = 0 if live else int.from_bytes(_bytes(file, at + 40, 8), "little")
            return Declared(_short(whole, size))
        at += length
    return Declared(_short(header, size))


def _aac(file: BinaryIO, size: int) -> Declared:
    """Frames, each with its length in its header (ISO/IEC 13818-7, ADTS)."""
    at = after_id3(_bytes(file, 0, 16))
    for _ in range(_MAX_PARTS):
        head = _bytes(file, at, 6)
        if len(head) < 6 or head[0] != 0xFF or head[1] & 0xF6 != 0xF0:
            return Declared("its last frame is incomplete" if 0 < len(head) < 6 else None)
        length = (head[3] & 3) << 11 | head[4] << 3 | head[5] >> 5
        if length < 7:
            return Declared()
        at += length
        if at > size:
            return Declared("its last frame is incomplete")
    return Declared()
