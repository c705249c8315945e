"""Guarded reading: what is refused and what the sentence says; what must be accepted."""

import contextlib
import io
import os
import struct
import threading
import time
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import soundfile

from vconv.audio import read, read_blocks
from vconv.errors import InputError

T = np.arange(16_000) / 16_000
TONE = (0.4 * np.sin(2 * np.pi * 440 * T)).astype(np.float32)


def encoded(
    wav: np.ndarray = TONE, container: str = "WAV", coding: str = "PCM_16", rate: int = 16_000
) -> bytes:
    buffer = io.BytesIO()
    soundfile.write(buffer, wav, rate, format=container, subtype=coding)
    return buffer.getvalue()


def patched(data: bytes, at: int, layout: str, value: int) -> bytes:
    return data[:at] + struct.pack(layout, value) + data[at + struct.calcsize(layout) :]


def spoilt(value: float) -> bytes:
    wav = TONE.copy()
    wav[12_345] = value
    return encoded(wav, coding="FLOAT")


WAV = encoded()
FLAC = encoded(container="FLAC")
OGG = encoded(container="OGG", coding="VORBIS")
MP3 = encoded(container="MP3", coding="MPEG_LAYER_III")
DATA = WAV.index(b"data") + 4  # where the length of the sound is

BAD = {
    "no bytes": (b"", "is empty"),
    "one byte": (b"R", "cannot be read as audio"),
    "header only": (WAV[:44], "cut short.*32,000 bytes.*0 are there"),
    "half a header": (WAV[:30], "cannot be read as audio"),
    "no samples": (encoded(TONE[:0]), "contains no samples"),
    "WAV cut": (WAV[:20_001], "cut short.*32,000 bytes.*19,957 are there"),
    "WAV cut by a byte": (WAV[:-1], "cut short"),
    "2 GB declared": (patched(WAV, DATA, "<I", 2**31 - 1), "cut short.*2,147,483,647"),
    "RF64 cut": (encoded(container="RF64")[:-1], "cut short.*32,000 bytes"),
    "W64 cut": (encoded(container="W64")[:-1], "cut short.*32,000 bytes"),
    "AIFF cut": (encoded(container="AIFF")[:-1], "cut short"),
    "AU cut": (encoded(container="AU")[:-1], "cut short.*32,000 bytes"),
    "CAF cut": (encoded(container="CAF")[:-1], "cut short"),
    "FLAC cut": (FLAC[:-10], "cut short or is damaged: 16,000 frames declared"),
    "FLAC flipped": (FLAC[:4_000] + b"\xff" + FLAC[4_001:], "cut short or is damaged"),
    "FLAC lying": (patched(FLAC, 22, ">I", 10**9), "1,000,000,000 frames declared, 16,000 are"),
    "OGG cut": (OGG[:-1], "cut short"),
    "OGG halved": (OGG[: len(OGG) // 2], "cut short"),
    "MP3 halved": (MP3[: len(MP3) // 2], "cut short"),
    "MP3 cut": (MP3[:-1], "cut short or is damaged: 16,000 frames declared"),
    "rate 0": (patched(WAV, 24, "<I", 0), ""),
    "rate 1": (patched(WAV, 24, "<I", 1), "rate of 1 Hz; allowed are 4,000 to 192,000"),
    "rate 655350": (patched(WAV, 24, "<I", 655_350), "rate of 655,350 Hz"),
    "rate 2^32-1": (patched(WAV, 24, "<I", 2**32 - 1), ""),
    "0 channels": (patched(WAV, 22, "<H", 0), "channel count is zero"),
    "9 channels": (patched(WAV, 22, "<H", 9), "9 channels; allowed are 1 to 8"),
    "1024 channels": (patched(WAV, 22, "<H", 1024), "1,024 channels"),
    "65535 channels": (patched(WAV, 22, "<H", 65_535), "too many channels"),
    "unknown format": (patched(WAV, 20, "<H", 0x7777), "cannot be read as audio"),
    "NaN": (spoilt(np.nan), "contains NaN at frame 12,345"),
    "infinity": (spoilt(-np.inf), "contains -inf at frame 12,345"),
    "1e30": (spoilt(1e30), r"contains 1e\+30 at frame 12,345"),
    "text": (b"just some words\n" * 50, "cannot be read as audio"),
    "HTML": (b"<!DOCTYPE html><html></html>" * 9, "cannot be read as audio"),
    "NULs": (bytes(5_000), "cannot be read as audio"),
    "PNG": (b"\x89PNG\r\n\x1a\n" + bytes(range(256)), "cannot be read as audio"),
    "random bytes": (np.random.default_rng(2).bytes(4_000), "cannot be read as audio"),
}


@pytest.mark.parametrize("what", BAD)
def test_a_bad_file_is_refused_by_name_and_reason(tmp_path: Path, what: str) -> None:
    content, reason = BAD[what]
    path = tmp_path / "bad.wav"
    path.write_bytes(content)
    with pytest.raises(InputError, match=rf"bad\.wav: (?s:.*){reason}") as caught:
        read(path)
    text = str(caught.value)
    assert text.startswith(f"{path}: ")
    assert text.endswith(".")
    assert "\n" not in text
    with pytest.raises(InputError, match="<bytes>"):
        read(content)


def test_random_damage_gives_sound_or_one_sentence() -> None:
    rng = np.random.default_rng(4)
    sources = [WAV, FLAC, OGG, MP3]
    for turn in range(80):
        data = bytearray(sources[turn % 4])
        for _ in range(3):
            data[rng.integers(0, min(len(data), 300))] = rng.integers(0, 256)
        with contextlib.suppress(InputError):
            assert np.isfinite(read(bytes(data), max_seconds=60)).all()


@pytest.mark.parametrize("what", ["WAV cut", "FLAC cut", "MP3 cut", "MP3 halved", "AIFF cut"])
def test_a_cut_file_is_taken_as_far_as_it_goes_when_asked(what: str) -> None:
    wav = read(BAD[what][0], allow_truncated=True)
    assert len(wav) < 16_000
    assert (
        np.abs(wav[2_000:7_000] - TONE[2_000:7_000][: len(wav[2_000:7_000])]).max(initial=0) < 0.1
    )


@pytest.mark.parametrize(
    ("container", "coding", "tolerance"),
    [
        ("WAV", "PCM_U8", 2**-7),
        ("WAV", "PCM_24", 2**-15),
        ("WAV", "PCM_32", 2**-15),
        ("WAV", "FLOAT", 2**-15),
        ("WAV", "DOUBLE", 2**-15),
        ("WAV", "ULAW", 2**-6),
        ("WAV", "IMA_ADPCM", 2**-4),
        ("WAVEX", "PCM_16", 0),
        ("RF64", "PCM_16", 0),
        ("W64", "PCM_16", 0),
        ("AIFF", "PCM_16", 0),
        ("AU", "PCM_16", 0),
        ("CAF", "PCM_16", 0),
        ("FLAC", "PCM_16", 2**-15),
        ("OGG", "VORBIS", 0.05),
        ("MP3", "MPEG_LAYER_III", 0.05),
    ],
)
def test_every_format_is_the_16_bit_reference(
    container: str, coding: str, tolerance: float
) -> None:
    wav = read(encoded(container=container, coding=coding))[:16_000]
    assert len(wav) == 16_000
    inner = slice(500, 15_500)  # the tone starts and ends abruptly, which lossy coders smear
    assert np.abs(wav - read(WAV))[inner].max() <= tolerance


def test_opus_at_its_own_rate_is_the_reference() -> None:
    at_48k = np.sin(2 * np.pi * 440 * np.arange(48_000) / 48_000) * 0.4
    wav = read(encoded(at_48k, "OGG", "OPUS", 48_000))
    assert len(wav) == 16_000
    assert np.abs(wav - TONE)[500:15_500].max() < 0.05


@pytest.mark.parametrize("rate", [4_000, 8_000, 11_025, 22_050, 44_100, 48_000, 96_000, 192_000])
def test_every_rate_gives_the_same_tone(rate: int) -> None:
    wav = read(encoded(0.4 * np.sin(2 * np.pi * 440 * np.arange(rate) / rate), rate=rate))
    assert len(wav) == 16_000
    assert np.abs(wav - TONE)[800:15_200].max() < 1e-3


def test_a_streamed_wav_and_odd_sizes_are_read_to_the_end() -> None:
    assert len(read(patched(patched(WAV, DATA, "<I", 2**32 - 1), 4, "<I", 2**32 - 1))) == 16_000
    assert len(read(WAV + b"\0")) == 16_000
    assert np.array_equal(read(patched(patched(WAV, DATA, "<I", 0), 4, "<I", 0)), read(WAV))
    assert len(read(encoded(TONE[:999], coding="PCM_U8"))) == 999


def test_a_streamed_flac_declares_no_length() -> None:
    unknown = FLAC[:21] + bytes([FLAC[21] & 0xF0]) + bytes(4) + FLAC[26:]
    with read_blocks(unknown) as reader:
        assert reader.info.frames is None
        assert sum(map(len, reader)) == 16_000


def test_an_empty_wav_with_chunks_behind_it_is_not_taken_for_a_streamed_one() -> None:
    with pytest.raises(InputError, match="no samples"):
        read(patched(WAV[: DATA + 4], DATA, "<I", 0) + b"LIST\4\0\0\0INFO")


def test_200_000_junk_chunks_are_passed_over_in_bounded_time() -> None:
    junk = WAV[:36] + b"JUNK\2\0\0\0ab" * 200_000 + WAV[36:]
    begin = time.monotonic()
    assert np.array_equal(read(patched(junk, 4, "<I", len(junk) - 8)), read(WAV))
    assert time.monotonic() - begin < 5
    with pytest.raises(InputError, match="cut short"):
        read(junk[:-1])


def test_content_decides_not_the_suffix(tmp_path: Path) -> None:
    (tmp_path / "really.wav").write_bytes(FLAC)
    assert np.array_equal(read(tmp_path / "really.wav"), read(FLAC))


def test_denormals_and_silence_are_accepted() -> None:
    tiny = np.full(16_000, 1e-42, np.float32)
    assert np.isfinite(read(encoded(tiny, coding="FLOAT"))).all()
    assert not read(encoded(np.zeros(16_000))).any()


@pytest.mark.parametrize(("container", "coding"), [("FLAC", "PCM_16"), ("MP3", "MPEG_LAYER_III")])
def test_blocks_of_any_length_give_the_same_samples(container: str, coding: str) -> None:
    data = encoded(container=container, coding=coding)
    parts = []
    for seconds in (0.013, 0.25, 100.0):
        with read_blocks(data, block_seconds=seconds) as reader:
            blocks = list(reader)
        assert max(map(len, blocks)) <= seconds * 16_000
        parts.append(np.concatenate(blocks))
    assert np.array_equal(parts[0], parts[2])
    assert np.array_equal(parts[1], parts[2])


def test_channels_are_mixed_or_chosen() -> None:
    stereo = np.stack([TONE, -0.5 * TONE], axis=1)
    data = encoded(stereo, coding="FLOAT")
    assert read(data) == pytest.approx(0.25 * TONE, abs=1e-7)
    assert np.array_equal(read(data, channel=1), -0.5 * TONE)
    with pytest.raises(InputError, match="no channel 2; there are 2"):
        read(data, channel=2)
    six = encoded(np.stack([TONE] * 6, axis=1), coding="FLOAT")
    assert read(six) == pytest.approx(TONE, abs=1e-7)


@pytest.mark.parametrize(("right", "cancels"), [(-1.0, True), (1.0, False), (-0.9, False)])
def test_antiphase_is_noticed(right: float, cancels: bool) -> None:
    with read_blocks(encoded(np.stack([TONE, right * TONE], axis=1))) as reader:
        for _ in reader:
            pass
        assert reader.mix_cancels == cancels


def test_a_bomb_costs_neither_memory_nor_time() -> None:
    hours = encoded(np.zeros(16_000 * 60 * 30, np.int16), "FLAC")
    lying = patched(hours, 22, ">I", 2**32 - 1)
    begin = time.monotonic()
    tracemalloc.start()
    with pytest.raises(InputError, match="longer than the 60 s allowed"):
        read(lying, max_seconds=60)
    with pytest.raises(InputError, match="4,294,967,295 frames declared"), read_blocks(lying) as r:
        for _ in r:
            pass
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 20e6
    assert time.monotonic() - begin < 5


def test_a_length_limit_holds_where_no_length_is_declared() -> None:
    unknown = FLAC[:21] + bytes([FLAC[21] & 0xF0]) + bytes(4) + FLAC[26:]
    with pytest.raises(InputError, match=r"longer than the 0\.5 s allowed"):
        read(unknown, max_seconds=0.5)
    assert len(read(unknown, max_seconds=1)) == 16_000


@pytest.mark.skipif(os.name != "posix", reason="kinds of files that only POSIX has")
def test_what_is_no_regular_file_is_refused_without_waiting(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    cases = {
        tmp_path: "is a folder, not an audio file",
        tmp_path / "fifo": "is not a regular file",
        tmp_path / "dangling": "is a link to a missing file",
        tmp_path / "loop": "cannot be opened",
        tmp_path / "missing": "does not exist",
        Path("/dev/zero"): "is not a regular file",
    }
    for path, reason in cases.items():
        found: list[str] = []

        def attempt(path: Path = path, found: list[str] = found) -> None:
            try:
                read(path)
            except InputError as error:
                found.append(str(error))

        thread = threading.Thread(target=attempt, daemon=True)
        thread.start()
        thread.join(timeout=5)
        assert found == [f"{path}: {reason}."] or found[0].startswith(f"{path}: {reason} (")


def test_names_are_printed_escaped(tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught:
        read(tmp_path / "a\n\u202e\udcff\x1b[0m.wav")
    assert str(caught.value).endswith(r"a\n\u202e\udcff\x1b[0m.wav: does not exist.")


def test_a_file_that_was_passed_in_stays_open_and_is_named(tmp_path: Path) -> None:
    path = tmp_path / "open.wav"
    path.write_bytes(WAV)
    with path.open("rb") as file:
        assert len(read(file)) == 16_000
        assert not file.closed
    path.write_bytes(b"no sound")
    with path.open("rb") as file, pytest.raises(InputError, match=r"open\.wav: "):
        read(file)


def test_an_error_while_reading_is_one_sentence_and_prints_nothing(
    capfd: pytest.CaptureFixture[str],
) -> None:
    class Vanishing(io.BytesIO):
        def read(self, count: int | None = -1) -> bytes:
            if self.tell() > 10_000:
                raise OSError(5, "Input/output error")
            return super().read(count)

    with pytest.raises(InputError, match="input/output error"):
        read(Vanishing(WAV))
    captured = capfd.readouterr()
    assert captured.out == captured.err == ""


def test_the_guards_close_what_they_opened(tmp_path: Path) -> None:
    # An unclosed file is a ResourceWarning, which the test run turns into an error.
    path = tmp_path / "bad.wav"
    path.write_bytes(WAV[:1_000])
    for _ in range(3):
        with pytest.raises(InputError):
            read(path)
    path.unlink()
