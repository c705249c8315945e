"""Takes: what a model says in the place of training recordings, and training on it."""

from __future__ import annotations

import dataclasses
import itertools
import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load, save

from networks import CONFIG as MODEL
from networks import network
from tiny_model import MEMBERS, varied
from tiny_training import parts, tiny_config
from vconv.audio import MuLaw, decoder_codes, decoder_samples
from vconv.config import Config, dump_yaml
from vconv.engines import create_engine
from vconv.errors import InputError, ModelError, UsageError
from vconv.nn.features import LogMel
from vconv.stream import uniforms
from vconv.train import takes as making
from vconv.train.batches import Batch, Excerpts, Noise, TrainingBatches
from vconv.train.corpus import Corpus
from vconv.train.run import train_command
from vconv.train.take_choice import BEFORE, STEP, Judge, periodicity
from vconv.train.take_file import read_takes, signal, takes_bytes
from vconv.train.take_windows import TakeWindows
from vconv.train.takes import MOST_CANDIDATES, choose, make_takes
from voices import prepared

RUN = Path("runs/test")
FEW = {"utterances": 1, "candidates": 3, "seconds": 0.2, "progress": False}


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    """A folder with a corpus, a run on it and a file of takes."""
    folder = tmp_path_factory.mktemp("takes")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        prepared(folder)
        train(tiny_config("corpus", steps=4, checkpoint_every=4, sample_every=0))
        make_takes(RUN, Path("a.takes"), **FEW)
    return folder


@pytest.fixture
def here(trained, tmp_path, monkeypatch) -> Path:
    """A copy of it to be changed, and the working directory."""
    for path in trained.iterdir():
        if path.is_dir():
            shutil.copytree(path, tmp_path / path.name)
        else:
            shutil.copy(path, tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def train(config: Config, run: str | None = None, **options: str) -> int:
    Path("config.yaml").write_text(dump_yaml(config))
    return train_command(Path("config.yaml"), run=run, **options)


def config_of(takes: str | None = "a.takes", share: float = 0.6, **train: object) -> Config:
    values = tiny_config("corpus", sample_every=0, **train).model_dump()
    values["data"] |= {"takes": takes, "takes_share": share}
    return Config.model_validate(values)


def batches_with(
    config: Config, share: float, file: Path = Path("a.takes")
) -> tuple[TrainingBatches, TakeWindows]:
    _, batches = parts(config)
    corpus, audio = batches.excerpts.corpus, config.model.audio
    takes = TakeWindows(
        corpus,
        read_takes(file, corpus, audio),
        audio,
        window=config.data.window,
        receptive_field=batches.excerpts.receptive_field,
        seed=config.train.seed,
        share=share,
    )
    batches.takes = takes
    return batches, takes


def same(a: Batch, b: Batch) -> bool:
    return all(
        torch.equal(getattr(a, field.name), getattr(b, field.name))
        for field in dataclasses.fields(Batch)
    )


def own_takes(corpus: Corpus, config: Config) -> bytes:
    """A file whose takes are the recordings' own codes, without noise."""
    audio = config.model.audio
    chosen = choose(corpus, 9)
    takes = []
    for utterance in chosen:
        speech = int(corpus.utterances.length[utterance]) - 2 * corpus.pad_samples
        wav = corpus.excerpt(utterance, corpus.pad_samples - 1, speech // STEP * STEP + 1)
        codes = decoder_codes(
            wav, mulaw=MuLaw(audio.levels), preemphasis=audio.preemphasis, gain=audio.gain
        )
        takes.append(codes[1:])
    return takes_bytes(takes, facts_of(corpus, config, chosen))


def facts_of(corpus: Corpus, config: Config, chosen: list[int]) -> dict[str, object]:
    return {
        "corpus": corpus.digest,
        "audio": signal(config.model.audio),
        "utterances": [corpus.utterances.ids[utterance] for utterance in chosen],
    }


def test_the_same_seed_gives_the_same_bytes_with_any_number_of_threads(here):
    first = Path("a.takes").read_bytes()
    for threads in (1, 3):
        make_takes(RUN, Path(f"{threads}.takes"), **FEW, threads=threads)
        assert Path(f"{threads}.takes").read_bytes() == first
    make_takes(RUN, Path("b.takes"), **FEW, seed=1)
    assert Path("b.takes").read_bytes() != first


def test_every_step_keeps_the_candidate_that_brute_force_finds_nearest(here):
    """Candidates drawn anew after the whole history, heard from the first sample on, the spectra
    one by one, and the correlations lag by lag."""
    checkpoint, _ = making._checkpoint(RUN)
    corpus, config = Corpus.open("corpus"), checkpoint.config
    audio, mulaw, mel = config.model.audio, MuLaw(config.model.audio.levels), LogMel()
    network = making._network(checkpoint, corpus)
    engine = making._engine(network, config.model)
    lead = network.geometry.lead_samples
    takes = read_takes(Path("a.takes"), corpus, audio)
    utterance, said = int(takes.utterances[1]), takes.codes[takes.ends[0] : takes.ends[1]]
    job = making._prepare(network, corpus, utterance, int(0.2 * 16000))
    assert len(said) == len(job.recording) == 5 * STEP

    def wav(codes):
        return decoder_samples(codes, mulaw=mulaw, preemphasis=audio.preemphasis, gain=audio.gain)[
            0
        ]

    def peak(sound):
        found = []
        for lag in range(32, 267):
            a, b = sound[:-lag].astype(float), sound[lag:].astype(float)
            found.append((a * b).sum() / np.sqrt((a * a).sum() * (b * b).sum() + 1e-6))
        return max(found)

    def bands(sound):
        power = mel.raw(torch.from_numpy(sound)[None]).exp().numpy()[0].astype(float)
        return np.log(power + 1e-2)

    kept = []
    for chunk in range(5):
        first = chunk * STEP
        history = np.concatenate([np.full(lead, 128, np.uint8), said[:first]])
        frames = len(history) // engine.hop
        _, state = engine.score(
            job.conditioning[None, : frames + 1], history[None], engine.initial_state(1)
        )
        told = job.conditioning[None, frames : frames + STEP // engine.hop + 1]
        truth = np.pad(job.recording, (BEFORE, 0))[first : first + BEFORE + STEP]
        scores, rows = [], []
        for n in range(3):
            drawn = uniforms(0, lane=utterance * MOST_CANDIDATES + n, chunk=chunk, count=STEP)
            codes, _ = engine.generate(told, drawn[None], 1.0, state)
            sound = np.pad(wav(np.concatenate([said[:first], codes[0]])), (BEFORE, 0))
            sound = sound[-BEFORE - STEP :]
            score = np.abs(bands(sound) - bands(truth)).mean()
            if np.sqrt((truth.astype(float) ** 2).mean()) > 0.005:
                score += 3 * abs(peak(sound) - peak(truth))
            scores.append(score)
            rows.append(codes[0])
        best = int(np.argmin(scores))
        kept.append(best)
        np.testing.assert_array_equal(said[first : first + STEP], rows[best])
    assert len(set(kept)) > 1, "always the same candidate tells nothing"


@pytest.mark.parametrize("member", MEMBERS)
def test_with_a_single_candidate_a_take_is_what_the_sampler_says_in_one_piece(member, here):
    """Whatever the rate of units and conditioning: frames, units or samples."""
    net, model = network(member, speakers=3), varied(MODEL, MEMBERS[member])
    corpus, engine = Corpus.open("corpus"), making._engine(net, model)
    (utterance,) = choose(corpus, 1)[:1]
    (take,) = making.speak(
        net,
        engine,
        model.audio,
        corpus,
        [utterance],
        candidates=1,
        samples=3 * STEP + 99,
        seed=5,
        threads=1,
        progress=False,
    )
    job, lead = making._prepare(net, corpus, utterance, 3 * STEP), net.geometry.lead_samples
    conditioning, steps = job.conditioning[None], lead // engine.hop
    shared = len(job.conditioning) - (lead + 3 * STEP) // engine.hop
    silence = np.full((1, lead), engine.levels // 2, np.uint8)
    _, state = engine.score(conditioning[:, : steps + shared], silence, engine.initial_state(1))
    drawn = [
        uniforms(5, lane=utterance * MOST_CANDIDATES, chunk=chunk, count=STEP) for chunk in range(3)
    ]
    codes, _ = engine.generate(conditioning[:, steps:], np.concatenate(drawn)[None], 1.0, state)
    np.testing.assert_array_equal(take.codes, codes[0])
    wav = corpus.excerpt(utterance, corpus.pad_samples, 3 * STEP)
    np.testing.assert_array_equal(job.recording, wav)


@pytest.mark.parametrize("member", ["vq", "pitch", "paper", "inverter"])
def test_a_take_is_spoken_to_the_conditioning_that_its_training_window_has(member, here):
    """The logits of its codes by the sampler, all along, and by teacher forcing of the window."""
    net, model = network(member, speakers=3), varied(MODEL, MEMBERS[member])
    corpus, decoder, geometry = Corpus.open("corpus"), model.decoder, net.geometry
    engine = create_engine(
        "auto",
        {name: t.numpy() for name, t in net.decoder.wavenet.state_dict().items()},
        blocks=decoder.blocks,
        layers=decoder.layers,
        kernel_size=decoder.kernel_size,
        hop=geometry.conditioning_hop,
    )
    excerpts = Excerpts(corpus, model.audio, geometry, 640)
    (utterance,) = choose(corpus, 1)[:1]
    first, field = 960, geometry.receptive_field
    said = np.random.default_rng(0).integers(0, 256, (1, 5 * STEP)).astype(np.uint8)
    job = making._prepare(net, corpus, utterance, 5 * STEP)
    silence = np.full((1, geometry.lead_samples), 128, np.uint8)
    logits, _ = engine.score(
        job.conditioning[None], np.concatenate([silence, said], axis=1), engine.initial_state(1)
    )
    where = [(utterance, corpus.pad_samples + first)]
    spoken = {0: said[0, first - field : first + 640]}
    batch = excerpts.cut(where, [0], Noise(), spoken)
    with torch.no_grad():
        units = [net.encode(batch.wav).z, net.prosody(batch.wav, batch.speakers)]
        found = net.decode(
            torch.cat(units, dim=1),
            net.speaker_vectors(batch.speakers),
            batch.codes[:, :-1],
            net.decoder.wavenet.no_context(1),
            steps=excerpts.steps,
            wanted=640,
        )
    begin = geometry.lead_samples + first
    np.testing.assert_allclose(logits[:, begin : begin + 640], found.numpy(), atol=2e-4)


def test_the_figures_say_that_what_was_kept_is_nearer_than_what_was_not(here):
    report = make_takes(RUN, Path("b.takes"), **FEW)
    assert report.mel[1] + 3 * report.voice[1] < report.mel[0] + 3 * report.voice[0]
    facts = read_takes(Path("b.takes"), Corpus.open("corpus"), config_of().model.audio).facts
    assert facts["figures"]["mel"] == {"candidates": report.mel[0], "chosen": report.mel[1]}
    assert facts["checkpoint"]["step"] == 4
    assert facts["candidates"], facts["seed"] == (3, 0)


def test_a_tone_is_periodic_and_noise_is_not_and_a_recording_is_no_distance_from_itself():
    time = np.arange(BEFORE + STEP) / 16000
    tone = np.sin(2 * np.pi * 160 * time)
    noise = np.random.default_rng(0).standard_normal(len(time))
    found = periodicity(np.stack([tone, noise, 0 * tone]))
    assert found[0] > 0.999
    assert found[1] < 0.3
    assert found[2] == 0
    scores = Judge()(np.stack([tone, noise]).astype(np.float32), tone.astype(np.float32))
    assert scores.total[0] == 0 < scores.total[1]
    assert scores.speech


def test_no_held_out_utterance_is_ever_spoken_and_every_speaker_speaks(here):
    corpus = Corpus.open("corpus")
    assert corpus.utterances.heldout.any()
    for count in (1, 2, 99):
        chosen = choose(corpus, count)
        assert not corpus.utterances.heldout[chosen].any()
        assert len(set(chosen)) == len(chosen)
        per_speaker = np.bincount(corpus.utterances.speaker[chosen], minlength=3)
        own = np.bincount(corpus.utterances.speaker[~corpus.utterances.heldout], minlength=3)
        np.testing.assert_array_equal(per_speaker, np.minimum(own, count))


def test_takes_that_are_the_recordings_own_codes_change_no_bit_of_a_batch(here):
    """So codes, recording, speaker and jitter belong together."""
    config = config_of()
    corpus = Corpus.open("corpus")
    Path("own.takes").write_bytes(own_takes(corpus, config))
    batches, takes = batches_with(config, 1.0, Path("own.takes"))
    for step in range(6):
        samples = range(4 * step, 4 * step + 4)
        where = [takes.locate(g)[:2] for g in samples]  # type: ignore[index]
        recorded = batches.excerpts.cut(where, samples, batches.noise)
        assert same(batches.at(step), recorded)


def test_a_window_of_a_take_has_its_codes_and_no_dither_and_the_others_are_as_without(here):
    config = config_of()
    batches, takes = batches_with(config, 0.5)
    batches.excerpts.dither_db = -40.0
    batches.batch = 32
    made = batches.at(3)
    batches.takes = None
    without = batches.at(3)
    found = [takes.locate(g) for g in range(96, 128)]
    assert 8 < sum(each is not None for each in found) < 24
    whole = takes.takes
    for place, each in enumerate(found):
        if each is None:
            assert torch.equal(made.codes[place], without.codes[place])
            assert torch.equal(made.wav[place], without.wav[place])
            continue
        utterance, start, codes = each
        assert len(codes) == batches.excerpts.receptive_field + 640
        np.testing.assert_array_equal(made.codes[place], codes)
        begin = int(([0, *whole.ends])[whole.utterances.tolist().index(utterance)])
        begin += start - batches.excerpts.receptive_field - batches.excerpts.corpus.pad_samples
        np.testing.assert_array_equal(codes, whole.codes[begin : begin + len(codes)])
    assert torch.equal(made.jitter, without.jitter)


def test_the_share_is_kept_to_and_every_place_is_as_likely(here):
    _, takes = batches_with(config_of(), 0.3)
    found = [takes.locate(g) for g in range(6000)]
    mine = [each for each in found if each is not None]
    assert abs(len(mine) / 6000 - 0.3) < 0.02
    corpus = Corpus.open("corpus")
    assert not corpus.utterances.heldout[[utterance for utterance, _, _ in mine]].any()
    counts = np.unique([utterance for utterance, _, _ in mine], return_counts=True)[1]
    assert len(counts) == 3  # equally long takes
    assert counts.max() - counts.min() < 0.15 * len(mine)
    starts = np.array([start for _, start, _ in mine]) - corpus.pad_samples
    assert starts.min() < 31 + 50
    assert starts.max() > 5 * STEP - 640 - 50
    np.testing.assert_allclose(starts.mean(), (31 + 5 * STEP - 640) / 2, atol=60)


def test_another_process_makes_the_same_batches_and_notices_another_file(here, monkeypatch):
    batches, _ = batches_with(config_of(), 0.5)
    sent = pickle.dumps(batches)
    assert len(sent) < 20_000, "the codes themselves were sent"
    (here / "elsewhere").mkdir()
    monkeypatch.chdir(here / "elsewhere")
    assert same(pickle.loads(sent).at(2), batches.at(2))
    monkeypatch.chdir(here)
    make_takes(RUN, Path("a.takes"), **FEW, seed=1, overwrite=True)
    with pytest.raises(InputError, match="made anew since it was opened"):
        pickle.loads(sent)


def test_a_run_on_takes_that_was_stopped_ends_in_the_very_bits_of_one_that_was_not(here, capfd):
    weights = "checkpoints/step-000000008/model.safetensors"
    assert train(config_of(steps=8), run="whole") == 0
    assert "60% of the windows are takes: 3 of the 3 in a.takes" in capfd.readouterr().err
    assert train(config_of(steps=4), run="halves") == 0
    shutil.move("a.takes", "moved.takes")
    assert train(config_of("moved.takes", steps=8), run="halves") == 0
    assert Path("runs/halves", weights).read_bytes() == Path("runs/whole", weights).read_bytes()
    assert train(config_of(None, steps=8), run="plain") == 0
    assert Path("runs/plain", weights).read_bytes() != Path("runs/whole", weights).read_bytes()
    rows = [
        [json.loads(line) for line in Path("runs", run, "metrics.jsonl").read_text().splitlines()]
        for run in ("whole", "plain")
    ]
    first = [next(row for row in each if "nll" in row)["nll"] for each in rows]
    assert first[0] != first[1]

    make_takes(RUN, Path("b.takes"), **FEW, seed=1)
    for run, takes, said in (
        ("whole", "b.takes", "on other takes"),
        ("whole", None, "none are given"),
        ("plain", "b.takes", "without takes"),
    ):
        with pytest.raises(InputError, match=said):
            train(config_of(takes, steps=10), run=run)
    with pytest.raises(UsageError, match=r"data\.takes_share was 0\.6"):
        train(config_of("moved.takes", share=0.5, steps=10), run="whole")


def rewritten(change: Callable[[dict[str, object]], None]) -> None:
    """a.takes with other facts and a digest that matches them."""
    tensors = load(Path("a.takes").read_bytes())
    facts = json.loads(tensors["facts"].tobytes())
    change(facts)
    ends = [0, *tensors["ends"].tolist()]
    takes = [tensors["codes"][a:b] for a, b in itertools.pairwise(ends)]
    facts.pop("digest")
    Path("a.takes").write_bytes(takes_bytes(takes, facts))


def flipped() -> None:
    data = bytearray(Path("a.takes").read_bytes())
    tensors = load(bytes(data))
    place = bytes(data).index(tensors["codes"].tobytes()[:200])
    data[place + 100] ^= 1
    Path("a.takes").write_bytes(data)


def held_out_ids() -> list[str]:
    utterances = Corpus.open("corpus").utterances
    return [utterances.ids[u] for u in np.flatnonzero(utterances.heldout)[:3]]


DAMAGE: dict[str, tuple[Callable[[], object], type[Exception], str]] = {
    "missing": (lambda: Path("a.takes").unlink(), InputError, "cannot be read"),
    "a folder": (
        lambda: (Path("a.takes").unlink(), Path("a.takes").mkdir()),
        InputError,
        "cannot be read",
    ),
    "cut short": (
        lambda: Path("a.takes").write_bytes(Path("a.takes").read_bytes()[:-9]),
        InputError,
        "not a whole safetensors file",
    ),
    "a flipped bit": (flipped, InputError, "its digest does not match"),
    "something else": (
        lambda: Path("a.takes").write_bytes(save({"codes": np.zeros(9, np.uint8)})),
        InputError,
        "holds no takes",
    ),
    "no JSON": (
        lambda: Path("a.takes").write_bytes(
            save(load(Path("a.takes").read_bytes()) | {"facts": np.zeros(9, np.uint8)})
        ),
        InputError,
        "its facts cannot be read",
    ),
    "another version": (
        lambda: rewritten(lambda facts: facts.update(version=2)),
        InputError,
        "of version 2",
    ),
    "another corpus": (
        lambda: rewritten(lambda facts: facts.update(corpus="0" * 64)),
        InputError,
        "of another corpus",
    ),
    "another signal": (
        lambda: rewritten(lambda facts: facts["audio"].update(gain=3.0)),
        UsageError,
        r"model\.audio\.gain 3\.0",
    ),
    "held out": (
        lambda: rewritten(lambda facts: facts.update(utterances=held_out_ids())),
        InputError,
        "held-out utterances",
    ),
    "an unknown utterance": (
        lambda: rewritten(lambda facts: facts.update(utterances=["x", "y", "z"])),
        InputError,
        "damaged",
    ),
    "too few utterances": (
        lambda: rewritten(lambda facts: facts.update(utterances=facts["utterances"][:2])),
        InputError,
        "damaged",
    ),
    "no corpus": (lambda: rewritten(lambda facts: facts.pop("corpus")), InputError, "damaged"),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_takes_that_cannot_be_used_are_refused_before_a_run_is_there(name, here):
    damage, kind, said = DAMAGE[name]
    damage()
    with pytest.raises(kind, match=said) as found:
        train(config_of(), run="new")
    assert "a.takes" in str(found.value)
    assert str(found.value).endswith(".")
    assert not Path("runs/new").exists()


def test_takes_shorter_than_a_window_are_left_out_and_none_left_is_refused(here):
    corpus, config = Corpus.open("corpus"), config_of()
    chosen = choose(corpus, 1)
    takes = [np.full(samples, 128, np.uint8) for samples in (STEP, 2 * STEP, 31 + 640)]
    Path("a.takes").write_bytes(takes_bytes(takes, facts_of(corpus, config, chosen)))
    _, windows = batches_with(config, 1.0)
    assert windows.used == 2
    assert {windows.locate(g)[0] for g in range(2000)} == set(chosen[1:])  # type: ignore[index]
    Path("a.takes").write_bytes(
        takes_bytes([take[:STEP] for take in takes], facts_of(corpus, config, chosen))
    )
    with pytest.raises(UsageError, match="no take is long enough: the longest has 640"):
        train(config, run="new")


@pytest.mark.parametrize("share", [0, 1.5, "half", float("nan")])
def test_a_share_that_is_none_is_refused(share, here):
    Path("config.yaml").write_text(dump_yaml(config_of()))
    with pytest.raises(UsageError, match="takes_share"):
        train_command(Path("config.yaml"), overrides=[f"data.takes_share={share}"])


def test_validation_never_uses_takes(here):
    """Its figures are those of a run without, before the first step has changed anything."""
    from vconv.train.batches import held_out

    config = config_of()
    batches, _ = batches_with(config, 1.0)
    _, plain = parts(config)
    with_takes, without = (held_out(each.excerpts, 6, 4) for each in (batches, plain))
    for a, b in zip(with_takes.batches, without.batches, strict=True):
        assert same(a, b)


@pytest.mark.parametrize("interruption", [KeyboardInterrupt, SystemExit])
def test_an_interruption_leaves_nothing_and_what_was_there_as_it_was(
    interruption, here, monkeypatch
):
    before = {path: path.read_bytes() for path in here.iterdir() if path.is_file()}
    speak, calls = making._take, []

    def struck(*arguments):
        calls.append(None)
        if len(calls) > 1:
            raise interruption
        return speak(*arguments)

    monkeypatch.setattr(making, "_take", struck)
    for output in ("a.takes", "new.takes"):
        calls.clear()
        with pytest.raises(interruption):
            make_takes(RUN, Path(output), **FEW, overwrite=True, threads=1)
        assert {path: path.read_bytes() for path in here.iterdir() if path.is_file()} == before


def test_the_command_writes_a_file_and_says_one_line(here, run):
    few = ("--utterances", 1, "--candidates", 2, "--seconds", 0.1)
    done = run("takes", RUN, "-o", "new.takes", *few)
    assert (done.code, done.out) == (0, "")
    assert done.err.startswith("new.takes: 3 takes of 3 speakers, 0.0 min, by runs/test/checkpo")
    assert len(done.err.splitlines()) == 1
    done = run("takes", RUN / "checkpoints/step-000000004", "-o", "b.takes", *few, "--json")
    assert json.loads(done.out)["takes"] == 3
    assert Path("b.takes").read_bytes() == Path("new.takes").read_bytes()
    shutil.move("corpus", "moved")
    done = run("takes", RUN, "-o", "c.takes", *few)
    assert done.code == 3
    assert "its corpus, corpus, is not there; name it with --corpus." in done.err
    assert run("takes", RUN, "-o", "c.takes", *few, "--corpus", "moved").code == 0
    assert Path("c.takes").read_bytes() == Path("new.takes").read_bytes()


@pytest.mark.parametrize(
    ("options", "code", "said"),
    [
        (("runs/none", "-o", "b.takes"), ModelError.exit_code, "there is no checkpoint"),
        ((RUN, "-o", "a.takes"), 2, "a.takes: exists; --overwrite replaces it."),
        ((RUN, "-o", "no/b.takes"), 2, "cannot be written"),
        ((RUN, "-o", "b.takes", "--candidates", 0), 2, "--candidates: allowed are 1 to 64"),
        ((RUN, "-o", "b.takes", "--utterances", 0), 2, "--utterances"),
        ((RUN, "-o", "b.takes", "--seconds", 0.01), 2, "--seconds"),
        ((RUN, "-o", "b.takes", "--seconds", "nan"), 2, "--seconds"),
        ((RUN, "-o", "b.takes", "--seed", -1), 2, "--seed"),
        ((RUN, "-o", "b.takes", "--corpus", "runs"), 3, "holds no corpus.json"),
    ],
)
def test_what_the_command_refuses_is_one_sentence_and_leaves_no_file(
    options, code, said, here, run
):
    before = sorted(here.rglob("*"))
    done = run("takes", *options)
    assert (done.code, done.out) == (code, "")
    assert said in done.err
    assert len(done.err.splitlines()) == 1
    assert sorted(here.rglob("*")) == before


def test_a_model_without_a_codebook_is_refused(here):
    config = config_of(None, steps=2).model_dump()
    config["model"]["bottleneck"]["warmup_steps"] = 9
    train(Config.model_validate(config), run="young")
    with pytest.raises(ModelError, match="has no codebook yet"):
        make_takes(Path("runs/young"), Path("b.takes"), **FEW)
