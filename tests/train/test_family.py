"""Every member of the family through the same loop, and what its parts must do there."""

from pathlib import Path

import numpy as np
import pytest
import torch

import tiny_training
from networks import CONFIG as MODEL
from tiny_model import MEMBERS, varied
from vconv.config import Config
from vconv.errors import InputError
from vconv.train import checkpoint as checkpoints
from vconv.train.batches import Batch, held_out
from vconv.train.corpus import Corpus
from vconv.train.loop import fit
from vconv.train.noise import normals
from vconv.train.objective import backward
from vconv.train.state import build_state, refresh_norms
from vconv.train.step import start_bottleneck, train_step
from vconv.train.validate import validate
from voices import PITCHES, prepared

CPU = torch.device("cpu")
FAMILY = pytest.mark.parametrize("member", MEMBERS)


@pytest.fixture(scope="session")
def corpus_path(tmp_path_factory) -> Path:
    return prepared(tmp_path_factory.mktemp("voices"))


def make_config(corpus: Path, member: str = "vq", *, data=None, **train: object) -> Config:
    model = varied(MODEL, MEMBERS[member])
    settings = {"steps": 8, "batch": 4, "learning_rate": 3e-3, "warmup": 2, "decode_batch": 2}
    return Config.model_validate(
        {
            "name": "test",
            "model": model.model_dump(),
            "data": {"corpus": str(corpus), "window": 640} | (data or {}),
            "train": settings | train,
        }
    )


def parts(config: Config):
    state, batches = tiny_training.parts(config)
    return state, batches.excerpts, batches


def same(a: dict, b: dict) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@FAMILY
def test_a_stopped_and_resumed_run_ends_in_the_same_state(corpus_path, tmp_path, member):
    config = make_config(corpus_path, member)
    whole, _, batches = parts(config)
    fit(whole, batches, None, config, CPU, observe=lambda progress: True)

    first, _, batches = parts(config)
    fit(first, batches, None, config, CPU, observe=lambda progress: progress.step < 5)
    saved = checkpoints.save_checkpoint(tmp_path, first, config, tuple(PITCHES), {})
    second, _, batches = parts(config)
    checkpoints.Checkpoint.open(saved).restore(second)
    fit(second, batches, None, config, CPU, observe=lambda progress: True)

    assert same(whole.model.state_dict(), second.model.state_dict())
    assert same(whole.average.state_dict(), second.average.state_dict())


@FAMILY
def test_the_loss_falls_and_validation_tells_what_the_units_are(corpus_path, member):
    config = make_config(corpus_path, member, steps=60)
    state, excerpts, batches = parts(config)
    losses = []
    while state.step < 60:
        start_bottleneck(state, batches, config, CPU)
        losses.append(float(train_step(state, [batches.at(state.step)], config)["nll"]))
    assert np.mean(losses[-5:]) < np.mean(losses[:5]) - 0.3
    refresh_norms(state.average, batches, CPU)
    heldout = held_out(excerpts, 6, 4)
    figures = validate(state.average, heldout, excerpts, CPU, autocast=False).figures()
    assert np.isfinite(list(figures.values())).all()
    assert ("heldout_codes_used" in figures) == (config.model.codes is not None)
    assert ("heldout_kl" in figures) == (config.model.bottleneck.kind == "vae")


def test_the_objective_of_several_draws_is_the_mean_over_single_ones(corpus_path):
    """Equation 7 of Kingma & Welling 2014, by brute force: loss and gradient."""
    config = make_config(corpus_path, "vae")
    config = config.model_copy(
        update={"model": varied(config.model, {"bottleneck": {"samples": 3}})}
    )
    state, excerpts, batches = parts(config)
    batch = batches.at(1)
    assert batch.noise.shape[:3] == (4, 3, 6)

    def gradients(noise: torch.Tensor):
        state.model.zero_grad()
        figures = backward(
            state.model,
            Batch(**{**vars(batch), "noise": noise}),
            window=640,
            steps=excerpts.steps,
            decode_batch=3,
        )
        return figures["nll"], {n: p.grad.clone() for n, p in state.model.named_parameters()}

    nll, found = gradients(batch.noise)
    singles = [gradients(batch.noise[:, draw : draw + 1]) for draw in range(3)]
    torch.testing.assert_close(nll, torch.stack([loss for loss, _ in singles]).mean())
    for name, gradient in found.items():
        mean = torch.stack([single[name] for _, single in singles]).mean(0)
        torch.testing.assert_close(gradient, mean, rtol=1e-3, atol=1e-6, msg=name)


def test_the_kl_is_weighed_by_the_step_the_loop_is_at(corpus_path):
    config = make_config(corpus_path, "vae")
    model = varied(config.model, {"bottleneck": {"kl_warmup": 100, "kl_weight": 1000.0}})
    config = config.model_copy(update={"model": model})
    state, excerpts, batches = parts(config)
    kls = {}
    for step in (0, 100):
        state.model.zero_grad()
        backward(
            state.model,
            batches.at(0),
            window=640,
            steps=excerpts.steps,
            decode_batch=None,
            step=step,
        )
        kls[step] = state.model.bottleneck.project.bias.grad.norm()
    assert kls[100] > 10 * kls[0]


def test_draws_depend_on_seed_and_sample_number_only():
    both, alone = normals(3, [5, 9], (2, 3, 4)), normals(3, [9], (2, 3, 4))
    assert np.array_equal(both[1], alone[0])
    assert not np.array_equal(both[0], both[1])
    many = normals(0, range(200), (1, 10, 10)).ravel()
    assert abs(many.mean()) < 0.03
    assert many.std() == pytest.approx(1, abs=0.02)
    assert normals(0, [1, 2], (0, 6, 7)).shape == (2, 0, 6, 7)


def test_augmentation_reaches_the_encoder_only(corpus_path):
    augment = {"gain_db": 6, "equaliser_db": 6, "noise_snr_db": 20, "pitch_semitones": 3}
    plain = parts(make_config(corpus_path))[2].at(2)
    config = make_config(corpus_path, data={"augment": augment | {"formant": 0.2}})
    state, excerpts, batches = parts(config)
    augmented = batches.at(2)
    assert not torch.equal(augmented.wav, plain.wav)
    for name in ("clean", "codes", "speakers", "jitter"):
        assert torch.equal(getattr(augmented, name), getattr(plain, name)), name
    assert torch.equal(batches.at(2).wav, augmented.wav)
    for batch in held_out(excerpts, 6, 4).batches:
        assert torch.equal(batch.wav, batch.clean)
    assert torch.isfinite(train_step(state, [augmented], config)["nll"])


def test_each_speakers_mean_pitch_is_measured_on_the_corpus(corpus_path):
    state, *_ = parts(make_config(corpus_path, "pitch"))
    found = 2**state.model.pitch.speaker_means
    np.testing.assert_allclose(found, list(PITCHES.values()), rtol=0.03)
    assert torch.equal(state.average.pitch.speaker_means, state.model.pitch.speaker_means)


def test_a_corpus_without_the_features_statistics_says_so(corpus_path):
    corpus = Corpus.open(corpus_path)
    del corpus.statistics["mfcc39"]
    with pytest.raises(InputError, match=r"no statistics of mfcc39 features.*prepare"):
        build_state(make_config(corpus_path, "paper"), corpus, CPU)
