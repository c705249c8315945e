"""The chunk loop and the converter on tiny random models, held against the eager network."""

from __future__ import annotations

import logging
import threading
import tracemalloc
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.signal
import soundfile
import torch
from safetensors.torch import load_file

import vconv
from speech import speechlike
from tiny_model import exported
from vconv.audio import MuLaw
from vconv.bundle import Bundle
from vconv.converter import Converter
from vconv.geometry import Geometry, Span
from vconv.grid import Grid
from vconv.nn.autoencoder import build_autoencoder
from vconv.stream import uniforms

# Codes and numbers, with and without pitch; 50 and 100 a second; frames and samples.
FAMILY = ("vq", "vae", "fsq", "pitch", "instance_norm", "paper", "inverter")


@pytest.fixture(scope="module")
def converter() -> Converter:
    return vconv.load(exported(), engine="native")


@pytest.fixture(scope="module", params=FAMILY)
def any_converter(request: pytest.FixtureRequest) -> Converter:
    """Each member of the family in turn."""
    return vconv.load(exported(request.param), engine="native")


def eager_network(bundle: Bundle) -> Any:
    network = build_autoencoder(bundle.config, len(bundle.speakers))
    # The filterbank and the DFT are constants of the code, not stored.
    found = network.load_state_dict(load_file(bundle.path / "weights.safetensors"), strict=False)
    assert not found.unexpected_keys
    return network.eval()


@dataclass
class RecordingEngine:
    """The real engine, and what it was asked and said."""

    inner: Any
    fed: list[np.ndarray] = field(default_factory=list)
    conditioning: list[np.ndarray] = field(default_factory=list)
    codes: list[np.ndarray] = field(default_factory=list)

    @property
    def levels(self) -> int:
        return self.inner.levels

    def initial_state(self, lanes: int) -> Any:
        return self.inner.initial_state(lanes)

    def score(self, conditioning: Any, codes: Any, state: Any) -> Any:
        assert not self.codes, "silence is fed before anything is generated"
        self.fed.append(codes[0])
        self.conditioning.append(conditioning[0])
        return self.inner.score(conditioning, codes, state)

    def generate(self, conditioning: Any, uniforms: Any, temperature: float, state: Any) -> Any:
        codes, state = self.inner.generate(conditioning, uniforms, temperature, state)
        self.conditioning.append(conditioning[0])
        self.codes.append(codes[0])
        return codes, state


def recorded(member: str) -> tuple[Converter, RecordingEngine]:
    """All is drawn: a random model may give speech the code of silence (tests/test_silence.py)."""
    converter = vconv.load(exported(member), engine="native")
    context = converter._model.grid.context
    converter._model.silent_hops = (  # type: ignore[method-assign]
        lambda units: np.zeros(len(units) - context, np.bool_)
    )
    engine = RecordingEngine(converter._model.engine)
    converter._model.engine = engine  # type: ignore[assignment]
    return converter, engine


# -- against the network that was trained ----------------------------------------------------------


@torch.no_grad()
@pytest.mark.parametrize("member", FAMILY)
def test_chunks_repeat_what_eager_computes_for_the_whole_utterance_at_once(member: str) -> None:
    converter, engine = recorded(member)
    eager = eager_network(converter._bundle)
    grid, hop = converter._model.grid, eager.geometry.conditioning_hop
    samples = 16_000 + 777
    pitch = {"pitch": 5.0} if member == "pitch" else {}
    out = converter.convert(speechlike(samples), speaker=1, seed=3, sample_rate=16_000, **pitch)

    lead = sum(map(len, engine.fed))
    receptive_field = eager.decoder.wavenet.receptive_field
    assert receptive_field - 1 <= lead < receptive_field - 1 + grid.hop
    assert (np.concatenate(engine.fed) == 128).all()

    # The whole signal, silence around it; the DC filter by its transfer function.
    pole = 1 - 2 * np.pi * 20 / 16_000
    filtered = scipy.signal.lfilter([1, -1], [1, -pole], speechlike(samples).astype(np.float64))
    wav = np.concatenate([np.zeros(grid.plan.left + lead), filtered, np.zeros(12_000)])
    wav = torch.from_numpy(wav.astype(np.float32))[None]
    codes, z = eager.bottleneck.quantise(eager.latents(wav))
    units = converter.encode(speechlike(samples), sample_rate=16_000)
    heard = max(0, -grid.first_unit - lead // grid.hop)  # eager's first unit among the units
    there = slice(heard + grid.first_unit + lead // grid.hop, None)
    if units.codes is None:
        latents = z[0].T.numpy()[there]
        assert units.latents is not None
        np.testing.assert_allclose(
            units.latents[heard:], latents[: len(units.latents) - heard], atol=1e-4
        )
    else:
        np.testing.assert_array_equal(
            units.codes[heard:], codes[0, there][: len(units.codes) - heard]
        )
    if eager.pitch is not None:
        z = torch.cat([z, told_of_pitch(eager, wav, grid, lead, octaves=5 / 12)], 1)
    speaker = eager.speaker_vectors(torch.tensor([1]))
    conditioning = eager.condition(z, speaker)[:, grid.plan.skip :]
    projected = conditioning if hop == 1 else eager.decoder.wavenet.project(conditioning)

    at = 0
    pieces = [*engine.fed, *engine.codes]
    for piece, given in zip(pieces, engine.conditioning, strict=True):
        expected = projected[0, at : at + len(given)].numpy()
        np.testing.assert_allclose(given, expected, atol=1e-4)
        at += len(piece) // hop

    # What was drawn follows from eager's logits under the same history.
    made = np.concatenate(pieces)
    inputs = torch.from_numpy(np.concatenate([[128], made[:-1]]).astype(np.int64))[None]
    wavenet = eager.decoder.wavenet
    steps = eager.geometry.conditioning_steps(len(made))
    logits, _ = wavenet(inputs, conditioning[:, :steps], wavenet.initial_state(1))
    cumulative = torch.softmax(logits[0, lead:].double(), 1).cumsum(1).numpy()
    drawn = np.concatenate(
        [uniforms(3, lane=0, chunk=i, count=len(part)) for i, part in enumerate(engine.codes)]
    )
    expected = (cumulative <= drawn[:, None]).sum(1)
    differs = expected != made[lead:]
    margin = np.abs(cumulative - drawn[:, None]).min(1)
    assert differs.mean() < 1e-3
    assert (margin[differs] <= 1e-4).all()

    # And the audio is those codes, decoded: bin centres, gain, de-emphasis.
    audio = converter.info.model.audio
    centres = MuLaw(256).centres[made[lead:]].astype(np.float64)
    decoded = scipy.signal.lfilter([1 / audio.gain], [1, -audio.preemphasis], centres)
    np.testing.assert_allclose(out.audio, decoded[:samples], atol=1e-6)


def told_of_pitch(
    eager: Any, wav: torch.Tensor, grid: Grid, lead: int, *, octaves: float
) -> torch.Tensor:
    """What the decoder is to be told [1, 2, U]: of each unit the pitch relative to the mean of all
    up to the last of its chunk, to which half a second of the speakers' mean is added."""
    octave, voicing = eager.pitch(wav)[0].double().numpy()
    assert 0.2 < (voicing > 0.5).mean() < 0.9
    skipped = lead // grid.hop + grid.first_chunk * grid.chunk_units  # eager begins within the lead
    relative = np.zeros_like(octave)
    for unit in range(len(octave)):
        chunk = max(0, -(-(unit + 1 - skipped - grid.plan.units) // grid.chunk_units))
        known = slice(0, skipped + grid.plan.units + chunk * grid.chunk_units)
        weights = np.append(voicing[known], 25)
        values = np.append(octave[known], eager.pitch.speaker_means.numpy().mean())
        relative[unit] = octave[unit] - np.average(values, weights=weights)
    told = np.stack([(relative + octaves) * voicing, voicing])
    return torch.from_numpy(told.astype(np.float32))[None]


def test_interpolation_joins_chunks_without_a_seam() -> None:
    converter, engine = recorded("vq")
    converter.convert(speechlike(20_000), speaker=0, sample_rate=16_000)
    for before, after in zip(engine.conditioning, engine.conditioning[1:], strict=False):
        np.testing.assert_allclose(before[-1], after[0], atol=1e-5)


def test_each_unit_is_encoded_once(
    any_converter: Converter, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Chunks share units, but not the work."""
    model, made = any_converter._model, []
    encode = model.encode

    def record(wav: Any) -> Any:
        made.append(len(encode(wav)))
        return encode(wav)

    model.silence(1)
    monkeypatch.setattr(model, "encode", record)
    any_converter.encode(speechlike(3200 * 5 + 1), sample_rate=16_000)
    grid = model.grid
    assert made == [grid.plan.units] + [grid.chunk_units] * (5 - grid.first_chunk)


@pytest.mark.parametrize("instance_norm", [None, 11, 101, 1001])
@pytest.mark.parametrize("upsampling", ["linear", "transposed"])
@pytest.mark.parametrize("encoder", [True, False])
@pytest.mark.parametrize("layers", [4, 10])
def test_the_first_unit_is_the_first_that_hears_the_recording_and_is_needed(
    instance_norm: int | None, upsampling: str, encoder: bool, layers: int
) -> None:
    geometry = Geometry.of(
        features="mfcc39",
        upsampling=upsampling,
        kernel_size=3,
        blocks=2,
        layers=layers,
        encoder=encoder,
        instance_norm=instance_norm if encoder else None,
    )
    grid = Grid.of(geometry)
    needed = range(grid.first_chunk * grid.chunk_units, 100)
    hears = (u for u in needed if geometry.unit_inputs(Span(u, u + 1)).stop > grid.plan.left)
    assert grid.first_unit == next(hears)


def test_a_mixture_is_the_weighted_sum_of_the_speakers_vectors(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    converter = vconv.load(exported())
    seen = []
    condition = converter._model.condition

    def record(latents: Any, speaker: Any) -> Any:
        seen.append(speaker)
        return condition(latents, speaker)

    monkeypatch.setattr(converter._model, "condition", record)
    out = converter.convert(speechlike(8000), speaker={"ada": 0.6, "carl": 1.8}, sample_rate=16_000)
    table = load_file(exported() / "weights.safetensors")["speakers.weight"].numpy()
    np.testing.assert_allclose(seen[0], (0.25 * table[0] + 0.75 * table[2])[None], rtol=1e-6)
    assert out.speaker == "ada:0.25,carl:0.75"


# -- lengths ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("rate", [8_000, 16_000, 22_050, 44_100, 48_000])
@pytest.mark.parametrize("seconds", [0.026, 0.4, 0.4001, 1.0, 1.2345])
def test_output_has_the_inputs_length_to_the_sample(
    converter: Converter, rate: int, seconds: float
) -> None:
    samples = int(seconds * rate)
    x = speechlike(samples)
    out = converter.convert(x, speaker=0, sample_rate=rate)
    assert out.sample_rate == 16_000
    assert abs(len(out.audio) - samples * 16_000 / rate) <= 0.5
    own = converter.convert(x, speaker=0, sample_rate=rate, output_sample_rate=rate)
    assert (len(own.audio), own.sample_rate) == (samples, rate)
    assert np.isfinite(out.audio).all()
    assert np.isfinite(own.audio).all()


@pytest.mark.parametrize("samples", [401, 9600, 12_801])
def test_every_member_keeps_the_length(any_converter: Converter, samples: int) -> None:
    x = speechlike(samples)
    assert len(any_converter.convert(x, speaker=0, sample_rate=16_000).audio) == samples


def test_every_unit_comes_once(any_converter: Converter) -> None:
    short = any_converter.encode(speechlike(6400 * 3), sample_rate=16_000)
    long = any_converter.encode(speechlike(6400 * 9), sample_rate=16_000)
    rate = any_converter.info.unit_rate
    same = round(rate)  # the longer begins like the shorter, as far as that heard the same
    for name in ("codes", "latents", "pitch"):
        first, second = getattr(short, name), getattr(long, name)
        if first is None:
            assert second is None
        else:
            assert (
                len(second) - len(first) == 6 * 6400 * rate / 16_000
            )  # and the same few at the ends
            np.testing.assert_array_equal(first[:same], second[:same])


def test_a_recording_shorter_than_a_frame_is_refused_with_the_length_it_needs(
    converter: Converter,
) -> None:
    with pytest.raises(vconv.InputError, match=r"lasts 0\.0249 s; at least 0\.025 s"):
        converter.convert(speechlike(399), speaker=0, sample_rate=16_000)
    with pytest.raises(vconv.InputError, match="at least"):
        list(converter.stream([], speaker=0, sample_rate=16_000))
    with pytest.raises(vconv.InputError, match="at least"):
        converter.encode(np.zeros(0, np.float32), sample_rate=16_000)


# -- the same bytes --------------------------------------------------------------------------------


def test_same_seed_same_bytes_and_another_seed_others(converter: Converter) -> None:
    x = speechlike(12_000)

    def bytes_of(**options: Any) -> bytes:
        return converter.convert(x, sample_rate=16_000, **options).audio.tobytes()

    first = bytes_of(speaker="bea", seed=1)
    assert bytes_of(speaker="bea", seed=1) == first
    assert bytes_of(speaker=1, seed=1) == first
    assert bytes_of(speaker="bea", seed=2) != first
    assert bytes_of(speaker="bea", seed=1 + 2**63) != first
    assert bytes_of(speaker="carl", seed=1) != first
    cold = bytes_of(speaker="bea", seed=1, temperature=0)
    assert bytes_of(speaker="bea", seed=2, temperature=0) == cold != first


def test_uniforms_are_a_function_of_seed_lane_chunk_and_place() -> None:
    draws = uniforms(7, lane=0, chunk=5, count=6400)
    np.testing.assert_array_equal(draws[:100], uniforms(7, lane=0, chunk=5, count=100))
    for other in ({"chunk": 6}, {"lane": 1}):
        assert (uniforms(7, **{"lane": 0, "chunk": 5, "count": 6400} | other) != draws).mean() > 0.9
    assert 0 <= draws.min() < 0.001
    assert 0.999 < draws.max() < 1
    # Pinned: a later numpy, or another counter, must not change what a seed means.
    first = uniforms(0, lane=0, chunk=0, count=3)
    reference = np.random.Philox(key=[0, 0], counter=[0, 0, 0, 0]).random_raw(3)
    np.testing.assert_array_equal(first, ((reference >> np.uint64(41)) + 0.5) / 2.0**23)


@pytest.mark.parametrize("rate", [8_000, 16_000, 44_100, 48_000])
@pytest.mark.parametrize("size", [160, 1000, 16_000, None])
def test_a_stream_gives_what_the_file_gives_however_it_is_cut(
    converter: Converter, tmp_path: Path, rate: int, size: int | None
) -> None:
    x = speechlike(int(1.3 * rate) + 7) + np.float32(0.25)  # an offset keeps the DC filter busy
    path = tmp_path / "x.wav"
    soundfile.write(path, x, rate, subtype="FLOAT")
    whole = converter.convert(path, speaker=2, seed=5).audio
    random = np.random.default_rng(0)

    def blocks() -> Any:
        at = 0
        while at < len(x):
            count = size or int(random.integers(0, 5000))
            yield x[at : at + count]
            at += count

    streamed = list(converter.stream(blocks(), speaker=2, seed=5, sample_rate=rate))
    np.testing.assert_array_equal(np.concatenate(streamed), whole)
    assert len(streamed) > (2 if len(x) > 2 * (size or 0) else 0)


@pytest.mark.parametrize("rate", [8_000, 16_000, 44_100, 48_000])
def test_a_stream_of_single_samples_gives_what_the_file_gives(
    converter: Converter, rate: int
) -> None:
    x = speechlike(rate // 16)  # and no whole number of frames, chunks or output samples
    for out in (None, 22_050):
        options = {"speaker": 0, "sample_rate": rate, "output_sample_rate": out}
        whole = converter.convert(x, lanes=1, **options).audio
        streamed = converter.stream((x[i : i + 1] for i in range(len(x))), **options)
        np.testing.assert_array_equal(np.concatenate(list(streamed)), whole)


def test_a_stream_answers_within_its_latency(converter: Converter) -> None:
    """After t seconds in, at least t - latency seconds are out."""
    arrived = 0

    def blocks() -> Any:
        nonlocal arrived
        for _ in range(200):
            arrived += 160
            yield speechlike(160)

    out = 0
    for block in converter.stream(blocks(), speaker=0, sample_rate=16_000):
        if arrived < 32_000:
            assert arrived <= out + 160 + converter.latency_seconds * 16_000
        out += len(block)
    assert out == 32_000
    assert converter.latency_seconds == pytest.approx((3200 + 2281) / 16_000)


def test_speaking_the_units_of_a_recording_is_converting_it(any_converter: Converter) -> None:
    x = speechlike(30_001)
    units = any_converter.encode(x, sample_rate=48_000)
    assert units.seconds == pytest.approx(30_001 / 48_000, abs=1e-4)
    assert (units.codes is None) == (any_converter.info.bottleneck.codebook_size is None)
    assert (units.codes is None) != (units.latents is None)
    for rate in (None, 48_000):
        spoken = any_converter.decode(units, speaker=2, seed=9, output_sample_rate=rate)
        made = any_converter.convert(
            x, speaker=2, seed=9, sample_rate=48_000, output_sample_rate=rate
        )
        np.testing.assert_array_equal(made.codes, units.codes)
        # 30,001 samples become 10,000 at 16 kHz, of which 48 kHz makes 30,000.
        shorter = min(len(spoken.audio), len(made.audio))
        assert abs(len(spoken.audio) - len(made.audio)) <= 1
        np.testing.assert_array_equal(spoken.audio[:shorter], made.audio[:shorter])


def test_a_stream_of_any_member_gives_what_the_file_gives(any_converter: Converter) -> None:
    x = speechlike(17_003)
    whole = any_converter.convert(x, speaker=2, seed=5, sample_rate=16_000).audio
    blocks = (x[at : at + 777] for at in range(0, len(x), 777))
    streamed = list(any_converter.stream(blocks, speaker=2, seed=5, sample_rate=16_000))
    np.testing.assert_array_equal(np.concatenate(streamed), whole)
    assert len(streamed) > 2


def test_units_that_are_not_the_models_are_refused(converter: Converter) -> None:
    units = converter.encode(speechlike(8000), sample_rate=16_000)
    assert units.codes is not None
    strange = vconv.Units(np.where(np.arange(len(units.codes)) == 3, 16, 0), units.samples)
    with pytest.raises(vconv.UsageError, match="codes are 0 to 15, found 0 to 16"):
        converter.decode(strange, speaker=0)
    for refused, found in (
        (vconv.Units(units.codes[1:], 8000), r"codes \[32\]"),
        (vconv.Units(None, 8000), "nothing"),
        (vconv.Units(None, 8000, np.zeros((33, 6), np.float32)), r"latents \[33, 6\]"),
        (
            vconv.Units(units.codes, 8000, pitch=np.zeros((33, 2), np.float32)),
            r"codes \[33\] and pitch \[33, 2\]",
        ),
    ):
        with pytest.raises(
            vconv.UsageError, match=rf"8,000 samples is codes \[33\] to this model, found {found}"
        ):
            converter.decode(refused, speaker=0)


def test_continuous_units_that_are_not_the_models_are_refused() -> None:
    with vconv.load(exported("vae")) as vae:
        latents = vae.encode(speechlike(8000), sample_rate=16_000).latents
        assert latents is not None
        for refused in (
            vconv.Units(np.zeros(33, np.int64), 8000),
            vconv.Units(None, 8000, latents[:, :5]),
            vconv.Units(None, 8000, latents[1:]),
        ):
            with pytest.raises(vconv.UsageError, match=r"is latents \[33, 6\] to this model"):
                vae.decode(refused, speaker=0)
        latents[7, 3] = np.nan
        with pytest.raises(vconv.UsageError, match="found NaN or infinity"):
            vae.decode(vconv.Units(None, 8000, latents), speaker=0)


# -- pitch -----------------------------------------------------------------------------------------


def test_units_carry_pitch_where_the_model_is_told_it(any_converter: Converter) -> None:
    units = any_converter.encode(speechlike(16_000), sample_rate=16_000)
    if not any_converter.info.model.decoder.pitch:
        assert units.pitch is None
        return
    assert units.pitch is not None
    relative, voicing = units.pitch.T
    assert voicing.min() >= 0
    assert voicing.max() == 1
    assert np.abs(relative[voicing == 1]).max() < 3  # octaves


def test_a_shift_moves_the_pitch_that_the_decoder_is_told_and_nothing_else() -> None:
    converter = vconv.load(exported("pitch"), engine="native")
    told: list[np.ndarray] = []
    condition = converter._model.condition

    def record(latents: Any, speaker: Any) -> Any:
        told.append(latents[0])
        return condition(latents, speaker)

    converter._model.condition = record  # type: ignore[method-assign]
    x = speechlike(12_000)
    plain = converter.convert(x, speaker=0, sample_rate=16_000)
    there = np.stack(told)
    told.clear()
    raised = converter.convert(x, speaker=0, sample_rate=16_000, pitch=-7)
    moved = np.stack(told) - there
    voicing = there[:, :, -1]
    np.testing.assert_allclose(moved[:, :, -2], -7 / 12 * voicing, atol=1e-6)
    assert not moved[:, :, :-2].any()
    assert not moved[:, :, -1].any()
    assert (plain.audio != raised.audio).any()
    np.testing.assert_array_equal(plain.codes, raised.codes)
    # The same from units, and in a stream.
    units = converter.encode(x, sample_rate=16_000)
    spoken = converter.decode(units, speaker=0, pitch=-7)
    np.testing.assert_array_equal(spoken.audio, raised.audio)
    streamed = converter.stream([x[:5000], x[5000:]], speaker=0, sample_rate=16_000, pitch=-7)
    np.testing.assert_array_equal(np.concatenate(list(streamed)), raised.audio)


def test_a_model_without_pitch_refuses_to_shift_it(converter: Converter, tmp_path: Path) -> None:
    x = speechlike(8000)
    units = converter.encode(x, sample_rate=16_000)
    calls: list[Any] = [
        lambda pitch: converter.convert(x, speaker=0, sample_rate=16_000, pitch=pitch),
        lambda pitch: converter.convert_to_file(
            x, tmp_path / "x.wav", speaker=0, sample_rate=16_000, pitch=pitch
        ),
        lambda pitch: converter.stream([x], speaker=0, sample_rate=16_000, pitch=pitch),
        lambda pitch: converter.decode(units, speaker=0, pitch=pitch),
    ]
    for call in calls:
        with pytest.raises(vconv.UsageError, match="'tiny' was trained without pitch; it cannot"):
            call(0.5)
        call(0.0)


@pytest.mark.parametrize("pitch", [24.1, -25, float("nan"), float("inf")])
def test_a_shift_out_of_range_is_refused(pitch: float) -> None:
    with (
        vconv.load(exported("pitch")) as converter,
        pytest.raises(vconv.UsageError, match="-24 to 24 semitones"),
    ):
        converter.convert(speechlike(500), speaker=0, sample_rate=16_000, pitch=pitch)


def test_threads_share_a_converter(converter: Converter) -> None:
    x = speechlike(16_000)
    wanted = [
        converter.convert(x, speaker=i % 3, seed=i, sample_rate=16_000).audio for i in range(4)
    ]
    results: dict[int, np.ndarray] = {}

    def work(i: int) -> None:
        results[i] = converter.convert(x, speaker=i % 3, seed=i, sample_rate=16_000).audio

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for i in range(4):
        np.testing.assert_array_equal(results[i], wanted[i])


# -- files -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("level", ["keep", "match", "peak"])
def test_convert_to_file_writes_what_convert_saves(
    converter: Converter, tmp_path: Path, level: Any
) -> None:
    x = speechlike(20_000)
    out = converter.convert(x, speaker=0, sample_rate=16_000, level=level)
    out.save(tmp_path / "saved.flac")
    written = converter.convert_to_file(
        x, tmp_path / "written.flac", speaker=0, sample_rate=16_000, level=level
    )
    assert (tmp_path / "written.flac").read_bytes() == (tmp_path / "saved.flac").read_bytes()
    assert (written.samples, written.sample_rate, written.speaker) == (20_000, 16_000, "ada")
    assert written.seconds == out.seconds == 1.25
    assert written.real_time_factor > 0
    assert sorted(p.name for p in tmp_path.iterdir()) == ["saved.flac", "written.flac"]


def test_levels_scale_to_the_inputs_loudness_or_to_a_peak(converter: Converter) -> None:
    x = speechlike(16_000) * np.float32(0.01)
    kept, matched, peaked = (
        converter.convert(x, speaker=0, sample_rate=16_000, level=level).audio
        for level in ("keep", "match", "peak")
    )
    assert np.sqrt(np.mean(matched**2)) == pytest.approx(np.sqrt(np.mean(x**2)), rel=0.02)
    assert np.abs(peaked).max() == pytest.approx(10 ** (-1 / 20), rel=1e-5)
    for scaled in (matched, peaked):  # nothing but a factor
        factor = scaled @ kept / (kept @ kept)
        np.testing.assert_allclose(scaled, factor * kept, rtol=1e-4, atol=1e-7)
    with pytest.raises(vconv.UsageError, match="keep, match, peak"):
        converter.convert(x, speaker=0, sample_rate=16_000, level="loud")  # type: ignore[arg-type]


def test_match_never_clips(converter: Converter) -> None:
    square = np.sign(np.sin(np.arange(16_000) * 0.05)).astype(np.float32)
    out = converter.convert(square, speaker=0, sample_rate=16_000, level="match").audio
    assert np.abs(out).max() <= 1 + 1e-6


def test_memory_does_not_grow_with_the_recording(converter: Converter, tmp_path: Path) -> None:
    def peak(seconds: int) -> int:
        path = tmp_path / "long.wav"
        with soundfile.SoundFile(path, "w", 8_000, 1) as file:
            for _ in range(seconds):
                file.write(speechlike(8_000))
        tracemalloc.start()
        converter.convert_to_file(path, tmp_path / "out.wav", speaker=0, level="match", lanes=1)
        top = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return top

    assert peak(24) - peak(4) < 300_000  # 20 s at 16 kHz would be 1.3 MB


def test_cancelling_leaves_nothing(converter: Converter, tmp_path: Path) -> None:
    told = []

    def progress(done: float, total: float | None) -> bool:
        told.append((done, total))
        return done < 1

    old = tmp_path / "old.wav"
    old.write_bytes(b"kept")
    with pytest.raises(vconv.Cancelled):
        converter.convert_to_file(
            speechlike(48_000), old, speaker=0, sample_rate=16_000, progress=progress
        )
    assert [p.name for p in tmp_path.iterdir()] == ["old.wav"]
    assert old.read_bytes() == b"kept"
    assert told[-1][0] >= 1
    assert all(total == 3.0 for _, total in told)


def test_progress_reaches_the_end(converter: Converter) -> None:
    told = []
    converter.convert(
        speechlike(33_000), speaker=0, sample_rate=16_000, progress=lambda *a: told.append(a)
    )
    assert told == sorted(told)
    assert told[-1] == (33_000 / 16_000, 33_000 / 16_000)


def test_the_input_is_never_written_over(converter: Converter, tmp_path: Path) -> None:
    path = tmp_path / "in.wav"
    soundfile.write(path, speechlike(8000), 16_000)
    before = path.read_bytes()
    link = tmp_path / "link.wav"
    link.symlink_to(path)
    for target in (path, link, tmp_path / "." / "in.wav"):
        with pytest.raises(vconv.UsageError, match="the input itself"):
            converter.convert_to_file(path, target, speaker=0)
    assert path.read_bytes() == before


# -- content ---------------------------------------------------------------------------------------


def test_silence_is_converted_with_a_warning(
    converter: Converter, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, "vconv"):
        out = converter.convert(np.zeros(9000), speaker=0, sample_rate=16_000, level="match")
    assert np.isfinite(out.audio).all()
    assert [r.getMessage() for r in caplog.records] == ["<samples>: the recording is silent."]


def test_channels_in_antiphase_are_warned_about(
    converter: Converter, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    x = speechlike(9000)
    soundfile.write(tmp_path / "x.wav", np.stack([x, -x], 1), 16_000, subtype="FLOAT")
    with caplog.at_level(logging.WARNING, "vconv"):
        converter.convert(tmp_path / "x.wav", speaker=0)
        left = converter.convert(tmp_path / "x.wav", speaker=0, channel=0)
    assert len(caplog.records) == 1
    assert "--channel" in caplog.records[0].getMessage()
    same = converter.convert(x, speaker=0, sample_rate=16_000)
    np.testing.assert_array_equal(left.audio, same.audio)


def test_a_constant_offset_changes_nothing_once_the_filter_has_settled(
    converter: Converter,
) -> None:
    x = speechlike(32_000) * np.float32(0.3)
    plain = converter.encode(x, sample_rate=16_000).codes
    offset = converter.encode(x + np.float32(0.7), sample_rate=16_000).codes
    settled = slice(20, None)  # 0.4 s
    assert (plain[settled] == offset[settled]).mean() > 0.97


@pytest.mark.parametrize(
    ("x", "error", "says"),
    [
        (np.array([0.0] * 500 + [np.nan] * 3), vconv.InputError, "NaN at sample 500"),
        (np.array([0.0] * 499 + [np.inf]), vconv.InputError, "inf at sample 499"),
        (np.full(500, 1e30), vconv.InputError, "1e[+]30 at sample 0"),
        (np.zeros((500, 2)), vconv.UsageError, r"shape \[T\], found \[500, 2\]"),
        (np.zeros(500, complex), vconv.UsageError, "complex128"),
        (np.array(["a"] * 500), vconv.UsageError, "floats, int16 or int32"),
    ],
)
def test_samples_that_cannot_be_used_are_refused(
    converter: Converter, x: Any, error: type[Exception], says: str
) -> None:
    with pytest.raises(error, match=says):
        converter.convert(x, speaker=0, sample_rate=16_000)
    with pytest.raises(error, match=says):
        list(converter.stream([x], speaker=0, sample_rate=16_000))


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"speaker": "beaa"}, "'bea'"),
        ({"speaker": 3}, "allowed are 0 to 2"),
        ({"seed": -1}, "seed"),
        ({"seed": 2**64}, "seed"),
        ({"temperature": -0.1}, "temperature"),
        ({"temperature": float("nan")}, "temperature"),
        ({"sample_rate": None}, "sample_rate="),
        ({"sample_rate": 3999}, "4,000 to 192,000"),
        ({"output_sample_rate": 200_000}, "output's sample rate"),
    ],
)
def test_wrong_calls_are_refused_in_a_sentence(
    converter: Converter, options: dict[str, Any], says: str
) -> None:
    call = {"speaker": 0, "sample_rate": 16_000} | options
    with pytest.raises(vconv.UsageError, match=says):
        converter.convert(speechlike(500), **call)


def test_a_rate_for_a_file_is_refused(converter: Converter, tmp_path: Path) -> None:
    soundfile.write(tmp_path / "x.wav", speechlike(8000), 16_000)
    with pytest.raises(vconv.UsageError, match="a file says its own rate"):
        converter.convert(tmp_path / "x.wav", speaker=0, sample_rate=16_000)


def test_the_torchscript_engine_converts_too(converter: Converter) -> None:
    """Draw by draw the engines agree but where a uniform lies on a step; then they part."""
    x = speechlike(6000)
    with vconv.load(exported(), engine="torchscript") as scripted:
        made = scripted.convert(x, speaker=1, sample_rate=16_000).audio
    native = converter.convert(x, speaker=1, sample_rate=16_000).audio
    assert len(made) == 6000
    np.testing.assert_allclose(made[:100], native[:100], atol=1e-5)


def test_a_device_that_is_not_there_is_never_the_cpu_in_silence(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with pytest.raises(vconv.UsageError, match="tpu"):
        vconv.load(exported(), device="tpu")
    if not torch.cuda.is_available():
        with pytest.raises(vconv.SetupError, match="cuda") as caught:
            vconv.load(exported(), device="cuda", engine="torchscript")
        assert caught.value.exit_code == 5
        with pytest.raises(vconv.VconvError, match="cuda"):
            vconv.load(exported(), device="cuda:1")
