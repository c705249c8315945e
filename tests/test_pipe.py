"""Converting live: what comes out of the pipe, when, and what happens to whoever is at its ends."""

from __future__ import annotations

import io
import itertools
import os
import select
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

import vconv
from speech import speechlike
from tiny_model import exported
from vconv.audio import read
from vconv.converter import Converter
from vconv.pipe import convert_live, headerless, needs_the_whole, peeked

# The command that tests of processes run.
LIVE = [sys.executable, "-m", "vconv", "convert", "-", "-o", "-", "-q"]


@pytest.fixture(scope="module")
def converter() -> Converter:
    return vconv.load(exported())


class Dribble(io.RawIOBase):
    """A pipe that gives a few bytes at a time, never as many as asked for."""

    def __init__(self, data: bytes, sizes: Iterator[int]) -> None:
        super().__init__()
        self._data, self._sizes = io.BytesIO(data), sizes

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = self._data.read(min(len(buffer), next(self._sizes)))
        buffer[: len(data)] = data
        return len(data)


def wav_bytes(
    x: np.ndarray, rate: int = 16_000, coding: str = "PCM_16", kind: str = "WAV"
) -> bytes:
    buffer = io.BytesIO()
    soundfile.write(buffer, x, rate, format=kind, subtype=coding)
    return buffer.getvalue()


def patched(data: bytes, at: int, value: int) -> bytes:
    return data[:at] + struct.pack("<I", value) + data[at + 4 :]


def with_lengths(data: bytes, length: int, whole: int | None = None) -> bytes:
    at = data.index(b"data") + 4
    return patched(patched(data, at, length), 4, length if whole is None else whole)


def live(
    converter: Converter, data: bytes, sizes: Iterator[int] | None = None, **options: Any
) -> bytes:
    out = io.BytesIO()
    pipe = Dribble(data, sizes or itertools.repeat(1 << 20))
    stdin = io.BufferedReader(pipe)
    source = headerless(stdin, options.pop("rate")) if options.get("raw") else peeked(stdin)
    convert_live(converter, source, out, **({"speaker": 1, "seed": 3} | options))
    return out.getvalue()


def as_file(converter: Converter, data: bytes, folder: Path, **options: Any) -> bytes:
    path = folder / "reference.wav"
    converter.convert_to_file(data, path, speaker=1, seed=3, lanes=1, **options)
    return path.read_bytes()


# -- the same samples ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "coding"),
    [
        *(("WAV", c) for c in "PCM_U8 PCM_16 PCM_24 PCM_32 FLOAT DOUBLE ULAW ALAW".split()),
        ("WAVEX", "PCM_16"),
        ("WAVEX", "FLOAT"),
        ("WAVEX", "PCM_24"),
    ],
)
def test_a_live_wav_of_every_coding_becomes_the_file_to_the_byte(
    converter: Converter, tmp_path: Path, kind: str, coding: str
) -> None:
    data = wav_bytes(speechlike(9_001), coding=coding, kind=kind)
    assert live(converter, data) == as_file(converter, data, tmp_path)


@pytest.mark.parametrize("rate", [8_000, 16_000, 44_100, 48_000])
@pytest.mark.parametrize("out", [None, 22_050])
def test_a_live_wav_of_every_rate_becomes_the_file_to_the_byte(
    converter: Converter, tmp_path: Path, rate: int, out: int | None
) -> None:
    data = wav_bytes(speechlike(int(1.1 * rate) + 1), rate)
    made = live(converter, data, output_rate=out)
    assert made == as_file(converter, data, tmp_path, output_sample_rate=out)


@pytest.mark.parametrize("channels", [2, 3, 6, 8])
def test_channels_are_mixed_or_chosen_as_in_a_file(
    converter: Converter, tmp_path: Path, channels: int
) -> None:
    random = np.random.default_rng(channels)
    x = np.outer(speechlike(8_000), random.uniform(-1, 1, channels))
    data = wav_bytes(x, coding="FLOAT", kind="WAVEX")
    sizes = (int(n) for n in iter(lambda: random.integers(1, 5_000), None))
    assert live(converter, data, sizes) == as_file(converter, data, tmp_path)
    assert live(converter, data, channel=1) == as_file(converter, data, tmp_path, channel=1)


@pytest.mark.parametrize("size", [1, 7, 160, 1000, 16_000, None])
def test_however_the_bytes_arrive_the_same_comes_out(
    converter: Converter, tmp_path: Path, size: int | None
) -> None:
    data = wav_bytes(speechlike(1_500 if size == 1 else 17_003), coding="PCM_24")
    random = np.random.default_rng(1)
    sizes = (size or int(random.integers(1, 9_000)) for _ in itertools.count())
    assert live(converter, data, sizes) == as_file(converter, data, tmp_path)


@pytest.mark.parametrize("length", [0, 0xFFFFFFFF, 0x7FFFFFFF, 0x7FFFF000, 0x80000000])
def test_a_header_without_a_length_is_answered_by_one(
    converter: Converter, tmp_path: Path, length: int
) -> None:
    """0 and 2^32 - 1 are what ffmpeg writes into a pipe, the others what sox and arecord do."""
    data = wav_bytes(speechlike(9_000))
    made = live(converter, with_lengths(data, length))
    reference = as_file(converter, data, tmp_path)
    assert made[44:] == reference[44:]
    assert made[4:8] == made[40:44] == b"\xff" * 4
    assert len(read(made)) == 9_000  # and we can read it


def test_raw_samples_go_in_and_out_at_one_rate(converter: Converter, tmp_path: Path) -> None:
    x = (speechlike(30_000) * 32_768).astype("<i2")
    made = live(converter, x.tobytes() + b"\1", raw=True, rate=48_000)
    wanted = as_file(converter, wav_bytes(x, 48_000), tmp_path, output_sample_rate=48_000)
    assert made == wanted[44:]
    with pytest.raises(vconv.UsageError, match="at the rate at which they come in"):
        live(converter, x.tobytes(), raw=True, rate=48_000, output_rate=16_000)


def test_what_surrounds_the_sound_is_passed_over(converter: Converter, tmp_path: Path) -> None:
    plain = wav_bytes(speechlike(5_001), coding="PCM_U8")
    chunk = b"LIST\5\0\0\0abcde\0"
    data = plain[:12] + chunk + plain[12:36] + chunk + plain[36:] + b"\0" + chunk
    data = patched(data, 4, len(data) - 8)
    stdin = io.BytesIO(data)
    out = io.BytesIO()
    convert_live(converter, peeked(stdin), out, speaker=1, seed=3)
    assert out.getvalue() == as_file(converter, plain, tmp_path)
    assert stdin.read() == b""  # so that the writer is not left with a broken pipe


# -- what is left to the other way -----------------------------------------------------------------


@pytest.mark.parametrize(
    "data",
    [
        wav_bytes(speechlike(800), kind="FLAC"),
        wav_bytes(speechlike(800), kind="RF64"),
        wav_bytes(speechlike(800), kind="AIFF"),
        wav_bytes(speechlike(800), coding="IMA_ADPCM"),
        wav_bytes(speechlike(800))[:30],
        wav_bytes(speechlike(800)).replace(b"fmt ", b"fmtX"),
        b"",
        b"R",
        b"RIFF\0\0\0\0WAVE",
        b"text that is no sound" * 9_000,
        b"RIFF\0\0\0\0WAVE" + b"JUNK\2\0\0\0ab" * 20_000,
        b"RIFF\0\0\0\0WAVEJUNK\xff\xff\xff\xff",
    ],
)
def test_what_cannot_be_converted_live_can_be_read_from_its_beginning(data: bytes) -> None:
    for sizes in (itertools.repeat(1 << 20), itertools.repeat(11)):
        source = peeked(io.BufferedReader(Dribble(data, sizes)))
        assert source.layout is None
        assert source.read() == data


def test_a_live_wav_can_be_read_from_its_beginning_too() -> None:
    data = wav_bytes(speechlike(800))
    source = peeked(io.BufferedReader(Dribble(data, itertools.repeat(500))))
    assert source.layout is not None
    assert io.BufferedReader(source).read() == data


@pytest.mark.parametrize(
    ("options", "whole"),
    [
        ({}, False),
        ({"lanes": "1"}, False),
        ({"lanes": 1}, False),
        ({"lanes": "4"}, True),
        ({"level": "match"}, True),
        ({"level": "peak"}, True),
        ({"format_name": "flac"}, True),
    ],
)
def test_what_asks_for_the_whole(options: dict[str, Any], whole: bool) -> None:
    standard = {"lanes": "auto", "level": "keep", "format_name": "wav"}
    assert needs_the_whole(**(standard | options)) == whole


# -- what is refused -------------------------------------------------------------------------------

PLAIN = wav_bytes(speechlike(8_000))


def spoilt(value: float) -> bytes:
    x = speechlike(8_000)
    x = x.astype(np.float64)
    x[7_000] = value
    return wav_bytes(x, coding="DOUBLE")


REFUSED = {
    "cut": (PLAIN[:-1_001], {}, "was cut short: 16,000 bytes of sound are declared, 14,999 are"),
    "header only": (PLAIN[:44], {}, "was cut short: 16,000 bytes of sound are declared, 0 are"),
    "1 Hz": (patched(PLAIN, 24, 1), {}, "has a rate of 1 Hz; allowed are 4,000 to 192,000 Hz"),
    "0 Hz": (patched(PLAIN, 24, 0), {}, "has a rate of 0 Hz"),
    "nine channels": (
        wav_bytes(np.zeros((900, 9)), kind="WAVEX"),
        {},
        "has 9 channels; allowed are 1 to 8",
    ),
    "no such channel": (PLAIN, {"channel": 1}, "has no channel 1; there are 1, counted from 0"),
    "too long": (PLAIN, {"max_seconds": 0.4}, "is 0 s long, longer than the 0.4 s allowed"),
    "too long, unsaid": (
        with_lengths(PLAIN, 0),
        {"max_seconds": 0.4},
        "is longer than the 0.4 s allowed",
    ),
    "no samples": (wav_bytes(speechlike(0)), {}, "contains no samples"),
    "no samples, streamed": (with_lengths(PLAIN, 0)[:44], {}, "contains no samples"),
    "no samples, but chunks": (
        with_lengths(PLAIN, 0, 36 + 12)[:44] + b"LIST\4\0\0\0INFO",
        {},
        "contains no samples",
    ),
    "too short": (wav_bytes(speechlike(399)), {}, "lasts 0.0249 s; at least 0.025 s are needed"),
    "NaN": (spoilt(np.nan), {}, "contains NaN at frame 7,000; samples must be finite"),
    "1e300": (spoilt(1e300), {}, "contains inf at frame 7,000"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_bad_pipe_is_one_sentence(converter: Converter, case: str) -> None:
    data, options, says = REFUSED[case]
    with pytest.raises(vconv.InputError) as error:
        live(converter, data, **options)
    assert str(error.value).startswith("<stdin>: ")
    assert says in str(error.value)


def test_a_cut_pipe_is_taken_as_far_as_it_goes_when_asked(
    converter: Converter, tmp_path: Path
) -> None:
    made = live(converter, PLAIN[:-1_001], allow_truncated=True)
    wanted = as_file(converter, PLAIN[:-1_001], tmp_path, allow_truncated=True)
    assert made[44:] == wanted[44:]
    assert len(read(made)) == 7_499


def test_a_silent_pipe_and_channels_that_cancel_are_warned_about(
    converter: Converter, caplog: pytest.LogCaptureFixture
) -> None:
    live(converter, wav_bytes(np.zeros(8_000)))
    x = speechlike(8_000)
    live(converter, wav_bytes(np.stack([x, -x], axis=1)))
    first, second = [record.getMessage() for record in caplog.records]
    assert first == "<stdin>: the recording is silent."
    assert "--channel N" in second


def test_progress_is_told_and_cancels(converter: Converter) -> None:
    told: list[tuple[float, float | None]] = []

    def progress(done: float, total: float | None) -> bool:
        told.append((done, total))
        return done < 0.3

    with pytest.raises(vconv.Cancelled):
        live(converter, PLAIN, itertools.repeat(1_000), progress=progress)
    assert {total for _, total in told} == {0.5}
    assert told[-1][0] == pytest.approx(0.3, abs=0.1)


# -- processes -------------------------------------------------------------------------------------


def started(*options: object) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [*LIVE, "-s", "1", "--seed", "3", "-m", str(exported()), *map(str, options)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        bufsize=0,
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parent)},
    )


def received(process: subprocess.Popen[bytes], count: int, seconds: float = 30) -> bytes:
    """So many bytes of its output, fewer if they do not come in time."""
    assert process.stdout is not None
    data, deadline = b"", time.monotonic() + seconds
    while len(data) < count and time.monotonic() < deadline:
        if select.select([process.stdout], [], [], 0.1)[0]:
            data += os.read(process.stdout.fileno(), count - len(data))
    return data


def test_samples_come_out_while_the_pipe_is_open(converter: Converter, tmp_path: Path) -> None:
    """Up to the latency, all that went in has come out: nothing waits for a full block."""
    data = wav_bytes(speechlike(24_000))
    latency = round(converter.latency_seconds * 16_000)
    with started() as process:
        assert process.stdin is not None
        process.stdin.write(data[: 44 + 2 * 16_000])
        ready = 44 + 2 * (16_000 - latency)
        early = received(process, ready)
        assert len(early) == ready
        process.stdin.write(data[44 + 2 * 16_000 :])
        process.stdin.close()
        process.stdin = None
        late, err = process.communicate(timeout=30)
    assert (process.returncode, err.count(b"error")) == (0, 0), err
    assert early + late == as_file(converter, data, tmp_path)


def test_an_error_in_mid_stream_is_one_line_and_exit_3() -> None:
    with started() as process:
        _, err = process.communicate(PLAIN[:-1_001], timeout=30)
    assert process.returncode == 3
    assert err.startswith(b"vconv: error: <stdin>: was cut short: ")
    assert err.count(b"\n") == 1


def test_a_header_that_is_refused_is_refused_at_once() -> None:
    """The sender has not ended, and may never."""
    with started() as process:
        assert process.stdin is not None
        process.stdin.write(patched(PLAIN, 24, 1)[:44])
        assert process.wait(30) == 3
        assert process.stderr is not None
        assert b"has a rate of 1 Hz" in process.stderr.read()


def test_a_reader_that_leaves_ends_it_without_a_word() -> None:
    with started("--raw", "--sample-rate", 16_000) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        sound = (speechlike(16_000) * 32_768).astype("<i2").tobytes()
        process.stdin.write(sound)
        assert received(process, 100)
        process.stdout.close()
        process.stdin.write(sound)
        assert process.wait(30) == 141
        assert process.stderr is not None
        assert process.stderr.read() == b""


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interruption_ends_it_while_it_waits_for_sound(number: int, code: int) -> None:
    with started("--raw", "--sample-rate", 16_000) as process:
        assert process.stdin is not None
        process.stdin.write((speechlike(16_000) * 32_768).astype("<i2").tobytes())
        assert received(process, 100)
        process.send_signal(number)
        assert process.wait(30) == code
        assert process.stderr is not None
        assert process.stderr.read() == b""
