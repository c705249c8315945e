"""Recordings that only ffmpeg can read: known by content, checked like all, nothing left."""

from __future__ import annotations

import contextlib
import os
import shutil
import stat
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile

import vconv
from tiny_model import exported
from vconv import foreign
from vconv.audio import read, read_blocks
from vconv.errors import InputError
from vconv.foreign_containers import AAC, ASF, MATROSKA, MP4, recognised

posix = pytest.mark.skipif(os.name != "posix", reason="the stand-in for ffmpeg is a shell script")
needs_ffmpeg = pytest.mark.skipif(shutil.which("ffmpeg") is None, reason="ffmpeg is not installed")

TONE = (0.4 * np.sin(2 * np.pi * 440 * np.arange(2 * 48_000) / 48_000)).astype(np.float32)
ASF_HEAD = bytes.fromhex("3026b2758e66cf11a6d900aa0062ce6c") + (30).to_bytes(8, "little") + bytes(6)
# One frame of AAC: the sync word, a length of 8 bytes, and a payload of one.
ADTS = bytes([0xFF, 0xF1, 0x50, 0x40, 0x01, 0x1F, 0xFC, 0x00])
HEADS = {
    "m4a": b"\0\0\0\x18ftypM4A \0\0\0\0M4A mp42" + b"\0\0\0\x08moov",
    "webm": bytes.fromhex("1a45dfa380") + bytes.fromhex("1853806780"),
    "wma": ASF_HEAD,
    "aac": ADTS * 4,
    "aac with a tag": b"ID3\3\0\0\0\0\0\x04abcd" + ADTS * 4,
}
KINDS = {
    "late.m4a": ["-c:a", "aac"],
    "early.m4a": ["-c:a", "aac", "-movflags", "+faststart"],
    "pieces.mp4": ["-c:a", "aac", "-movflags", "frag_keyframe+empty_moov"],
    "lossless.m4a": ["-c:a", "alac"],
    "opus.webm": ["-c:a", "libopus"],
    "vorbis.webm": ["-c:a", "libvorbis"],
    "live.webm": ["-c:a", "libopus", "-live", "1"],
    "windows.wma": ["-c:a", "wmav2"],
    "bare.aac": ["-c:a", "aac"],
}


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    folder = tmp_path_factory.mktemp("foreign")
    soundfile.write(folder / "tone.wav", TONE, 48_000)

    def make(name: str) -> Path:
        path = folder / name
        if not path.exists():
            call = ["ffmpeg", "-nostdin", "-v", "error", "-i", folder / "tone.wav", *KINDS[name]]
            subprocess.run([*call, path], check=True)
        return path

    return make


@pytest.fixture
def pretend(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Path]:
    """Puts a shell script in ffmpeg's place; the shell's own programs stay where they are."""

    def script(body: str) -> Path:
        program = tmp_path / "bin" / "ffmpeg"
        program.parent.mkdir()
        program.write_text(f"#!/bin/sh\n{body}\n")
        program.chmod(program.stat().st_mode | stat.S_IXUSR)
        monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
        return tmp_path

    return script


def au(samples: np.ndarray, rate: int = 16_000, channels: int = 1, coding: int = 6) -> bytes:
    header = [24, 0xFFFFFFFF, coding, rate, channels]
    return (
        b".snd" + b"".join(n.to_bytes(4, "big") for n in header) + samples.astype(">f4").tobytes()
    )


# -- everywhere ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "container"),
    [("m4a", MP4), ("webm", MATROSKA), ("wma", ASF), ("aac", AAC), ("aac with a tag", AAC)],
)
def test_content_tells_what_only_ffmpeg_can_read(
    tmp_path: Path, name: str, container: object
) -> None:
    path = tmp_path / "any.wav"
    path.write_bytes(HEADS[name])
    with path.open("rb") as file:
        assert recognised(file) is container


@pytest.mark.parametrize("kind", ["WAV", "FLAC", "OGG", "MP3", "AIFF", "AU", "CAF", "W64", "RF64"])
def test_what_libsndfile_reads_is_never_handed_on(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "x"
    soundfile.write(path, TONE[:9600], 48_000, format=kind)
    with path.open("rb") as file:
        assert recognised(file) is None


@pytest.mark.parametrize("name", HEADS)
def test_without_ffmpeg_one_sentence_names_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setenv("PATH", "")
    path = tmp_path / "phone.m4a"
    path.write_bytes(HEADS[name])
    with pytest.raises(InputError, match="only ffmpeg can read here, and it is not insta") as error:
        read(path)
    assert str(error.value).startswith(f"{path}: is ")
    assert isinstance(error.value, vconv.SetupError)
    assert error.value.exit_code == 5


@posix
def test_what_ffmpeg_gives_is_the_recording(pretend: Callable[[str], Path]) -> None:
    tone = np.stack([TONE, -0.5 * TONE], axis=1)
    folder = pretend('cat "$(dirname "$0")/../sound"')
    (folder / "sound").write_bytes(au(tone, 48_000, 2))
    with read_blocks(HEADS["m4a"], block_seconds=0.3) as reader:
        assert (reader.info.rate, reader.info.channels, reader.info.frames) == (48_000, 2, None)
        assert np.array_equal(np.concatenate(list(reader)), tone.mean(axis=1, dtype=np.float32))
    with read_blocks(HEADS["m4a"], channel=1) as reader:
        assert np.array_equal(np.concatenate(list(reader)), tone[:, 1])


BAD_SOUND = {
    "NaN": (au(np.array([0, 0, np.nan])), "contains NaN at frame 2"),
    "1 Hz": (au(TONE, rate=1), "rate of 1 Hz"),
    "nine channels": (au(TONE, channels=9), "9 channels; allowed are 1 to 8"),
    "no channels": (au(TONE, channels=0), "0 channels"),
    "no samples": (au(TONE[:0]), "contains no samples"),
    "too long": (au(TONE), "longer than the 1 s allowed"),
    "integers": (au(TONE, coding=3), "another format than it was asked for"),
    "an endless header": (b".snd\xff\xff\xff\xff" + bytes(16), "another format than"),
    "garbage": (bytes(range(256)) * 20, "another format than it was asked for"),
    "nothing": (b"", "ffmpeg finds no sound in it"),
}


@posix
@pytest.mark.parametrize("case", BAD_SOUND)
def test_what_ffmpeg_gives_is_checked(pretend: Callable[[str], Path], case: str) -> None:
    sound, says = BAD_SOUND[case]
    folder = pretend('cat "$(dirname "$0")/../sound"')
    (folder / "sound").write_bytes(sound)
    with pytest.raises(InputError, match=f"^<bytes>: .*{says}") as error:
        read(HEADS["m4a"], max_seconds=1)
    assert "\n" not in str(error.value)


@posix
@pytest.mark.parametrize("lenient", [False, True])
def test_a_failure_of_ffmpeg_is_its_first_words(
    pretend: Callable[[str], Path], lenient: bool
) -> None:
    pretend("echo '[mov @ 0x55d0] no \033[31mindex.' >&2; echo more >&2; exit 1")
    with pytest.raises(InputError, match=r"cannot be read as audio \(ffmpeg: no .*index\)"):
        read(HEADS["m4a"], allow_truncated=lenient)


@posix
def test_a_failure_half_way_is_refused_and_taken_when_asked(pretend: Callable[[str], Path]) -> None:
    folder = pretend('cat "$(dirname "$0")/../sound"; echo "bad frame" >&2; exit 69')
    (folder / "sound").write_bytes(au(TONE, 48_000)[:-3])
    with pytest.raises(InputError, match=r"damaged after 95,999 frames \(ffmpeg: bad frame\)"):
        read(HEADS["m4a"])
    assert len(read(HEADS["m4a"], sample_rate=48_000, allow_truncated=True)) == 95_999


@posix
@pytest.mark.parametrize("before", ["", 'cat "$(dirname "$0")/../sound"; '])
def test_an_ffmpeg_that_hangs_is_ended(
    pretend: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch, before: str
) -> None:
    monkeypatch.setattr(foreign, "PATIENCE_SECONDS", 0.5)
    folder = pretend(f"{before}sleep 100")
    (folder / "sound").write_bytes(au(TONE))
    begun = time.monotonic()
    with pytest.raises(InputError, match="ffmpeg said nothing for"):
        read(HEADS["m4a"])
    assert time.monotonic() - begun < 20


@posix
def test_an_endless_answer_meets_the_limit_and_leaves_no_process(
    pretend: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = pretend(
        'echo $$ > "$(dirname "$0")/../pid"; cat "$(dirname "$0")/../sound" /dev/zero; true'
    )
    (folder / "sound").write_bytes(au(TONE))
    monkeypatch.setenv("TMPDIR", str(folder / "tmp"))
    monkeypatch.setattr("tempfile.tempdir", str(folder / "tmp"))
    (folder / "tmp").mkdir()
    with pytest.raises(InputError, match="longer than the 60 s allowed"):
        read(HEADS["m4a"], max_seconds=60)
    with pytest.raises(ProcessLookupError):  # ended, and its exit code fetched
        os.kill(int((folder / "pid").read_text()), 0)
    assert list((folder / "tmp").iterdir()) == []


@posix
def test_a_talkative_ffmpeg_does_not_block(pretend: Callable[[str], Path]) -> None:
    folder = pretend('head -c 1000000 /dev/zero >&2; cat "$(dirname "$0")/../sound"')
    (folder / "sound").write_bytes(au(TONE))
    assert len(read(HEADS["m4a"])) == len(TONE)


@posix
def test_leaving_a_conversion_ends_ffmpeg(pretend: Callable[[str], Path], tmp_path: Path) -> None:
    folder = pretend('echo $$ > "$(dirname "$0")/../pid"; cat "$(dirname "$0")/../sound" /dev/zero')
    (folder / "sound").write_bytes(au(TONE))
    path = tmp_path / "x.m4a"
    path.write_bytes(HEADS["m4a"])
    with vconv.load(exported()) as converter, pytest.raises(vconv.Cancelled):
        converter.convert_to_file(
            path, tmp_path / "out.wav", speaker=0, lanes=1, progress=lambda done, total: False
        )
    with pytest.raises(ProcessLookupError):
        os.kill(int((folder / "pid").read_text()), 0)
    assert not (tmp_path / "out.wav").exists()


@posix
def test_ffmpeg_is_told_the_demuxer_and_to_keep_to_files(
    pretend: Callable[[str], Path], tmp_path: Path
) -> None:
    folder = pretend(
        'for a; do echo "$a"; done > "$(dirname "$0")/../told"; cat "$(dirname "$0")/../sound"'
    )
    (folder / "sound").write_bytes(au(TONE))
    path = tmp_path / "-i concat:a|b.m4a"
    path.write_bytes(HEADS["m4a"])
    read(path)
    told = (folder / "told").read_text().splitlines()
    assert told[told.index("-i") + 1] == f"file:{path}"
    before = told[: told.index("-i")]
    assert before[before.index("-f") + 1] == "mov"
    assert before[before.index("-protocol_whitelist") + 1] == "file,pipe"
    assert "-nostdin" in before


CUT = {
    "m4a without its index": (
        b"\0\0\0\x10ftypM4A \0\0\0\0" + b"\0\0\0\x10mdat" + bytes(8),
        r"its index \(moov\) is missing",
    ),
    "m4a": (
        b"\0\0\0\x10ftypM4A \0\0\0\0" + b"\0\0\x10\0mdat" + bytes(8),
        "4,112 bytes are declared, 32 are there",
    ),
    "m4a of 64 bits": (
        b"\0\0\0\x10ftypM4A \0\0\0\0" + b"\0\0\0\x01mdat" + (2**40).to_bytes(8, "big"),
        "1,099,511,627,792 bytes are declared, 32 are there",
    ),
    "webm": (
        bytes.fromhex("1a45dfa380") + bytes.fromhex("18538067 4fff") + bytes(9),
        "bytes are declared, 20 are there",
    ),
    "webm, its head only": (bytes.fromhex("1a45dfa380"), "its sound is missing"),
    "wma": (ASF_HEAD[:16] + (5_000).to_bytes(8, "little") + bytes(6), "5,000 bytes are declared"),
    "aac": ((ADTS * 4)[:-1], "its last frame is incomplete"),
    "aac in a header": ((ADTS * 4)[:-4], "its last frame is incomplete"),
}


@pytest.mark.parametrize("case", CUT)
def test_what_is_cut_short_is_refused_before_ffmpeg_is_asked(
    monkeypatch: pytest.MonkeyPatch, case: str
) -> None:
    monkeypatch.setenv("PATH", "")
    data, says = CUT[case]
    with pytest.raises(InputError, match=f"was cut short: .*{says}"):
        read(data)


# -- with ffmpeg -----------------------------------------------------------------------------------


@needs_ffmpeg
@pytest.mark.parametrize("name", KINDS)
def test_a_phones_or_browsers_recording_is_the_reference(
    made: Callable[[str], Path], name: str
) -> None:
    path = made(name)
    with read_blocks(path) as reader:
        seconds = reader.info.seconds
        assert (reader.info.rate, reader.info.channels) == (48_000, 1)
    assert seconds is None or seconds == pytest.approx(2, abs=0.02)
    wav = read(path)
    assert abs(len(wav) - 32_000) < 1_600  # a coder works in frames
    # Some coders' delay is not declared: hold the tone's spectrum against it, not its phase.
    middle = wav[8_000:24_000] * np.hanning(16_000)
    spectrum = np.abs(np.fft.rfft(middle))
    assert spectrum.argmax() == 440
    assert np.sqrt(2 * np.mean(wav[8_000:24_000] ** 2)) == pytest.approx(0.4, abs=0.02)
    assert np.array_equal(read(path.read_bytes()), wav)
    with path.open("rb") as file:
        assert np.array_equal(read(file), wav)
        assert not file.closed


@needs_ffmpeg
@pytest.mark.parametrize("name", KINDS)
def test_a_recording_cut_by_a_byte_is_refused(made: Callable[[str], Path], name: str) -> None:
    data = made(name).read_bytes()[:-1]
    with pytest.raises(InputError, match="was cut short: "):
        read(data)
    assert 30_000 < len(read(data, allow_truncated=True)) < 33_600


@needs_ffmpeg
@pytest.mark.parametrize("name", ["early.m4a", "opus.webm", "windows.wma", "pieces.mp4"])
def test_half_a_recording_is_refused_and_taken_when_asked(
    made: Callable[[str], Path], name: str
) -> None:
    data = made(name).read_bytes()
    half = data[: len(data) // 2]
    with pytest.raises(InputError, match="was cut short"):
        read(half)
    assert 8_000 < len(read(half, allow_truncated=True)) < 26_000


@needs_ffmpeg
def test_fewer_samples_than_the_container_declares_are_noticed(
    made: Callable[[str], Path],
) -> None:
    """Its size is as it says, and yet half of its sound is not there."""
    data = bytearray(made("early.m4a").read_bytes())
    at = data.index(b"mdhd") + 4 + 16
    assert int.from_bytes(data[at : at + 4], "big") > 90_000
    for box in (b"elst", b"mdhd"):
        at = data.index(box) + 4 + (8 if box == b"elst" else 16)
        count = int.from_bytes(data[at : at + 4], "big")
        data[at : at + 4] = (2 * count).to_bytes(4, "big")
    with pytest.raises(InputError, match=r"was cut short or is damaged: 192,.* frames declared"):
        read(bytes(data))
    assert len(read(bytes(data), allow_truncated=True)) > 30_000


@needs_ffmpeg
def test_random_damage_gives_sound_or_one_sentence_whoever_decodes(
    made: Callable[[str], Path], capfd: pytest.CaptureFixture[str]
) -> None:
    random = np.random.default_rng(6)
    for turn in range(24):
        data = bytearray(made(list(KINDS)[turn % len(KINDS)]).read_bytes())
        for _ in range(8):
            data[int(random.integers(0, len(data)))] = int(random.integers(0, 256))
        with contextlib.suppress(InputError):
            assert np.isfinite(read(bytes(data), max_seconds=60)).all()
    assert capfd.readouterr() == ("", "")


@needs_ffmpeg
@pytest.mark.parametrize("inside", ["#EXTM3U\n#EXTINF:1,\n{}\n", "ffconcat version 1.0\nfile {}\n"])
def test_a_playlist_is_no_recording(tmp_path: Path, inside: str) -> None:
    """Not even one whose name and whose first box say m4a: nothing else is opened for it."""
    secret = tmp_path / "secret.wav"
    soundfile.write(secret, TONE, 48_000)
    playlist = inside.format(secret).encode()
    for data in (playlist, b"\0\0\0\x10ftypM4A \0\0\0\0" + playlist, HEADS["m4a"] + playlist):
        path = tmp_path / "list.m4a"
        path.write_bytes(data)
        with pytest.raises(InputError):
            read(path, allow_truncated=True)
