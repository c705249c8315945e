"""Quiet and loud speech become the same units, and nothing else is made louder."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from speech import speechlike
from tiny_model import exported, reseal
from vconv import load
from vconv.audio import read
from vconv.bundle import Bundle, find_model
from vconv.input_level import InputLevel, SpeechFrames, speech_level

HELLO = Path(__file__).resolve().parents[1] / "examples" / "hello.wav"
REFERENCE_DB = -26.0
RATE = 16000


def noise(seconds: float, level_db: float, seed: int = 0) -> np.ndarray:
    drawn = np.random.default_rng(seed).standard_normal(int(seconds * RATE))
    return (drawn * 10 ** (level_db / 20)).astype(np.float32)


def gains_db(wav: np.ndarray, size: int = 3200) -> np.ndarray:
    """The gain after every so many samples."""
    level, found = InputLevel(REFERENCE_DB), []
    for start in range(0, len(wav), size):
        level.add(wav[start : start + size])
        found.append(20 * np.log10(float(level.gain)))
    return np.array(found)


@pytest.fixture(scope="module")
def hello() -> np.ndarray:
    return read(HELLO)


@pytest.fixture(scope="module")
def levelled(tmp_path_factory) -> Path:
    """A tiny model that knows its level."""
    folder = tmp_path_factory.mktemp("models") / "levelled"
    shutil.copytree(exported(), folder)
    return reseal(folder, input_level_db=REFERENCE_DB)


def test_the_level_of_bursts_of_a_tone_is_their_power():
    """A tone of amplitude 0.1 has -23 dBFS. Of 4 bursts of 50 frames 3 last 27 frames longer, by
    0.2 s and the smoothing, which lowers the mean by 1.5 dB."""
    tone = 0.1 * np.sin(2 * np.pi * 500 * np.arange(4 * RATE) / RATE).astype(np.float32)
    tone[np.arange(len(tone)) // 8000 % 2 == 0] *= 0.001
    assert speech_level([tone, tone]) == pytest.approx(-24.5, abs=0.3)
    assert speech_level([np.zeros(RATE, np.float32)]) is None


@pytest.mark.parametrize("change_db", [-30, -12, 6])
def test_speech_of_any_loudness_is_heard_alike(hello, change_db):
    """After 0.4 s of speech the gain takes off exactly what the recording was changed by."""
    wav = np.concatenate((hello, hello))
    wav += noise(len(wav) / RATE, -60)  # above what counts as digital silence, whatever comes
    changed = wav * np.float32(10 ** (change_db / 20))
    settled = slice(len(hello) // 3200, None)
    as_it_is, found = gains_db(wav)[settled], gains_db(changed)[settled]
    np.testing.assert_allclose(found + change_db, as_it_is, atol=1e-4)
    assert np.abs(as_it_is).max() < 20


@pytest.mark.parametrize("sizes", [[1], [160], [1000], [7, 1, 4000, 333]])
def test_the_blocks_do_not_show_in_a_bit(hello, sizes):
    wav = hello[8000:40001]
    whole = SpeechFrames().push(wav)
    frames, found, start = SpeechFrames(), [], 0
    while start < len(wav):
        size = sizes[start % len(sizes)]
        found += frames.push(wav[start : start + size])
        start += size
    assert found == whole
    assert len(whole) > 50


@pytest.mark.parametrize("level_db", [-80, -60, -20])
def test_noise_is_never_speech(level_db):
    assert SpeechFrames().push(noise(10, level_db)) == []
    slow = np.convolve(noise(10, level_db), np.ones(80, np.float32) / 80, "same")
    assert SpeechFrames().push(slow.astype(np.float32)) == []


def test_noise_before_speech_is_left_as_it_is(hello):
    found = gains_db(np.concatenate((noise(1, -60), hello + noise(len(hello) / RATE, -60, 1))))
    assert (found[:5] == 0).all()
    assert np.abs(found[15:]).max() < 6


def test_silence_before_noise_does_not_make_it_speech():
    dithered = (noise(1, 0) > 1).astype(np.float32) * np.float32(1e-6)
    for silence in (np.zeros(RATE, np.float32), dithered):
        assert (gains_db(np.concatenate((silence, noise(2, -60)))) == 0).all()
    assert (gains_db(np.zeros(RATE, np.float32)) == 0).all()


def test_a_change_of_level_is_followed_within_three_seconds_of_speech(hello):
    speech = np.tile(hello, 2)
    quiet = gains_db(np.concatenate((speech, speech * np.float32(0.0316))))
    there = len(speech) // 3200
    assert quiet[-1] - quiet[there - 1] == pytest.approx(30, abs=2)
    loud = gains_db(np.concatenate((speech * np.float32(0.0316), speech)))
    # A second of it is enough, for loud frames decide.
    assert loud[there - 1] - loud[there + 10] > 20


def test_the_gain_has_limits(hello):
    assert gains_db(hello * np.float32(1e-3)).max() == pytest.approx(40, abs=1e-5)
    assert gains_db(np.tile(hello, 2) * np.float32(100)).min() == pytest.approx(-20, abs=1e-5)


def test_a_model_that_does_not_know_its_level_hears_what_is_there(hello):
    level = InputLevel(None)
    level.add(hello * np.float32(0.01))
    assert level.gain == 1
    assert Bundle.open(exported()).manifest.input_level_db is None
    formats = Path(__file__).parent / "export" / "format-1"
    assert Bundle.open(formats).manifest.input_level_db is None


def test_noise_becomes_the_same_units_with_the_field_and_quiet_speech_does_not(levelled, hello):
    with load(levelled) as other, load(exported()) as plain:
        for wav, same in ((noise(2, -60), True), (hello * np.float32(0.01), False)):
            codes = [each.encode(wav, sample_rate=RATE).codes for each in (other, plain)]
            assert np.array_equal(*codes) == same


@pytest.mark.parametrize("rate", [16000, 44100])
def test_a_stream_is_the_file_to_the_bit(levelled, rate):
    wav = speechlike(2 * RATE) * np.float32(0.02)
    random = np.random.default_rng(0)
    with load(levelled) as converter:
        whole = converter.convert(wav, speaker="ada", sample_rate=rate, lanes=1).audio
        cuts = np.sort(random.integers(0, len(wav), 40))
        for blocks in (np.split(wav, cuts), np.split(wav, range(160, len(wav), 160))):
            made = converter.stream(blocks, speaker="ada", sample_rate=rate)
            assert np.concatenate(list(made)).tobytes() == whole.tobytes()


def test_the_bundled_model_hears_a_whisper_as_a_shout(hello):
    """Of its units 95 % would differ between -3 and -40 dBFS."""
    assert Bundle.open(find_model("demo")).manifest.input_level_db is not None
    wav = np.tile(hello / np.abs(hello).max() * np.float32(10 ** (-3 / 20)), 2)
    with load("demo") as demo:
        loud, quiet = (
            demo.encode(wav * np.float32(10 ** (change / 20)), sample_rate=RATE).codes
            for change in (0, -37)
        )
    differ = loud != quiet
    assert differ[len(differ) // 2 :].mean() < 0.05
    assert differ.mean() < 0.2
