"""Damaged recordings, a function of (seed, number), and a process that reads them.

    python tests/mutations.py SEED FIRST STOP 2>words    one JSON line for each file read

A crash of a C library ends the process; whoever started it knows from the last line which file it
was and starts another behind it.
"""

from __future__ import annotations

import io
import json
import os
import resource
import struct
import sys
import time

import numpy as np
import soundfile

from vconv.audio import read_blocks
from vconv.errors import InputError
from vconv.guards import MAX_AMPLITUDE

KINDS = (("WAV", "PCM_16"), ("FLAC", "PCM_16"), ("OGG", "VORBIS"), ("MP3", "MPEG_LAYER_III"))
EXTREMES = (0, 1, 2, 0x7F, 0x80, 0xFF, 0x7FFF, 0x8000, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF)
HEADER = 200  # bytes in which the fields that matter are
SECONDS_ALLOWED = 30


def originals() -> list[bytes]:
    """A second of noise and tone in each format, mono and stereo."""
    random = np.random.default_rng(0)
    time_ = np.arange(8_000) / 8_000
    tone = 0.3 * np.sin(2 * np.pi * 300 * time_) + 0.02 * random.standard_normal(8_000)
    made = []
    for container, coding in KINDS:
        for sound in (tone, np.stack([tone, -0.5 * tone], axis=1)):
            buffer = io.BytesIO()
            soundfile.write(buffer, sound, 8_000, format=container, subtype=coding)
            made.append(buffer.getvalue())
    return made


def mutated(seed: int, number: int, sources: list[bytes]) -> tuple[str, bytes]:
    """(what was done, the file)."""
    random = np.random.default_rng([seed, number])
    which = number % len(sources)
    data = bytearray(sources[which])
    done = []
    for _ in range(int(random.integers(1, 4))):
        change = CHANGES[int(random.integers(len(CHANGES)))]
        done.append(change.__name__.strip("_"))
        data = change(data, random, sources)
    return f"{KINDS[which // 2][0]} {'+'.join(done)}", bytes(data)


def _place(data: bytearray, random: np.random.Generator) -> int:
    """Anywhere, and as often in the header."""
    end = len(data) if random.random() < 0.5 else min(HEADER, len(data))
    return int(random.integers(0, max(1, end)))


def _flip(data: bytearray, random: np.random.Generator, sources: list[bytes]) -> bytearray:
    for _ in range(int(2 ** random.integers(0, 6))):
        if data:
            data[_place(data, random) % len(data)] ^= 1 << int(random.integers(8))
    return data


def _cut(data: bytearray, random: np.random.Generator, sources: list[bytes]) -> bytearray:
    return data[: _place(data, random)]


def _behead(data: bytearray, random: np.random.Generator, sources: list[bytes]) -> bytearray:
    return data[_place(data, random) :]


def _splice(data: bytearray, random: np.random.Generator, sources: list[bytes]) -> bytearray:
    other = bytearray(sources[int(random.integers(len(sources)))])
    return data[: _place(data, random)] + other[_place(other, random) :]


def _repeat(data: bytearray, random: np.random.Generator, sources: list[bytes]) -> bytearray:
    at = _place(data, random)
    piece = data[at : at + int(random.integers(1, 2_000))]
    return data[:at] + piece * int(random.integers(2, 40)) + data[at:]


def _extreme(data: bytearray, random: np.random.Generator, sources: list[bytes]) -> bytearray:
    width, layout = ((1, "B"), (2, "<H"), (4, "<I"), (4, ">I"))[int(random.integers(4))]
    value = EXTREMES[int(random.integers(len(EXTREMES)))] & ((1 << 8 * width) - 1)
    at = int(random.integers(0, min(HEADER, len(data)) + 1))
    data[at : at + width] = struct.pack(layout, value)
    return data


def _zero(data: bytearray, random: np.random.Generator, sources: list[bytes]) -> bytearray:
    at = _place(data, random)
    count = min(int(random.integers(1, 3_000)), len(data) - at)
    data[at : at + count] = bytes(count)
    return data


CHANGES = (_flip, _cut, _behead, _splice, _repeat, _extreme, _zero)


def outcome(data: bytes, allow_truncated: bool) -> str:
    """ "refused" or "sound", having held either against what is promised."""
    try:
        with read_blocks(
            data, max_seconds=SECONDS_ALLOWED, allow_truncated=allow_truncated
        ) as reader:
            for block in reader:
                assert block.dtype == np.float32
                assert block.ndim == 1
                assert bool((np.abs(block) <= MAX_AMPLITUDE).all())
    except InputError as error:
        text = str(error)
        assert text.startswith("<bytes>: ")
        assert text.endswith(".")
        assert text.isprintable()
        return "refused"
    return "sound"


def main() -> None:
    seed, first, stop = map(int, sys.argv[1:])
    sources = originals()
    for number in range(first, stop):
        what, data = mutated(seed, number, sources)
        said = os.fstat(2).st_size
        begun = time.monotonic()
        try:
            ended = outcome(data, allow_truncated=number // len(sources) % 2 == 1)
        except Exception as error:
            ended = f"{type(error).__name__}: {error}"
        row = {
            "number": number,
            "what": what,
            "bytes": len(data),
            "ended": ended,
            "said": os.fstat(2).st_size - said,
            "seconds": round(time.monotonic() - begun, 3),
            "peak_kb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss,
        }
        print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
