"""Lanes: the same units said side by side, and joined where nobody hears it."""

from __future__ import annotations

import json
import logging
import threading
import tracemalloc
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import soundfile

import vconv
from speech import speechlike
from tiny_model import MEMBERS, exported
from vconv import lanes as lanes_module
from vconv.converter import Converter
from vconv.engines.base import conditioning_steps
from vconv.lanes import FADE, LaneSession, crossfaded, cuts, shared_out
from vconv.model import Model, Stretch
from vconv.stream import Chunk, Voice, uniforms

# Frames and samples, units and frames, with pitch; the rest take an export each to make.
FAMILY = [
    pytest.param(member, marks=[] if member in usual else pytest.mark.slow)
    for usual in [("vq", "pitch", "paper", "inverter")]
    for member in MEMBERS
]
HELLO = Path(__file__).parents[1] / "examples" / "hello.wav"


@pytest.fixture(scope="module")
def converter() -> Converter:
    return vconv.load(exported(), engine="native")


def recording(seconds: float, rate: int = 16_000) -> np.ndarray:
    """Something speechlike with pauses in it."""
    x = speechlike(round(seconds * rate))
    time = np.arange(len(x)) / rate
    return (x * (np.sin(2 * np.pi * 0.43 * time) > -0.7)).astype(np.float32)


# -- the bookkeeping, with an engine that forgets --------------------------------------------------


@dataclass
class Forgetful:
    """Says what the conditioning and the uniforms of the moment say: lanes cannot differ."""

    inner: Any
    name: str = "native"

    @property
    def levels(self) -> int:
        return int(self.inner.levels)

    @property
    def hop(self) -> int:
        return int(self.inner.hop)

    def initial_state(self, lanes: int) -> Any:
        return lanes

    def score(self, conditioning: Any, codes: Any, state: Any) -> Any:
        assert conditioning.shape[:2] == (state, conditioning_steps(codes.shape[1], self.hop))
        return None, state

    def generate(self, conditioning: Any, uniforms: Any, temperature: float, state: Any) -> Any:
        assert len(conditioning) == len(uniforms) == state
        said = np.tanh(conditioning[:, : uniforms.shape[1] // self.hop].sum(2)) * 40
        codes = 128 + np.repeat(said, self.hop, 1) + 20 * (uniforms - 0.5)
        return codes.astype(np.uint8), state


def forgetful(member: str = "vq") -> Converter:
    converter = vconv.load(exported(member), engine="native")
    converter._model.engine = Forgetful(converter._model.engine)  # type: ignore[assignment]
    return converter


@pytest.mark.parametrize("member", FAMILY)
def test_no_sample_is_lost_or_said_twice_in_any_member(
    member: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In lanes and rounds of lanes, an engine without memory says what it says in one."""
    monkeypatch.setattr(lanes_module, "_PIECE", 16)
    converter = forgetful(member)
    pitch: dict[str, Any] = {"pitch": 4.0} if member == "pitch" else {}
    x = recording(21.37)

    def said(lanes: Any) -> Any:
        return converter.convert(x, speaker=1, seed=3, sample_rate=16_000, lanes=lanes, **pitch)

    one, three = said(1), said(3)
    assert (one.lanes, three.lanes) == (1, 3)
    assert len(three.audio) == len(x)
    np.testing.assert_allclose(three.audio, one.audio, atol=1e-6)
    assert np.abs(one.audio).max() > 0.01
    if one.codes is not None:
        np.testing.assert_array_equal(one.codes, three.codes)


@pytest.mark.parametrize("rates", [(8_000, 44_100), (44_100, 44_100), (48_000, 16_000)])
@pytest.mark.parametrize("seconds", [0.03, 1.0, 9.013, 12.6])
def test_lengths_are_exact_at_any_rate(
    rates: tuple[int, int], seconds: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lanes_module, "_PIECE", 16)
    converter = forgetful()
    x = recording(seconds, rates[0])
    made = [
        converter.convert(
            x, speaker=0, sample_rate=rates[0], output_sample_rate=rates[1], lanes=lanes
        ).audio
        for lanes in (1, 2, 64)
    ]
    assert abs(len(made[0]) - len(x) * rates[1] / rates[0]) <= 0.5
    for other in made[1:]:
        np.testing.assert_allclose(other, made[0], atol=1e-6)


def never_silent(model: Model, units: Stretch) -> npt.NDArray[np.bool_]:
    return np.zeros(len(units) - model.grid.context, np.bool_)


# -- lanes of a real engine ------------------------------------------------------------------------


@pytest.mark.parametrize("member", FAMILY)
def test_a_lane_says_what_it_would_say_alone(member: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Against one lane at a time, each begun in silence before its first chunk."""
    monkeypatch.setattr(lanes_module, "usable_cores", lambda: 2)
    monkeypatch.setattr(Model, "silent_hops", never_silent)  # tests/test_silence.py
    converter = vconv.load(exported(member), engine="native")
    model = converter._model
    grid = model.grid
    seen: list[Any] = []
    generate, init = LaneSession._generate, Voice.__init__
    voices: list[Voice] = []

    def record(self: LaneSession, starts: Any, steps: int, settled: float) -> Any:
        made = generate(self, starts, steps, settled)
        seen.append((list(self._lead), list(self._waiting), starts, steps, made))
        return made

    def keep(self: Voice, *args: Any, **options: Any) -> None:
        init(self, *args, **options)
        voices.append(self)

    monkeypatch.setattr(LaneSession, "_generate", record)
    monkeypatch.setattr(Voice, "__init__", keep)
    converter.convert(recording(9.3), speaker=2, seed=5, sample_rate=16_000, lanes=3)
    ((lead, chunks, starts, steps, made),) = seen
    assert len(starts) == len(made) == 3
    assert starts[0] == 0
    assert [chunk.index for chunk in chunks] == list(range(47))
    silence = model.silence(grid.plan.units)
    for start, codes in zip(starts, made, strict=True):
        state = model.engine.initial_state(1)
        for chunk in lead:
            units = chunk.units if start == 0 else silence
            steps_there = voices[0].conditioning(Chunk(chunk.index, units))
            fed = grid.chunk - max(0, -grid.lead - chunk.index * grid.chunk)
            hop = model.geometry.conditioning_hop
            steps_there = steps_there[:, (grid.chunk - fed) // hop :]
            _, state = model.engine.score(steps_there, np.full((1, fed), 128, np.uint8), state)
        for index, piece in zip(range(start, start + steps), codes, strict=True):
            if index == len(chunks):
                break
            drawn = uniforms(5, lane=0, chunk=index, count=grid.chunk)
            conditioning = voices[0].conditioning(chunks[index])
            alone, state = model.engine.generate(conditioning, drawn[None], 1.0, state)
            np.testing.assert_array_equal(piece, alone[0])


def test_the_number_of_cores_changes_nothing(
    converter: Converter, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lanes_module, "_PIECE", 16)
    x = recording(20)
    made = []
    for cores in (1, 2, 3, 7):
        monkeypatch.setattr(lanes_module, "usable_cores", lambda cores=cores: cores)
        out = converter.convert(x, speaker=0, seed=1, sample_rate=16_000, lanes=4)
        made.append(out.audio.tobytes())
    assert len(set(made)) == 1
    other = converter.convert(x, speaker=0, seed=2, sample_rate=16_000, lanes=4)
    assert other.audio.tobytes() != made[0]


def test_one_lane_and_short_recordings_are_what_a_stream_gives(converter: Converter) -> None:
    x = recording(6.1)
    streamed = np.concatenate(list(converter.stream([x], speaker=0, sample_rate=16_000)))
    for lanes in (1, "auto"):
        made = converter.convert(x, speaker=0, sample_rate=16_000, lanes=lanes)
        assert made.lanes == 1
        np.testing.assert_array_equal(made.audio, streamed)


def test_auto_goes_by_the_length(monkeypatch: pytest.MonkeyPatch) -> None:
    converter = forgetful()
    for seconds, lanes in ((7.7, 1), (8.1, 2), (33, 8), (70, 8)):
        made = converter.convert(recording(seconds), speaker=0, sample_rate=16_000)
        assert made.lanes == lanes


def test_the_torchscript_engine_has_lanes_too() -> None:
    with vconv.load(exported(), engine="torchscript") as scripted:
        made = [
            scripted.convert(recording(6.5), speaker=0, sample_rate=16_000, lanes=2)
            for _ in range(2)
        ]
    assert made[0].lanes == 2
    assert len(made[0].audio) == 104_000
    assert made[0].audio.tobytes() == made[1].audio.tobytes()


# -- what is heard ---------------------------------------------------------------------------------


@dataclass
class Joined:
    """The bundled model in lanes that differ to the end, as they do in 8 bits."""

    roughest: np.ndarray
    """The largest distance of neighbouring frames around each seam."""
    around: np.ndarray
    """All of those distances."""
    elsewhere: np.ndarray
    dips: list[float]
    """The level of each crossfade over that of the quieter lane."""


def joined(join: Any) -> Joined:
    """24 s in 8 lanes, joined like this."""
    spoken, rate = soundfile.read(HELLO, dtype="float32")
    seams: list[int] = []
    dips: list[float] = []
    at = 0
    say = LaneSession._join

    def record(before: Any, after: Any, settled: int) -> Any:
        made = join(before, after, settled)
        shared = min(len(before), len(after))
        changed = made[:shared] != before[:shared]
        assert changed.any()
        assert not changed[:settled].any()
        place = int(changed.argmax())
        seams.append(at + place)
        lanes = (np.square(lane[place : place + FADE]).mean() for lane in (before, after))
        dips.append(np.sqrt(np.square(made[place : place + FADE]).mean() / min(lanes)))
        return made

    def track(self: LaneSession, codes: Any, length: int) -> Any:
        nonlocal at
        yield from say(self, codes, length)
        at += length

    x = np.tile(spoken, 6)[: 24 * rate]
    with vconv.load("demo", precision="int8") as converter, pytest.MonkeyPatch.context() as patch:
        patch.setattr(lanes_module, "crossfaded", record)
        patch.setattr(LaneSession, "_join", track)
        audio = converter.convert(x, speaker="slt", sample_rate=rate, lanes=8).audio
    assert at >= len(audio)
    assert len(seams) == 7
    distance = neighbour_distance(audio)
    near = [slice((seam - 400) // 160, (seam + FADE) // 160 + 1) for seam in seams]
    away = np.ones(len(distance), bool)
    for part in near:
        away[part] = False
    roughest = np.array([distance[part].max() for part in near])
    return Joined(roughest, distance[~away], distance[away], dips)


def test_seams_are_no_rougher_than_speech_is() -> None:
    """Neighbouring frames at seams against all others, and the level there."""
    made = joined(crossfaded)
    assert made.around.mean() <= made.elsewhere.mean()
    assert np.median(made.roughest) <= np.quantile(made.elsewhere, 0.95)
    assert min(made.dips) > 0.7


def test_cuts_through_vowels_would_be_rougher_than_speech_is() -> None:
    """Or the test above would hear nothing."""

    def cut(before: np.ndarray, after: np.ndarray, settled: int) -> np.ndarray:
        shared = min(len(before), len(after)) - FADE
        levels = np.convolve(np.square(before[settled:shared]), np.ones(FADE), "valid")
        at = settled + int(levels.argmax()) + FADE // 2
        return np.concatenate((before[:at], after[at:]))

    made = joined(cut)
    assert made.around.mean() > 1.1 * made.elsewhere.mean()


def neighbour_distance(audio: np.ndarray) -> np.ndarray:
    """Log-spectral distance in dB between neighbouring frames, 10 ms apart."""
    frames = np.lib.stride_tricks.sliding_window_view(audio, 400)[::160] * np.hanning(400)
    spectra = 10 * np.log10(np.abs(np.fft.rfft(frames, 512)) ** 2 + 1e-5)
    return np.asarray(np.sqrt(np.square(np.diff(spectra, axis=0)).mean(1)))


def test_equal_lanes_are_joined_to_the_bit() -> None:
    noise = np.random.default_rng(0).standard_normal((2, 8000)).astype(np.float32)
    before, after = noise[0], noise[1].copy()
    after[5000:] = before[5000:]
    made = crossfaded(before, after, 3200)
    np.testing.assert_array_equal(made, before)


def test_a_crossfade_of_independent_lanes_keeps_the_power() -> None:
    before, after = np.random.default_rng(0).standard_normal((2, 200, 8000)).astype(np.float32)
    made = np.stack([crossfaded(*pair, 8000 - FADE) for pair in zip(before, after, strict=True)])
    np.testing.assert_array_equal(made[:, : 8000 - FADE], before[:, : 8000 - FADE])
    power = np.square(made[:, 8000 - FADE :]).reshape(200, 8, -1).mean((0, 2))
    np.testing.assert_allclose(power, 1, atol=0.1)


def test_lanes_are_joined_where_they_differ_least_once_they_have_settled() -> None:
    before, after = np.random.default_rng(0).standard_normal((2, 9000)).astype(np.float32)
    for quiet in (slice(500, 1500), slice(6080, 6080 + FADE)):
        before[quiet] *= 0.01
        after[quiet] *= 0.01
    made = crossfaded(before, after, 3200)
    np.testing.assert_array_equal(made[:6080], before[:6080])
    np.testing.assert_array_equal(made[6080 + FADE :], after[6080 + FADE :])


@pytest.mark.parametrize("last", [True, False])
@pytest.mark.parametrize("lanes", [1, 2, 5, 16])
def test_cuts_lie_at_the_quietest_chunk_near_equal_distances(lanes: int, last: bool) -> None:
    random = np.random.default_rng(lanes)
    for length in (15 * lanes, 37 * lanes, 50 * lanes):
        quietest = random.random(length + 10).astype(np.float32)
        found = cuts(quietest, length, lanes, last=last)
        assert len(found) == lanes
        pieces = np.diff([0, *found])
        assert pieces.min() > 0.6 * length / lanes
        assert pieces.max() < 1.4 * length / lanes
        if last:
            assert found[-1] == length
        for cut in found[: lanes - last]:
            assert quietest[cut] == quietest[cut - 1 : cut + 2].min() or (
                quietest[cut] <= np.partition(quietest, 4 * len(quietest) // 5)[-1]
            )
    # In one silence, where they were wanted.
    assert cuts(np.zeros(60, np.float32), 40, 4, last=True) == [10, 20, 30, 40]
    lone = np.ones(60, np.float32)
    lone[22] = 0
    assert cuts(lone, 40, 2, last=True) == [22, 40]
    assert cuts(lone, 20, 1, last=False) == [22]


def test_lanes_are_shared_out_evenly_in_order() -> None:
    assert shared_out([1, 2, 3, 4, 5], 2) == [[1, 2], [3, 4, 5]]
    assert shared_out([1, 2], 8) == [[1], [2]]


# -- around them -----------------------------------------------------------------------------------


def test_silence_is_converted_in_lanes(
    converter: Converter, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, "vconv"):
        out = converter.convert(np.zeros(7 * 16_000), speaker=0, sample_rate=16_000, lanes=2)
    assert (len(out.audio), out.lanes) == (7 * 16_000, 2)
    assert np.isfinite(out.audio).all()
    assert [r.getMessage() for r in caplog.records] == ["<samples>: the recording is silent."]


@pytest.mark.parametrize("level", ["keep", "match", "peak"])
def test_a_file_is_written_as_it_is_returned(
    converter: Converter, tmp_path: Path, level: Any
) -> None:
    options: Any = {"speaker": 0, "sample_rate": 16_000, "lanes": 2, "level": level}
    x = recording(6.5)
    converter.convert(x, **options).save(tmp_path / "saved.flac")
    written = converter.convert_to_file(x, tmp_path / "written.flac", **options)
    assert written.lanes == 2
    assert (tmp_path / "written.flac").read_bytes() == (tmp_path / "saved.flac").read_bytes()


def test_memory_does_not_grow_with_the_recording(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lanes_module, "_PIECE", 16)
    converter = forgetful()

    def peak(seconds: int) -> int:
        source = tmp_path / f"{seconds}.wav"
        soundfile.write(source, recording(seconds), 16_000)
        tracemalloc.start()
        converter.convert_to_file(source, tmp_path / "x.wav", speaker=0, lanes=4)
        _, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return most

    peak(1)
    assert peak(90) < 1.2 * peak(30)


def test_cancelling_leaves_nothing_and_no_thread(tmp_path: Path) -> None:
    converter = vconv.load(exported(), engine="native")
    threads = threading.active_count()
    told = []

    def progress(done: float, total: float | None) -> bool:
        told.append((done, total))
        return done == 0

    with pytest.raises(vconv.Cancelled):
        converter.convert_to_file(
            recording(30),
            tmp_path / "x.wav",
            speaker=0,
            sample_rate=16_000,
            lanes=4,
            progress=progress,
        )
    assert list(tmp_path.iterdir()) == []
    assert threading.active_count() == threads
    assert told[-1][0] < 30


def test_progress_rises_to_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lanes_module, "_PIECE", 16)
    monkeypatch.setattr(lanes_module, "_TELL_SECONDS", 0.01)
    told: list[Any] = []
    forgetful().convert(
        recording(20.1),
        speaker=0,
        sample_rate=16_000,
        lanes=2,
        progress=lambda *a: told.append(a),
    )
    assert told == sorted(told)
    assert told[-1] == (20.1, 20.1)
    assert len({done for done, _ in told}) > 3


@pytest.mark.parametrize("lanes", [0, -1, 65, 2.5, "two", "", None])
def test_lanes_that_cannot_be_are_refused(converter: Converter, lanes: Any) -> None:
    with pytest.raises(vconv.UsageError, match="auto or 1 to 64, found"):
        converter.convert(recording(1), speaker=0, sample_rate=16_000, lanes=lanes)


def test_the_command_takes_lanes_and_tells_them(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    from vconv.cli import main

    soundfile.write(tmp_path / "x.wav", recording(7), 16_000)
    command = ["convert", str(tmp_path / "x.wav"), "-s", "ada", "-m", str(exported()), "-q"]
    with pytest.raises(SystemExit) as ended:
        main([*command, "--json", "--lanes", "2"])
    assert ended.value.code == 0
    assert json.loads(capfd.readouterr().out)["lanes"] == 2
    with pytest.raises(SystemExit) as ended:
        main([*command, "--lanes", "many", "--overwrite"])
    assert ended.value.code == 2
    assert "found 'many'" in capfd.readouterr().err
