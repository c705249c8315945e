"""Digital silence is fed to the WaveNet, not drawn from it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import vconv
from speech import speechlike
from tiny_model import exported
from vconv.audio import decoder_samples
from vconv.converter import Converter
from vconv.stream import Chunk, ChunkEncoder, Sampling, uniforms

CODED = ("vq", "fsq", "pitch", "instance_norm", "paper")
SECOND = 16_000


@pytest.fixture(scope="module", params=CODED)
def converter(request: pytest.FixtureRequest) -> Converter:
    return vconv.load(exported(request.param), engine="native")


def paused(seconds: float = 2.0) -> np.ndarray:
    """Half a second of speech, digital silence, speech again."""
    x = speechlike(SECOND)
    silence = np.zeros(round(seconds * SECOND), np.float32)
    return np.concatenate((x[: SECOND // 2], silence, x[SECOND // 2 :]))


def chunks_of(converter: Converter, x: np.ndarray) -> list[Chunk]:
    return ChunkEncoder(converter._model, rate=SECOND, name="x").push(x, last=True)


def test_silence_is_said_as_silence(converter: Converter) -> None:
    """The code of silence all along, but where the pre-emphasis settles."""
    out = converter.convert(np.zeros(2 * SECOND, np.float32), speaker=1, sample_rate=SECOND)
    audio = converter.info.model.audio
    still, _ = decoder_samples(
        np.full(len(out.audio), 128, np.uint8),
        mulaw=converter._model.mulaw,
        preemphasis=audio.preemphasis,
        gain=audio.gain,
        carry=0.0,
    )
    np.testing.assert_array_equal(out.audio, still)
    assert np.abs(out.audio).max() < 10 ** (-70 / 20)


def test_a_pause_is_silent_and_speech_goes_on_from_silence(converter: Converter) -> None:
    """Against the engine called unit by unit: fed where all units that shape the samples have the
    code of silence, asked to draw elsewhere."""
    model, grid = converter._model, converter._model.grid
    seed, chunks = 3, chunks_of(converter, paused())
    voice, _ = converter._voice(1, seed, 1.0, 0.0)
    (silence,) = set(model.encode(np.zeros(grid.window, np.float32)).codes.tolist())
    per_unit = grid.hop // model.geometry.conditioning_hop
    sampling, state = Sampling(voice), None
    found = {"fed": 0, "drawn": 0}
    for chunk in chunks:
        codes = sampling([chunk])
        if chunk.index < 0:
            state = sampling._state
            continue
        conditioning = voice.conditioning(chunk)
        extra = conditioning.shape[1] - grid.chunk_units * per_unit
        drawn = uniforms(seed, lane=0, chunk=chunk.index, count=grid.chunk)[None]
        for unit in range(grid.chunk_units):
            here = slice(unit * grid.hop, (unit + 1) * grid.hop)
            steps = conditioning[:, unit * per_unit : (unit + 1) * per_unit + extra]
            wanted = np.full((1, grid.hop), 128, np.uint8)
            if (chunk.units.codes[unit : unit + grid.context + 1] == silence).all():
                _, state = model.engine.score(steps, wanted, state)
                found["fed"] += 1
            else:
                wanted, state = model.engine.generate(steps, drawn[:, here], 1.0, state)
                found["drawn"] += 1
            np.testing.assert_array_equal(codes[:, here], wanted)
    assert min(found.values()) > 20


def test_the_silence_of_one_lane_changes_no_other(converter: Converter) -> None:
    voice, _ = converter._voice(0, 0, 1.0, 0.0)
    speech, pause = paused(), np.roll(paused(), SECOND)
    lanes = [chunks_of(converter, x) for x in (speech, pause, np.zeros_like(speech))]
    together = Sampling(voice, 3)
    side_by_side = [together(chunks) for chunks in zip(*lanes, strict=True)]
    for lane, chunks in enumerate(lanes):
        alone = Sampling(voice)
        for codes, chunk in zip(side_by_side, chunks, strict=True):
            np.testing.assert_array_equal(codes[lane], alone([chunk])[0])


def test_units_with_a_pause_are_said_as_the_recording_was(converter: Converter) -> None:
    x: Any = paused()
    said = converter.convert(x, speaker=1, seed=5, sample_rate=SECOND, lanes=1)
    units = converter.encode(x, sample_rate=SECOND)
    np.testing.assert_array_equal(said.audio, converter.decode(units, speaker=1, seed=5).audio)
    blocks = converter.stream(np.split(x, [999, 20_000]), speaker=1, seed=5, sample_rate=SECOND)
    np.testing.assert_array_equal(said.audio, np.concatenate([*blocks]))


@pytest.mark.parametrize("member", ["vae", "inverter"])
def test_without_codes_all_is_drawn(member: str) -> None:
    converter = vconv.load(exported(member), engine="native")
    units = converter._model.silence(20)
    assert not converter._model.silent_hops(units).any()


def test_the_bundled_model_keeps_silence_silent() -> None:
    """Of which it made speech: units of silence are followed, in its corpus, by sentences."""
    converter = vconv.load("demo")
    for seed in range(3):
        out = converter.convert(
            np.zeros(3 * SECOND, np.float32), speaker="kal", seed=seed, sample_rate=SECOND
        )
        assert np.abs(out.audio).max() < 10 ** (-70 / 20)
