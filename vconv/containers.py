"""How many samples a container declares, read from its own header.

libsndfile hides this for WAV: of a truncated file it reports what is there as if that were all.
"""

import os
import struct
from dataclasses import dataclass
from typing import BinaryIO

_UNKNOWN = 0xFFFFFFFF
_MAX_CHUNKS = 10_000


@dataclass(frozen=True)
class Declared:
    """The bytes of sound that a header declares and those that the file holds.

    `declared` is None where the header leaves the length open (a streamed WAV).
    """

    declared: int | None
    present: int

    def frames(self, decoded: int) -> int:
        """The frames declared, given the decoder's count for the bytes that are present."""
        if self.declared is None or self.declared <= self.present or self.present <= 0:
            return decoded
        return max(decoded + 1, decoded * self.declared // self.present)


def declared_frames(file: BinaryIO, size: int) -> Declared | None:
    """What a RIFF or RF64 WAV of `size` bytes declares; None for anything else."""
    head = file.read(12)
    if len(head) < 12 or head[:4] not in (b"RIFF", b"RIFX", b"RF64") or head[8:] != b"WAVE":
        return None
    order = ">" if head[:4] == b"RIFX" else "<"
    large: int | None = None
    for _ in range(_MAX_CHUNKS):
        header = file.read(8)
        if len(header) < 8:
            return None
        name, length = struct.unpack(f"{order}4sI", header)
        at = file.tell()
        if name == b"ds64" and length >= 16:
            large = struct.unpack("<QQ", file.read(16).ljust(16, b"\0"))[1]
        if name == b"data":
            # Length 0 or all ones means "to the end": a streaming writer could not go back.
            if length == _UNKNOWN and large is not None:
                length = large
            open_ended = length in (0, _UNKNOWN)
            return Declared(None if open_ended else length, size - at)
        file.seek(at + length + length % 2, os.SEEK_SET)
    return None
