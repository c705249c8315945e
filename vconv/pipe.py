"""Converting live: sound comes in at stdin, and goes out at stdout as soon as it is said.

What comes out is, to the sample, what the whole would become as a file with `--lanes 1`.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from .audio import SAMPLE_RATE, resampled_length, sixteen_bits
from .errors import InputError, UsageError
from .geometry import FRAME_LENGTH
from .guards import Guard, Samples, checked_header
from .loudness import SILENT_PEAK
from .messages import to_stdout
from .results import Cancelled, Progress, WrittenFile
from .wave_stream import Layout, Peeked, raw_layout, wav_header

if TYPE_CHECKING:
    from .converter import Converter
    from .speakers import Query

log = logging.getLogger("vconv")

_MOST = 1 << 16  # bytes taken at a time, where so many have arrived


def needs_the_whole(*, lanes: str | int, level: str, format_name: str) -> bool:
    """Whether the options ask for something that only a recording known to its end can have."""
    return str(lanes) not in ("auto", "1") or level != "keep" or format_name != "wav"


def peeked(stdin: BinaryIO) -> Peeked:
    """Stdin with its header looked at: where its `layout` is None, it has to be read as a file.

    Waits for the first bytes, and for a WAV's header, but for nothing of its sound.
    """
    return Peeked(stdin)


def headerless(stdin: BinaryIO, rate: int) -> Peeked:
    """Stdin as samples without a header: 16 bits, little-endian, one channel, at a rate in Hz."""
    return Peeked(stdin, raw_layout(rate))


def convert_live(
    converter: Converter,
    source: Peeked,
    stdout: BinaryIO,
    *,
    speaker: Query,
    seed: int = 0,
    temperature: float = 1.0,
    pitch: float = 0.0,
    raw: bool = False,
    output_rate: int | None = None,
    channel: int | None = None,
    allow_truncated: bool = False,
    max_seconds: float | None = None,
    progress: Progress | None = None,
) -> WrittenFile:
    """Convert sound as it arrives and write it chunk by chunk, each flushed.

    Args:
        source: what `peeked` or `headerless` made of stdin, with a `layout`.
        stdout: where the WAV goes, or with `raw` its bare samples at the input's rate. Its header
            has the exact length where the input declares one, else 0xFFFFFFFF.
        output_rate: in Hz; None is the model's (with `raw`, the input's, and no other).
        allow_truncated: take what is there of an input that ends before its declared end.
        progress: see `Progress`.

    Nothing is written before the first converted samples are there. A reader of stdout that left
    ends the program, as `to_stdout` says. Raises InputError, UsageError and Cancelled.
    """
    begun = time.perf_counter()
    layout = source.layout
    assert layout is not None
    if raw and output_rate not in (None, layout.rate):
        raise UsageError("Raw samples go out at the rate at which they come in.")
    name = "<stdin>"
    checked_header(
        name,
        rate=layout.rate,
        channels=layout.channels,
        frames=layout.frames,
        channel=channel,
        max_seconds=max_seconds,
    )
    guard = Guard(name, layout.rate, channel=channel, max_seconds=max_seconds)
    out_hz = layout.rate if raw else output_rate or SAMPLE_RATE
    length = None
    if layout.frames is not None and not allow_truncated:
        length = resampled_length(layout.frames, layout.rate, out_hz)
    header = b"" if raw else wav_header(out_hz, length)
    made = 0
    for block in converter.stream(
        _blocks(source, layout, guard, name, allow_truncated, progress),
        speaker=speaker,
        sample_rate=layout.rate,
        seed=seed,
        temperature=temperature,
        pitch=pitch,
        output_sample_rate=out_hz,
    ):
        with to_stdout():
            stdout.write(header + sixteen_bits(block).astype("<i2").tobytes())
            stdout.flush()
        header = b""
        made += len(block)
    source.skip_tail()
    _warn(guard, name)
    label = converter.speakers.label(converter.speakers.resolve(speaker))
    return WrittenFile(Path("-"), made, out_hz, label, time.perf_counter() - begun)


def _blocks(
    source: Peeked,
    layout: Layout,
    guard: Guard,
    name: str,
    allow_truncated: bool,
    progress: Progress | None,
) -> Iterator[Samples]:
    """The checked mono blocks of the input, as they arrive."""
    total = None if layout.frames is None else layout.frames / layout.rate
    data = b""
    while piece := source.read_sound(_MOST):
        data += piece
        whole = len(data) - len(data) % layout.frame_bytes
        if not whole:
            continue
        yield guard(layout.samples(data[:whole]))
        data = data[whole:]
        if progress is not None and progress(guard.frames / layout.rate, total) is False:
            raise Cancelled(f"{name}: the conversion was cancelled.")
    if source.missing and not allow_truncated:
        declared = layout.data_bytes or 0
        raise InputError(
            f"{name}: was cut short: {declared:,} bytes of sound are declared, "
            f"{declared - source.missing:,} are there."
        )
    if guard.frames == 0:
        raise InputError(f"{name}: contains no samples.")
    if resampled_length(guard.frames, layout.rate, SAMPLE_RATE) < FRAME_LENGTH:
        raise InputError(
            f"{name}: lasts {guard.frames / layout.rate:.4f} s; at least "
            f"{FRAME_LENGTH / SAMPLE_RATE} s are needed."
        )


def _warn(guard: Guard, name: str) -> None:
    if guard.mix_cancels:
        log.warning(
            "%s: the channels cancel each other in their mean; choose one with --channel N.", name
        )
    elif guard.peak < SILENT_PEAK:
        log.warning("%s: the recording is silent.", name)
