"""Conversions made while a model trains: what is drawn, from whom to whom, and what is left."""

import json
import types
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.utils.tensorboard.writer import SummaryWriter

from networks import network
from tiny_model import MEMBERS, varied
from vconv.audio import MuLaw, decoder_codes
from vconv.errors import SetupError
from vconv.stream import uniforms
from vconv.train import samples
from vconv.train.batches import Excerpts, Noise
from vconv.train.conversion_figure import acoustics, conversion_png
from vconv.train.corpus import Corpus
from vconv.train.samples import SEED, Clip, choose, convert, take_samples
from voices import PITCHES, prepared

CPU = torch.device("cpu")


@pytest.fixture(scope="session")
def corpus(tmp_path_factory) -> Corpus:
    return Corpus.open(prepared(tmp_path_factory.mktemp("voices")))


def model_of(member: str = "vq"):
    from networks import CONFIG

    return varied(CONFIG, MEMBERS[member])


def clips_of(corpus: Corpus, count: int = 2, seconds: float = 0.2) -> list[Clip]:
    short = int(seconds * 16000)
    return [
        Clip(clip.utterance, clip.start, short - 100 * i, clip.source, clip.target)
        for i, clip in enumerate(choose(corpus)[:count])
    ]


@pytest.mark.parametrize("member", MEMBERS)
def test_every_code_is_the_one_that_its_uniform_draws_from_the_training_path(corpus, member):
    """The excerpt, its alignment and the logits as a training window has them (teacher forcing
    with the codes that were drawn), the inverse of the cumulative distribution by hand."""
    net, model = network(member, speakers=3), model_of(member)
    clips = clips_of(corpus)
    length = -(-max(clip.samples for clip in clips) // net.geometry.unit_hop)
    length *= net.geometry.unit_hop
    excerpts = Excerpts(corpus, model.audio, net.geometry, 640 * -(-length // 640))
    window, audio = excerpts.window, model.audio
    for lane, (clip, sample) in enumerate(
        zip(clips, convert(net, model, corpus, clips, CPU), strict=True)
    ):
        assert len(sample.result) == len(sample.source) == clip.samples
        wav = corpus.excerpt(clip.utterance, clip.start, clip.samples)
        np.testing.assert_array_equal(sample.source, wav)
        codes = decoder_codes(
            sample.result,
            mulaw=MuLaw(audio.levels),
            preemphasis=audio.preemphasis,
            gain=audio.gain,
        ).astype(np.int64)
        batch = excerpts.cut([(clip.utterance, clip.start)], [0], Noise())
        silence = np.full(excerpts.receptive_field, 128)
        inputs = np.pad(np.concatenate([silence, codes]), (0, window - len(codes)))
        speaker = torch.tensor([clip.target])
        with torch.no_grad():
            units = [net.encode(batch.wav).z, net.prosody(batch.wav, batch.speakers)]
            logits = net.decode(
                torch.cat(units, dim=1),
                net.speaker_vectors(speaker),
                torch.from_numpy(inputs[None, :-1]),
                net.decoder.wavenet.no_context(1),
                steps=excerpts.steps,
                wanted=window,
            )[0, : len(codes)]
        below = torch.softmax(logits.double(), dim=1).cumsum(1).numpy()
        below = np.pad(below, ((0, 0), (1, 0)))
        drawn = uniforms(SEED, lane=lane, chunk=0, count=len(codes))
        at = np.arange(len(codes))
        assert (below[at, codes] <= drawn + 1e-4).all()
        assert (below[at, codes + 1] >= drawn - 1e-4).all()
        assert len(np.unique(codes)) > 5


def test_some_say_it_as_another_one_as_itself_and_all_are_held_out(corpus):
    clips = choose(corpus)
    assert clips == choose(corpus)
    utterances = corpus.utterances
    assert all(utterances.heldout[clip.utterance] for clip in clips)
    assert all(utterances.speaker[clip.utterance] == clip.source for clip in clips)
    pairs = [(clip.source, clip.target) for clip in clips]
    assert sorted(pairs) == [(0, 1), (1, 2), (2, 0), (2, 2)]
    assert pairs[0] == (2, 2)
    assert all(clip.start == 4000 and clip.samples == 16000 for clip in clips)


def table(speakers: int, held: dict[int, list[float]]) -> Corpus:
    """A corpus of so many speakers, some with held-out utterances of so many seconds."""
    rows = [(who, seconds, True) for who, lengths in held.items() for seconds in lengths]
    rows += [(who, 2.0, False) for who in range(speakers)]
    return types.SimpleNamespace(  # type: ignore[return-value]
        sample_rate=16000,
        pad_samples=4000,
        speakers=range(speakers),
        utterances=types.SimpleNamespace(
            heldout=np.array([held for *_, held in rows]),
            speaker=np.array([who for who, *_ in rows]),
            length=np.array([int(seconds * 16000) + 8000 for _, seconds, _ in rows]),
        ),
    )


@pytest.mark.parametrize(
    ("speakers", "held", "pairs"),
    [
        (1, [0], [(0, 0)]),
        (2, [1], [(1, 1), (1, 0)]),
        (2, [0, 1], [(1, 1), (0, 1), (1, 0)]),
        (4, [0, 1, 2, 3], [(3, 3), (0, 1), (1, 2), (2, 0)]),
        (9, list(range(9)), [(6, 6), (0, 2), (2, 4), (4, 0)]),
        (5, [], []),
    ],
)
def test_a_corpus_of_any_size_has_its_conversions(speakers, held, pairs):
    clips = choose(table(speakers, {who: [1.0] for who in held}))
    assert [(clip.source, clip.target) for clip in clips] == pairs


def test_a_clip_lasts_three_seconds_at_most_and_nearly_so_where_it_can():
    (clip,) = choose(table(1, {0: [0.5, 3.4, 60.0]}))
    assert (clip.utterance, clip.samples) == (1, 48000)
    (clip,) = choose(table(1, {0: [0.5, 2.0]}))
    assert (clip.utterance, clip.samples) == (1, 32000)


@pytest.fixture
def short(monkeypatch):
    """One clip of a fifth of a second."""
    monkeypatch.setattr(samples, "SECONDS", 0.2)
    monkeypatch.setattr(samples, "choose", lambda corpus: choose(corpus)[1:2])


def take(corpus: Corpus, folder: Path, *, step: int = 20, seed: int = 0, speakers=3) -> Path:
    with SummaryWriter(str(folder / "tb")) as board:
        net = network(seed=seed, speakers=speakers)
        path = take_samples(net, model_of(), corpus, folder / "samples", step, board, CPU)
    assert path is not None
    return path


def test_the_same_weights_leave_the_same_bytes_and_others_replace_them(corpus, tmp_path, short):
    def contents(path: Path) -> dict[str, bytes]:
        return {file.name: file.read_bytes() for file in sorted(path.iterdir())}

    first = take(corpus, tmp_path / "a")
    assert first == tmp_path / "a" / "samples" / "step-000000020"
    again = take(corpus, tmp_path / "b")
    assert contents(first) == contents(again)
    assert len(contents(first)) == 3 + 1
    (first / "old").write_text("of an earlier attempt")
    take(corpus, tmp_path / "a", seed=1)
    assert contents(first).keys() == contents(again).keys()
    assert contents(first)["1-ada-to-bea.wav"] != contents(again)["1-ada-to-bea.wav"]
    assert contents(first)["1-ada-to-bea.source.wav"] == contents(again)["1-ada-to-bea.source.wav"]


def test_the_record_and_the_board_tell_of_every_conversion(corpus, tmp_path, short, monkeypatch):
    monkeypatch.setattr(samples, "choose", lambda corpus: choose(corpus)[:2])
    path = take(corpus, tmp_path)
    record = json.loads((path / "samples.json").read_text())
    assert record["step"] == 20
    names = ["1-cyd-to-cyd", "2-ada-to-bea"]
    assert len(record["conversions"]) == 2
    for name, row in zip(names, record["conversions"], strict=True):
        assert row["files"] == {"source": f"{name}.source.wav", "result": f"{name}.wav"}
        for which in ("source", "result"):
            wav, rate = soundfile.read(path / row["files"][which])
            assert rate == 16000
            assert row[which]["seconds"] == len(wav) / 16000 == 0.2
            level = 10 * np.log10((wav**2).mean())
            assert row[which]["level_db"] == pytest.approx(level, abs=0.02)
        assert (path / f"{name}.png").read_bytes().startswith(b"\x89PNG")
        assert row["utterance"].startswith(row["source"]["speaker"])
    assert [row["result"]["speaker"] for row in record["conversions"]] == ["cyd", "bea"]
    board = EventAccumulator(str(tmp_path / "tb"))
    board.Reload()
    assert set(board.Tags()["images"]) == {f"picture/{name}" for name in names}
    assert set(board.Tags()["audio"]) == {f"{w}/{n}" for w in ("source", "result") for n in names}


def test_a_failure_leaves_what_was_there_and_nothing_half_written(
    corpus, tmp_path, short, monkeypatch
):
    path = take(corpus, tmp_path)
    before = (path / "samples.json").read_bytes()
    killed = path.with_name(".step-000000010.partial")
    killed.mkdir()

    def full(*args: object) -> bytes:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("vconv.train.conversion_figure.conversion_png", full)
    with pytest.raises(SetupError, match=r"step-000000020: cannot be written .*No space left"):
        take(corpus, tmp_path, seed=1)
    assert [file.name for file in (tmp_path / "samples").iterdir()] == ["step-000000020"]
    assert (path / "samples.json").read_bytes() == before


def test_without_the_compiled_sampler_torch_draws_the_same_codes(corpus, monkeypatch):
    """But where a uniform falls within a rounding error of a boundary, rare in 400 samples."""
    net, model = network(speakers=3), model_of()
    clips = clips_of(corpus, 2, seconds=0.025)
    native = convert(net, model, corpus, clips, CPU)
    monkeypatch.setattr("vconv.engines.base._choose", lambda device: "torchscript")
    torch_made = convert(net, model, corpus, clips, CPU)
    for one, other in zip(native, torch_made, strict=True):
        np.testing.assert_array_equal(one.result, other.result)


def test_a_corpus_that_holds_nothing_out_has_no_samples(corpus, tmp_path, monkeypatch):
    monkeypatch.setattr(samples, "choose", lambda corpus: [])
    with SummaryWriter(str(tmp_path)) as board:
        assert (
            take_samples(network(speakers=3), model_of(), corpus, tmp_path, 1, board, CPU) is None
        )


def test_names_of_speakers_cannot_lead_out_of_the_folder():
    assert "/" not in samples._plain("../../etc/passwd")
    assert samples._plain("p 225") == "p_225"


def test_the_figures_of_a_known_sound_are_right():
    time = np.arange(32000) / 16000
    tone = sum(np.sin(2 * np.pi * 150 * k * time) / k for k in range(1, 6))
    wav = (0.1 * tone * (time < 1)).astype(np.float32)
    found = acoustics(wav)
    assert found.median_f0_hz == pytest.approx(150, rel=0.005)
    assert found.seconds == 2.0
    assert found.level_db == pytest.approx(10 * np.log10((wav.astype(np.float64) ** 2).mean()))
    # Frames lie 10 ms apart, each centred on its sample: half of them are voiced.
    assert found.mel.shape == (80, 201)
    assert len(found.f0_hz) == 201
    assert np.isfinite(found.f0_hz[5:95]).all()
    assert np.isnan(found.f0_hz[105:]).all()
    silent = acoustics(np.zeros(1600, np.float32))
    assert (silent.median_f0_hz, silent.level_db) == (None, -120.0)


def test_silence_and_a_name_beyond_the_font_can_be_drawn():
    silent = acoustics(np.zeros(1600, np.float32))
    assert conversion_png("$\u58f0$ to b", silent, silent).startswith(b"\x89PNG")


def test_pitches_of_the_voices_are_found_in_their_clips(corpus):
    for clip in choose(corpus):
        wav = corpus.excerpt(clip.utterance, clip.start, clip.samples)
        pitch = PITCHES[corpus.speakers.names[clip.source]]
        assert acoustics(wav).median_f0_hz == pytest.approx(pitch, rel=0.2)
