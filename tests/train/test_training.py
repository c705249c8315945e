"""The loop, its state and its checkpoints, on a corpus of synthetic tones."""

import json
import os
import shutil
import signal
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from networks import CONFIG as MODEL
from tiny_training import tiny_config
from vconv.config import Config
from vconv.errors import InputError, ModelError, UsageError
from vconv.geometry import Geometry
from vconv.train import checkpoint as checkpoints
from vconv.train import process
from vconv.train import run as runs
from vconv.train.batches import Excerpts, Noise, TrainingBatches, held_out
from vconv.train.corpus import Corpus
from vconv.train.loop import fit
from vconv.train.metrics import read_metrics
from vconv.train.noise import dither
from vconv.train.objective import backward, learning_rate
from vconv.train.running import Running
from vconv.train.state import build_state, refresh_norms
from vconv.train.step import start_bottleneck, train_step
from vconv.train.validate import bootstrap_interval, validate
from voices import prepared

CPU = torch.device("cpu")


@pytest.fixture(scope="session")
def corpus_path(tmp_path_factory) -> Path:
    return prepared(tmp_path_factory.mktemp("voices"))


def make_config(corpus: Path, **train: object) -> Config:
    return tiny_config(corpus, **{"log_every": 2, **train})


def parts(config: Config, device: torch.device = CPU):
    corpus = Corpus.open(config.data.corpus)
    state = build_state(config, corpus, device)
    excerpts = Excerpts(corpus, config.model.audio, state.model.geometry, config.data.window)
    batches = TrainingBatches(
        excerpts,
        batch=config.train.batch,
        seed=config.train.seed,
        noise=Noise(jitter=config.model.jitter),
        buffer_mb=None,
        buffer_fraction=1.0,
    )
    return state, excerpts, batches


def same(a: dict, b: dict) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_a_batch_depends_on_its_step_only(corpus_path):
    _, _, batches = parts(make_config(corpus_path))
    forwards = [batches.at(step) for step in (0, 1, 7)]
    _, _, again = parts(make_config(corpus_path))
    for step, expected in zip((7, 1, 0), reversed(forwards), strict=True):
        found = again.at(step)
        for name in ("wav", "codes", "speakers", "jitter"):
            assert torch.equal(getattr(found, name), getattr(expected, name))


def test_dither_depends_on_seed_and_sample_number_only_and_spares_the_encoder(corpus_path):
    config = make_config(corpus_path)
    state, plain, _ = parts(config)
    corpus = plain.corpus

    def dithered(numbers: list[int]):
        excerpts = Excerpts(corpus, MODEL.audio, state.model.geometry, 640, seed=7, dither_db=-60.0)
        return excerpts.cut([(0, 5000)] * len(numbers), numbers, Noise())

    clean = plain.cut([(0, 5000)], [3], Noise())
    both, alone = dithered([3, 9]), dithered([9])
    assert torch.equal(both.codes[1], alone.codes[0])
    assert not torch.equal(both.codes[0], both.codes[1])
    assert torch.equal(both.wav[:1], clean.wav)
    noise = dither(7, [3], 100_000, -60.0)
    assert noise.std() == pytest.approx(1e-3, rel=0.02)


def test_targets_are_the_codes_of_the_audio_at_the_predicted_position(corpus_path):
    """Codes decoded and de-emphasised give the window's own samples back."""
    state, excerpts, batches = parts(make_config(corpus_path))
    batch = batches.at(3)
    audio = MODEL.audio
    codes = batch.codes[0].numpy()
    signal = excerpts.mulaw.decode(codes).astype(np.float64) / audio.gain
    first = excerpts.left - excerpts.receptive_field
    wav = batch.wav[0].numpy()[first:].astype(np.float64)
    expected = (wav[1:] - audio.preemphasis * wav[:-1]).clip(-1 / audio.gain, 1 / audio.gain)
    np.testing.assert_allclose(signal[1:], expected[: len(signal) - 1], atol=0.02)
    assert batch.codes.shape[1] == excerpts.receptive_field + excerpts.window
    assert state.model.geometry.receptive_field == excerpts.receptive_field


def test_decoding_part_of_a_batch_at_a_time_gives_the_same_gradient(corpus_path):
    gradients = []
    for size, threads in ((None, 0), (1, 0), (3, 0), (1, 3)):
        config = make_config(corpus_path)
        state, excerpts, batches = parts(config)
        for name, parameter in state.model.named_parameters():
            torch.manual_seed(len(name))
            parameter.data.add_(0.05 * torch.randn_like(parameter))
        state.step = 4
        start_bottleneck(state, batches, config, CPU)
        pool = ThreadPoolExecutor(threads) if threads else None
        metrics = backward(
            state.model,
            batches.at(4),
            window=640,
            steps=excerpts.steps,
            decode_batch=size,
            pool=pool,
        )
        assert metrics["commitment"] > 0
        gradients.append({n: p.grad.clone() for n, p in state.model.named_parameters()})
    for other in gradients[1:]:
        for name, gradient in gradients[0].items():
            torch.testing.assert_close(other[name], gradient, rtol=1e-3, atol=1e-6, msg=name)
    assert same(gradients[1], gradients[3]), "the number of threads changes the gradient"


def test_the_gradient_is_that_of_the_loss_by_finite_differences(corpus_path):
    """Of weights on both sides of the bottleneck, before it quantises (so that it is smooth)."""
    config = make_config(corpus_path)
    state, excerpts, batches = parts(config)
    model, batch = state.model, batches.at(5)  # sound in every window: no ReLU at its edge

    def nll() -> float:
        model.zero_grad()
        figures = backward(model, batch, window=640, steps=excerpts.steps, decode_batch=2)
        return float(figures["nll"])

    for name in ("encoder.layers.2.conv.weight", "decoder.wavenet.layers.1.dilated.weight"):
        parameter = dict(model.named_parameters())[name]
        nll()
        gradient = parameter.grad.clone()
        direction = gradient / gradient.norm()
        step = 1e-2
        parameter.data.add_(direction, alpha=step)
        up = nll()
        parameter.data.add_(direction, alpha=-2 * step)
        down = nll()
        parameter.data.add_(direction, alpha=step)
        assert (up - down) / (2 * step) == pytest.approx(float(gradient.norm()), rel=0.05)


def first_losses(corpus: Path, device: torch.device, **train: object) -> list[float]:
    config = make_config(corpus, decode_batch=2, **train)
    state, _, batches = parts(config, device)
    losses = []
    for step in range(6):
        start_bottleneck(state, batches, config, device)
        losses.append(float(train_step(state, [batches.at(step).to(device)], config)["nll"]))
    return losses


def test_bf16_autocast_follows_fp32(corpus_path):
    fp32 = first_losses(corpus_path, CPU)
    bf16 = first_losses(corpus_path, CPU, precision="bf16")
    assert bf16 != fp32
    np.testing.assert_allclose(bf16, fp32, atol=0.1)


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_gpu_follows_the_cpu(corpus_path, precision):
    cuda = torch.device("cuda")
    found = first_losses(corpus_path, cuda, precision=precision, device="cuda")
    np.testing.assert_allclose(found, first_losses(corpus_path, CPU), atol=0.1)


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_a_stopped_and_resumed_run_ends_in_the_same_state(corpus_path, tmp_path, optimizer):
    config = make_config(corpus_path, steps=8, optimizer=optimizer)
    whole, _, batches = parts(config)
    fit(whole, batches, None, config, CPU, observe=lambda progress: True)

    first, _, batches = parts(config)
    fit(first, batches, None, config, CPU, observe=lambda progress: progress.step < 5)
    saved = checkpoints.save_checkpoint(
        tmp_path, first, config, ("ada", "bea", "cyd"), {"position": {"step": 5}}
    )
    second, _, batches = parts(config)
    checkpoints.Checkpoint.open(saved).restore(second)
    assert second.step == 5
    fit(second, batches, None, config, CPU, observe=lambda progress: True)

    assert same(whole.model.state_dict(), second.model.state_dict())
    assert same(whole.average.state_dict(), second.average.state_dict())
    for (name, a), b in zip(whole.model.named_parameters(), second.model.parameters(), strict=True):
        moments = whole.optimizer.state[a], second.optimizer.state[b]
        assert same(*moments), name


def test_training_learns_and_validation_does_not_change_the_run(corpus_path):
    config = make_config(corpus_path, steps=40, validate_every=10)
    with_validation, excerpts, batches = parts(config)
    losses = []

    def observe(progress):
        if "nll" in progress.figures:
            losses.append(progress.figures["nll"])
        return True

    heldout = held_out(excerpts, 6, 4)
    fit(with_validation, batches, heldout, config, CPU, observe=observe)
    assert losses[-1] < losses[0] - 0.5
    without, _, batches = parts(config)
    fit(without, batches, None, config, CPU, observe=lambda progress: True)
    assert same(with_validation.model.state_dict(), without.model.state_dict())


def test_validation_equals_scoring_the_windows_one_by_one(corpus_path):
    config = make_config(corpus_path)
    state, excerpts, batches = parts(config)
    for step in range(5):
        start_bottleneck(state, batches, config, CPU)
        train_step(state, [batches.at(step)], config)
    refresh_norms(state.average, batches, CPU)
    heldout = held_out(excerpts, 6, 4)
    result = validate(state.average, heldout, excerpts, CPU, autocast=False)
    assert len(result.true) == heldout.count == 6
    model = state.average
    wav = torch.cat([batch.wav for batch in heldout.batches])
    codes = torch.cat([batch.codes for batch in heldout.batches])
    speakers = torch.cat([batch.speakers for batch in heldout.batches])
    with torch.no_grad():
        for index in range(6):
            partner = int(heldout.partner[index])
            assert partner != index
            assert speakers[partner] == speakers[index]
            for source, expected in ((index, result.true), (partner, result.other_latents)):
                logits = model.decode(
                    model.encode(wav[source : source + 1]).z,
                    model.speaker_vectors(speakers[index : index + 1]),
                    codes[index : index + 1, :-1],
                    model.decoder.wavenet.no_context(1),
                    steps=excerpts.steps,
                    wanted=640,
                )
                nll = -logits.log_softmax(2)[0, torch.arange(640), codes[index, -640:]].mean()
                assert float(nll) == pytest.approx(expected[index], abs=1e-5)


def test_refreshed_norms_are_a_function_of_weights_and_batches_only(corpus_path):
    config = make_config(corpus_path)
    state, _, batches = parts(config)
    refresh_norms(state.average, batches, CPU)
    once = {name: t.clone() for name, t in state.average.state_dict().items()}
    refresh_norms(state.average, batches, CPU)
    assert same(once, state.average.state_dict())
    assert not any(module.training for module in state.average.modules())


def test_the_average_follows_the_formula(corpus_path):
    config = make_config(corpus_path, average=0.9)
    state, _, batches = parts(config)
    name = "decoder.wavenet.logits.weight"
    expected = state.model.state_dict()[name].clone().double()
    for step in range(3):
        train_step(state, [batches.at(step)], config)
        decay = min(0.9, (1 + state.step) / (10 + state.step))
        expected = decay * expected + (1 - decay) * state.model.state_dict()[name].double()
    torch.testing.assert_close(
        state.average.state_dict()[name].double(), expected, rtol=0, atol=1e-6
    )


def test_bootstrap_interval_is_that_of_the_normal_approximation():
    values = np.random.default_rng(0).normal(0.3, 1.0, 400)
    low, high = bootstrap_interval(values)
    error = values.std() / 20
    assert low == pytest.approx(values.mean() - 1.96 * error, abs=0.02)
    assert high == pytest.approx(values.mean() + 1.96 * error, abs=0.02)


@pytest.mark.parametrize(
    ("step", "expected"),
    [(0, 0.1), (9, 1.0), (49, 1.0), (50, 0.5), (90, 0.5), (95, 0.25), (99, 0.05), (100, 0.0)],
)
def test_learning_rate_is_warm_up_halvings_and_final_decay(step, expected):
    rate = learning_rate(step, base=1.0, warmup=10, halve_at=(50,), steps=100, final_decay=10)
    assert rate == pytest.approx(expected)


# The run as a command


@pytest.fixture
def config_file(corpus_path, tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "config.yaml"
    path.write_text(runs.dump_yaml(make_config(corpus_path)), "utf-8")
    return path


def test_a_run_leaves_its_files_and_goes_on_when_called_again(config_file, capfd):
    assert runs.train_command(config_file) == 0
    folder = Path("runs/test")
    kept = sorted(path.name for path in (folder / "checkpoints").iterdir())
    # keep_last 2 are 6 and 8; the best validated one is among 4 and 8.
    assert kept[-2:] == ["step-000000006", "step-000000008"]
    rows = read_metrics(folder / "metrics.jsonl")
    assert [row["step"] for row in rows] == [2, 4, 6, 8]
    assert {"probe_latents", "probe_speaker", "heldout_nll"} <= rows[-1].keys()
    assert list((folder / "tb").iterdir())
    assert runs.train_command(config_file, overrides=["train.steps=10"]) == 0
    assert "resuming runs/test at step 8" in capfd.readouterr().err
    assert [row["step"] for row in read_metrics(folder / "metrics.jsonl")] == [2, 4, 6, 8, 10]


def test_resuming_with_another_model_is_refused_by_name(config_file):
    runs.train_command(config_file, overrides=["train.steps=2"])
    with pytest.raises(UsageError, match=r"model\.encoder\.width was 12"):
        runs.train_command(config_file, overrides=["model.encoder.width=13"])


def test_resume_never_refuses_an_existing_run_and_resume_path_a_missing_one(config_file):
    runs.train_command(config_file, overrides=["train.steps=2"])
    with pytest.raises(UsageError, match="the run exists, at step 2"):
        runs.train_command(config_file, resume="never")
    with pytest.raises(UsageError, match="no whole checkpoint"):
        runs.train_command(config_file, run="other", resume="runs/nowhere")


def test_a_damaged_checkpoint_is_named_and_the_one_before_used(config_file, capfd):
    runs.train_command(config_file, overrides=["train.steps=4"])
    damaged = Path("runs/test/checkpoints/step-000000004/model.safetensors")
    content = bytearray(damaged.read_bytes())
    content[len(content) // 2] ^= 1
    damaged.write_bytes(content)
    with pytest.raises(ModelError, match=r"model\.safetensors is damaged"):
        checkpoints.Checkpoint.open(damaged.parent)
    assert runs.train_command(config_file, overrides=["train.steps=4"]) == 0
    err = capfd.readouterr().err
    assert "model.safetensors is damaged" in err
    assert "resuming runs/test at step 2" in err
    rows = read_metrics(Path("runs/test/metrics.jsonl"))
    assert [row["step"] for row in rows] == [2, 4]
    checkpoints.Checkpoint.open(damaged.parent)  # replaced by a whole one


def test_a_changed_header_is_found(config_file):
    runs.train_command(config_file, overrides=["train.steps=2"])
    header = Path("runs/test/checkpoints/step-000000002/checkpoint.json")
    header.write_text(header.read_text().replace('"samples_seen": 5120', '"samples_seen": 9'))
    with pytest.raises(ModelError, match="digest"):
        checkpoints.Checkpoint.open(header.parent)


def test_what_a_killed_process_left_half_written_is_swept_away(config_file):
    runs.train_command(config_file, overrides=["train.steps=2"])
    kept = Path("runs/test/checkpoints")
    shutil.copytree(kept / "step-000000002", kept / ".step-000000004.partial")
    runs.train_command(config_file, overrides=["train.steps=2"])
    assert sorted(path.name for path in kept.iterdir()) == ["step-000000002"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_saves_and_leaves_with_its_code(config_file, monkeypatch, capfd, number):
    original = Running.observe

    def observe(self, progress):
        if progress.step == 3:
            os.kill(os.getpid(), number)
        return original(self, progress)

    monkeypatch.setattr(Running, "observe", observe)
    assert runs.train_command(config_file) == 128 + number
    assert "run the same command again" in capfd.readouterr().err
    newest, _ = checkpoints.newest(Path("runs/test/checkpoints"))
    assert newest is not None
    assert newest.step == 3


def test_a_second_process_on_the_run_is_refused_naming_the_holder(config_file):
    Path("runs/test").mkdir(parents=True)
    with (
        process.lock(Path("runs/test")),
        pytest.raises(UsageError, match=f"under way there \\(process {os.getpid()}"),
    ):
        runs.train_command(config_file)


def test_another_corpus_is_refused_at_resume(config_file, corpus_path, tmp_path):
    runs.train_command(config_file, overrides=["train.steps=2"])
    other = tmp_path / "other"
    shutil.copytree(corpus_path, other)
    header = json.loads((other / "corpus.json").read_text())
    header["digest"] = "0" * 64
    (other / "corpus.json").write_text(json.dumps(header))
    with pytest.raises(InputError, match="not the corpus"):
        runs.train_command(config_file, overrides=[f"data.corpus={other}"])


def test_a_raw_folder_is_prepared_first(config_file, corpus_path, tmp_path):
    raw = tmp_path / "raw"
    for speaker in ("ada", "bea"):
        (raw / speaker).mkdir(parents=True)
        for index in range(3):
            noise = 0.1 * np.random.default_rng(index).standard_normal(16000)
            soundfile.write(raw / speaker / f"{index}.wav", noise, 16000)
    assert runs.train_command(config_file, overrides=[f"data.corpus={raw}", "train.steps=1"]) == 0
    assert Path("runs/test/corpus/corpus.json").exists()


def test_a_loss_that_is_not_finite_stops_the_run_naming_the_last_good_checkpoint(config_file):
    from vconv.errors import VconvError

    with pytest.raises(VconvError, match=r"the last good checkpoint is .*step-"):
        runs.train_command(
            config_file, overrides=["train.learning_rate=1e30", "train.checkpoint_every=1"]
        )


def test_a_missing_corpus_is_an_error_and_leaves_no_run(config_file):
    with pytest.raises(InputError, match="does not exist"):
        runs.train_command(config_file, overrides=["data.corpus=nowhere"])
    assert not Path("runs").exists()


def test_a_model_to_start_from_that_is_not_there_leaves_no_run(config_file):
    with pytest.raises(UsageError, match="no folder of a run with a checkpoint"):
        runs.train_command(config_file, run="new", overrides=["train.init_from=nothing"])
    assert not Path("runs/new").exists()


def test_smoke_test_runs_the_whole_path_in_a_run_of_its_own(config_file):
    assert runs.train_command(config_file, smoke_test=True) == 0
    assert Path("runs/test-smoke/checkpoints/step-000000020").is_dir()


@pytest.mark.parametrize("preset", ["tiny", "demo", "base", "paper"])
def test_presets_load_and_describe_a_buildable_geometry(preset):
    from vconv.config import load_config

    root = Path(__file__).resolve().parents[2]
    config = load_config(root / "configs" / f"{preset}.yaml")
    geometry = Geometry.of(**config.model.geometry)
    plan = geometry.plan(config.data.window, lead=geometry.lead_samples)
    assert plan.left < 8000, "more context than prepare's silence holds"
    assert plan.right - config.data.window < 8000


def test_what_may_change_the_last_bits_is_compared_when_a_run_goes_on():
    here = process.environment(CPU, 1)
    assert process.differences(here, here) == ""
    before = {**here, "torch": "2.10.0", "processes": 2}
    now = torch.__version__
    assert process.differences(before, here) == (
        f"torch 2.10.0 then and {now} now, processes 2 then and 1 now"
    )
    assert process.differences({"torch": now}, here) == "", "an old checkpoint says less"
