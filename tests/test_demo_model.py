"""The bundled model as it ships: it converts the example recording, and it listens."""

from __future__ import annotations

from itertools import combinations
from pathlib import Path

import numpy as np
import pytest

import vconv
import vconv.audio
from vconv.audio import read
from vconv.bundle import Bundle, find_model
from vconv.export.verify import verify

EXAMPLE = Path(__file__).resolve().parents[1] / "examples" / "hello.wav"
SPEAKERS = ("12", "awb", "kal")


@pytest.fixture(scope="module")
def demo():
    with vconv.load("demo") as converter:
        yield converter


def test_the_example_becomes_three_different_voices_of_its_own_length(demo):
    source = read(EXAMPLE)
    made = {speaker: demo.convert(EXAMPLE, speaker=speaker).audio for speaker in SPEAKERS}
    for speaker, audio in made.items():
        assert audio.shape == source.shape, speaker
        assert np.isfinite(audio).all(), speaker
        level_db = 20 * np.log10(np.sqrt(np.mean(audio**2)))
        assert -40 < level_db < -15, speaker
    for one, other in combinations(SPEAKERS, 2):
        assert np.abs(made[one] - made[other]).max() > 0.01


def test_the_seed_decides_the_bytes(demo):
    first, again, other = (
        demo.convert(EXAMPLE, speaker="12", seed=seed).audio for seed in (5, 5, 6)
    )
    assert first.tobytes() == again.tobytes()
    assert first.tobytes() != other.tobytes()


def test_speech_comes_out_where_speech_went_in(demo):
    """The output's loudness follows the input's: no gaps in words, no babble in pauses."""
    audio = demo.convert(EXAMPLE, speaker="awb").audio
    source = read(EXAMPLE)

    def contour(wav: np.ndarray) -> np.ndarray:
        frames = wav[: len(wav) // 800 * 800].reshape(-1, 800)
        return np.log(np.sqrt((frames**2).mean(1)) + 1e-4)

    assert np.corrcoef(contour(source), contour(audio))[0, 1] > 0.6


def test_its_decoder_listens_to_units_and_speaker():
    quality = find_manifest().quality
    for probe in ("probe_latents", "probe_speaker"):
        assert quality[probe] >= 0.05
        assert quality[f"{probe}_low"] > 0


def test_it_is_small_and_has_seen_what_it_claims():
    path = find_model("demo")
    assert sum(file.stat().st_size for file in path.rglob("*") if file.is_file()) < 12e6
    training = find_manifest().training
    assert training.samples_seen >= 200_000_000
    assert training.samples_seen == training.steps * 4 * 5120


def test_every_part_of_it_passes_verification():
    failed = [str(part) for part in verify(find_model("demo")) if part.passed is False]
    assert not failed


def find_manifest():
    return Bundle.open(find_model("demo"), verify=False).manifest
