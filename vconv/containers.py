"""Containers looked at before libsndfile: whether all the sound that is declared is there.

libsndfile hides it: of a recording cut short it reports what is there as if that were all, and
of a cut MP3 it warns on stderr besides. So the few bytes that tell are read here beforehand, for
the formats whose decoder keeps quiet; a cut FLAC is found out by decoding it.
"""

import os
import struct
from collections.abc import Iterator
from typing import BinaryIO

_UNKNOWN = 0xFFFFFFFF  # a streaming writer's length: it could not go back and fill it in
_MAX_CHUNKS = 300_000  # a second's work
_MANY_CHUNKS = 100
_MAX_PAGE = 27 + 255 + 255 * 255  # of an Ogg stream, in bytes


def cut_short(file: BinaryIO) -> str | None:
    """What is missing from a recording, as a clause, or None if nothing is known to be.

    Understands WAV, RF64, W64, AIFF, AU, CAF, Ogg and MP3 by their content; moves the position.
    """
    size = file.seek(0, os.SEEK_END)
    file.seek(0)
    head = file.read(12).ljust(12, b"\0")
    if head[:4] in (b"RIFF", b"RIFX", b"RF64") and head[8:] == b"WAVE":
        return _compare(_riff(file, ">" if head[:4] == b"RIFX" else "<"), size)
    if head[:4] == b"FORM" and head[8:11] == b"AIF":
        return _compare(_find(b"SSND", _walk(file, 12, ">4sI")), size)
    if head[:4] == b"caff":
        return _compare(_find(b"data", _walk(file, 8, ">4sq", align=1)), size)
    if head[:4] == b"riff":
        # A W64 chunk has a 16-byte name and counts its own 24-byte header in its length.
        return _compare(_find(b"data", _walk(file, 40, "<4s12xQ", align=8, own=24)), size)
    if head[:4] == b".snd":
        begin, length = struct.unpack(">II", head[4:])
        return _compare((begin, length), size)
    if head[:4] == b"OggS":
        return _ogg(file, size)
    if head[:3] == b"ID3" or head[0] == 0xFF:
        return _mp3(file, size)
    return None


def _compare(found: tuple[int, int] | None, size: int) -> str | None:
    """Hold the (begin, length) of the sound against the file's size."""
    if found is None or found[1] in (-1, 0, _UNKNOWN) or found[0] + found[1] <= size:
        return None
    begin, length = found
    return f"{length:,} bytes of sound are declared, {max(size - begin, 0):,} are there"


def empty_frames(file: BinaryIO) -> bool:
    """Whether it is a WAV whose format says that a frame has no bytes; moves the position."""
    file.seek(0)
    head = file.read(12)
    if head[:4] != b"RIFF" or head[8:] != b"WAVE":
        return False
    form = _find(b"fmt ", _walk(file, 12, "<4sI"))
    if form is None or form[1] < 16:
        return False
    file.seek(form[0] + 12)
    return file.read(2) == b"\0\0"


def plain_wav(file: BinaryIO) -> tuple[bytes, int] | None:
    """A plain header for a WAV whose own libsndfile cannot follow, and where its sound begins.

    That is one whose writer left a length of 0, or with a great many chunks before its sound. None
    for any other file; moves the position.
    """
    size = file.seek(0, os.SEEK_END)
    file.seek(0)
    head = file.read(12)
    if head[:4] != b"RIFF" or head[8:] != b"WAVE":
        return None
    layout: bytes | None = None
    count = 0
    for name, begin, length in _walk(file, 12, "<4sI"):
        count += 1
        if name == b"fmt " and length <= 64:
            file.seek(begin)
            layout = file.read(length)
        if name == b"data":
            break
    else:
        return None
    streamed = length == 0 and begin < size and not _only_chunks(file, begin, size)
    if layout is None or not (streamed or count > _MANY_CHUNKS):
        return None
    sound = min(size - begin, _UNKNOWN) if streamed else length
    fmt = struct.pack("<4sI", b"fmt ", len(layout)) + layout + bytes(len(layout) % 2)
    whole = struct.pack("<4sI4s", b"RIFF", min(4 + len(fmt) + 8 + sound, _UNKNOWN), b"WAVE")
    return whole + fmt + struct.pack("<4sI", b"data", sound), begin


def _only_chunks(file: BinaryIO, at: int, size: int) -> bool:
    """Whether what follows is chunks up to the very end, as after a sound that is truly empty."""
    end = at
    for _, begin, length in _walk(file, at, "<4sI"):
        end = begin + length
    return size - 1 <= end <= size


def _riff(file: BinaryIO, order: str) -> tuple[int, int] | None:
    found = _find(b"data", _walk(file, 12, f"{order}4sI"))
    if found is None or found[1] != _UNKNOWN:
        return found
    large = _find(b"ds64", _walk(file, 12, "<4sI"))  # RF64 keeps the 64-bit length there
    if large is None:
        return found
    file.seek(large[0] + 8)
    return found[0], struct.unpack("<Q", file.read(8).ljust(8, b"\0"))[0]


def _walk(
    file: BinaryIO, at: int, layout: str, align: int = 2, own: int = 0
) -> Iterator[tuple[bytes, int, int]]:
    """(name, begin, length) of the chunks from `at` on, each length without its header."""
    header = struct.calcsize(layout)
    for _ in range(_MAX_CHUNKS):
        file.seek(at)
        read = file.read(header)
        if len(read) < header:
            return
        name, length = struct.unpack(layout, read)
        length = max(length - own, -1)
        yield name, at + header, length
        at += header + length + -length % align


def _find(wanted: bytes, chunks: Iterator[tuple[bytes, int, int]]) -> tuple[int, int] | None:
    """(begin, length) of the first chunk of that name."""
    return next(((begin, length) for name, begin, length in chunks if name == wanted), None)


def _ogg(file: BinaryIO, size: int) -> str | None:
    """The last page of an Ogg stream must be marked as the last (RFC 3533) and be complete."""
    file.seek(max(0, size - _MAX_PAGE))
    tail = file.read()
    at = tail.rfind(b"OggS")
    page = tail[at:] if at >= 0 else b""
    complete = len(page) > 27 and len(page) >= 27 + page[26] + sum(page[27 : 27 + page[26]])
    return None if complete and page[5] & 4 else "the page that ends the stream is missing"


def _mp3(file: BinaryIO, size: int) -> str | None:
    """The length in the first frame's Xing or Info tag, which most encoders write."""
    file.seek(0)
    tag = file.read(10)
    at = 0
    if tag[:3] == b"ID3" and len(tag) == 10:
        at = 10 + sum(
            (byte & 0x7F) << shift for byte, shift in zip(tag[6:], (21, 14, 7, 0), strict=True)
        )
    file.seek(at)
    frame = file.read(64)
    place = max(frame.find(b"Xing"), frame.find(b"Info"))
    if place < 4 or len(frame) < place + 16:
        return None
    flags, _, length = struct.unpack(">III", frame[place + 4 : place + 16])
    # 1 %: encoders differ in what they count, and the frames are counted after decoding anyway.
    if flags & 3 != 3 or at + length * 0.99 <= size:
        return None
    return _compare((at, length), size)
