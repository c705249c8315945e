"""What validation and health tell of a run, against brute force and networks broken on purpose."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch

import tiny_training
from networks import CONFIG as MODEL
from networks import network as random_network
from tiny_model import MEMBERS, varied
from vconv.audio import decoder_codes
from vconv.config import Config
from vconv.train.activity import Activity
from vconv.train.batches import Excerpts, HeldOut, Noise, held_out
from vconv.train.corpus import Corpus
from vconv.train.findings import judge
from vconv.train.health import Updates, Watch
from vconv.train.loop import fit
from vconv.train.metrics import Diary, read_metrics
from vconv.train.plot import read_columns
from vconv.train.samples import Clip, convert
from vconv.train.state import refresh_norms
from vconv.train.validate import accuracy, validate
from voices import prepared

CPU = torch.device("cpu")


@pytest.fixture(scope="session")
def corpus_path(tmp_path_factory) -> Path:
    return prepared(tmp_path_factory.mktemp("voices"))


def make_config(corpus: Path | str, member: str = "vq", **train: object) -> Config:
    settings = {"steps": 8, "batch": 4, "learning_rate": 3e-3, "warmup": 2, "device": "cpu"}
    settings |= {"log_every": 10, "validate_every": 10_000}
    return Config.model_validate(
        {
            "name": "test",
            "model": varied(MODEL, MEMBERS[member]).model_dump(),
            "data": {"corpus": str(corpus), "window": 640},
            "train": settings | train,
        }
    )


def parts(config: Config, windows: int = 6):
    state, batches = tiny_training.parts(config)
    heldout = held_out(batches.excerpts, windows, config.train.batch)
    assert heldout is not None
    return state, batches.excerpts, batches, heldout


# -- validation ------------------------------------------------------------------------------------


def test_probability_and_error_are_those_of_a_sum_over_all_classes():
    random = np.random.default_rng(0)
    logits = random.normal(0, 2, (2, 5, 16))
    targets = random.integers(16, size=(2, 5))
    probability, error = accuracy(torch.from_numpy(logits), torch.from_numpy(targets))
    for item in range(2):
        right, off = 0.0, 0.0
        for t in range(5):
            weights = [math.exp(x) for x in logits[item, t]]
            right += weights[targets[item, t]] / sum(weights) / 5
            for q, weight in enumerate(weights):
                off += abs(q - int(targets[item, t])) * weight / sum(weights) / 5
        assert float(probability[item]) == pytest.approx(right, rel=1e-5)
        assert float(error[item]) == pytest.approx(off, rel=1e-5)


def test_held_out_figures_are_those_of_the_true_latents_and_speaker(corpus_path):
    """Mean log-probability, not probability, is the likelihood; the two must agree by Jensen, and
    a decoder without any knowledge has one in Q."""
    state, excerpts, _, heldout = parts(make_config(corpus_path))
    network = state.average
    result = validate(network, heldout, excerpts, CPU, autocast=False)
    figures = result.figures()
    assert len(result.probability) == len(result.mulaw_error) == heldout.count
    assert (result.probability >= np.exp(-result.true) - 1e-6).all()
    torch.nn.init.zeros_(network.decoder.wavenet.logits.weight)
    torch.nn.init.zeros_(network.decoder.wavenet.logits.bias)
    ignorant = validate(network, heldout, excerpts, CPU, autocast=False).figures()
    assert ignorant["heldout_probability"] == pytest.approx(1 / 256)
    codes = torch.cat([batch.codes[:, -640:] for batch in heldout.batches])
    off = (codes[..., None] - torch.arange(256)).abs().double().mean()
    assert ignorant["heldout_mulaw_error"] == pytest.approx(float(off), rel=1e-5)
    assert figures["heldout_probability"] != ignorant["heldout_probability"]


def test_kl_of_each_dimension_and_active_units_are_those_of_all_windows_together(corpus_path):
    state, excerpts, _, heldout = parts(make_config(corpus_path, "vae"))
    network = state.average
    project = network.bottleneck.project
    with torch.no_grad():  # of a dimension the mean is constant, of another the variance is 1
        project.weight[[0, 1, 7]] = 0
        project.bias[[0, 1, 7]] = torch.tensor([0.3, 2.0, 0.0])
        project.weight[2] *= 20
    result = validate(network, heldout, excerpts, CPU, autocast=False)
    with torch.no_grad():
        wav = torch.cat([batch.wav for batch in heldout.batches])
        mean, log_variance = project(network.encoder(network.features(wav))).chunk(2, dim=1)
    posterior = torch.distributions.Normal(mean, (0.5 * log_variance).exp())
    prior = torch.distributions.Normal(0.0, 1.0)
    kl = torch.distributions.kl_divergence(posterior, prior).mean((0, 2))
    np.testing.assert_allclose(result.kl, kl.numpy(), rtol=1e-4, atol=1e-6)
    assert result.kl[1] == pytest.approx(2.0, rel=1e-5)  # half the squared mean
    figures, vectors = result.figures(), result.vectors()
    assert vectors["heldout_kl_dimensions"] == result.kl.tolist()
    assert figures["heldout_kl"] == pytest.approx(result.kl.sum(), rel=1e-5)
    assert figures["heldout_kl_max"] == result.kl.max()
    variance = mean.numpy().transpose(1, 0, 2).reshape(6, -1).var(1)
    assert figures["heldout_active_dimensions"] == (variance > 0.01).sum() <= 4


def test_a_unit_that_tells_windows_apart_but_not_units_is_active(corpus_path):
    """Its variance within each batch is nothing: a mean over batches would miss it."""
    state, excerpts, _, heldout = parts(make_config(corpus_path, "vae", batch=1))
    network, calls = state.average, []

    def constant_within_a_batch(module, inputs, output):
        calls.append(len(calls))
        return torch.zeros_like(output) + float(len(calls))

    handle = network.bottleneck.project.register_forward_hook(constant_within_a_batch)
    figures = validate(network, heldout, excerpts, CPU, autocast=False).figures()
    handle.remove()
    assert len(calls) == 6
    assert figures["heldout_active_dimensions"] == 6


@pytest.mark.parametrize("member", ["vq", "ae", "inverter", "paper"])
def test_only_a_posterior_has_a_kl(corpus_path, member):
    state, excerpts, _, heldout = parts(make_config(corpus_path, member))
    result = validate(state.average, heldout, excerpts, CPU, autocast=False)
    assert result.vectors() == {}
    assert not [name for name in result.figures() if "kl" in name or "active" in name]


def test_killed_channels_are_counted_in_their_layer_and_no_other(corpus_path):
    state, excerpts, batches, heldout = parts(make_config(corpus_path))
    network = state.average
    wavenet = network.decoder.wavenet
    refresh_norms(network, batches, CPU)
    # All open: without a norm some ReLUs are not.
    last = network.decoder.conditioner.frames[1]
    last.weight.data.abs_().mul_(0.3)
    last.bias.data.abs_()
    wavenet.skip.bias.data += 5
    wavenet.hidden.bias.data += 5
    before = validate(network, heldout, excerpts, CPU, autocast=False).figures()
    layers = [name for name in before if name.startswith("dead_") and name[-1].isdigit()]
    assert len(layers) == 9 + 2 + 8 + 2
    assert not [name for name in layers if before[name] > 0]
    with torch.no_grad():
        norm = network.encoder.layers[8].norm  # y = -1 whatever comes
        norm.weight[:3], norm.bias[:3] = 0, -1
        last.bias[:4] = -1e3
        gated = wavenet.gated_layers[7]
        shut, stuck = 1, 2  # a gate that never opens; filter and gate that never move
        gated.condition.bias[10 + shut] = -1e3
        gated.dilated.weight[[stuck, 10 + stuck]] = 0
        gated.condition.weight[[stuck, 10 + stuck]] = 0
        wavenet.hidden.bias[:6] = -1e3
    after = validate(network, heldout, excerpts, CPU, autocast=False).figures()
    killed = {
        "dead_encoder_8": 3 / 12,
        "dead_conditioner_1": 4 / 9,
        "dead_gated_07": 2 / 10,
        "dead_output_1": 6 / 12,
        "dead_encoder": 3 / 12 / 9,
        "dead_conditioner": 4 / 9 / 2,
        "dead_gated": 2 / 10 / 8,
        "dead_output": 6 / 12 / 2,
    }
    for name in before:
        if name.startswith("dead_"):
            assert after[name] == pytest.approx(killed.get(name, 0.0)), name


def test_a_channel_that_is_open_once_in_the_whole_set_is_alive(corpus_path):
    state, _, batches, _ = parts(make_config(corpus_path))
    network = state.average
    activity, wav = Activity(network), batches.at(0).wav
    with torch.no_grad():
        norm = network.encoder.layers[0].norm
        norm.weight[0], norm.bias[0] = 0, -1
        with activity.watched():
            network.encode(wav)
            norm.bias[0] = 1
            network.encode(wav[:1])
            norm.bias[0] = -1
            network.encode(wav)
    assert not any(layer.dead() for layer in activity._layers if layer.name == "encoder_0")


@pytest.mark.parametrize("part", ["bottleneck", "decode"])
def test_no_hook_outlasts_a_validation_even_one_that_fails(corpus_path, monkeypatch, part):
    state, excerpts, _, heldout = parts(make_config(corpus_path, "vae"))
    network = state.average

    def hooks() -> int:
        return sum(len(module._forward_hooks) for module in network.modules())

    seen = []
    original = network.decode

    def decode(*args, **kwargs):
        seen.append(hooks())
        return original(*args, **kwargs)

    monkeypatch.setattr(network, "decode", decode)
    validate(network, heldout, excerpts, CPU, autocast=False)
    # Of the three passes over a batch, only the one with its own latents and speaker is watched.
    assert [count > 0 for count in seen] == [True, False, False] * len(heldout.batches)
    assert hooks() == 0

    def fails(*args, **kwargs):
        raise RuntimeError("broken")

    target = network if part == "decode" else network.bottleneck
    monkeypatch.setattr(target, "decode" if part == "decode" else "forward", fails)
    with pytest.raises(RuntimeError, match="broken"):
        validate(network, heldout, excerpts, CPU, autocast=False)
    assert hooks() == 0


def test_values_of_all_dimensions_are_one_list_in_the_log_and_no_curve(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    with Diary(tmp_path, 0) as diary:
        diary.write(10, {"nll": 3.0}, {"heldout_kl_dimensions": [0.123456789, 2.0]})
        diary.write(20, {"nll": 2.5})
    rows = read_metrics(tmp_path / "metrics.jsonl")
    assert rows[0] == {"step": 10, "nll": 3.0, "heldout_kl_dimensions": [0.1235, 2.0]}
    assert set(read_columns(tmp_path / "metrics.jsonl")) == {"step", "nll"}
    board = EventAccumulator(str(tmp_path / "tb"))
    board.Reload()
    assert board.Tags()["histograms"] == ["heldout_kl_dimensions"]
    assert board.Tags()["scalars"] == ["nll"]


# -- updates ---------------------------------------------------------------------------------------


def test_update_ratios_are_the_norms_of_the_changes_over_those_of_the_weights(corpus_path):
    state, _, _, _ = parts(make_config(corpus_path))
    model = state.model
    table = model.speakers.weight.detach().numpy().astype(np.float64)  # a copy
    updates = Updates(model)
    with torch.no_grad():
        for parameter in model.encoder.parameters():
            parameter.mul_(1.25)
        model.speakers.weight[0, 0] += 3.0
        model.bottleneck.codebook += 1  # a buffer: the optimiser has nothing to do with it
    updates.measure()
    figures = updates.figures
    expected = {"encoder": 0.25, "speakers": 3.0 / math.sqrt((table**2).sum())}
    assert figures.keys() == {
        f"update_{part}" for part in ("encoder", "bottleneck", "speakers", "conditioner", "wavenet")
    }
    for name, value in figures.items():
        assert value == pytest.approx(expected.get(name.removeprefix("update_"), 0.0)), name


def test_a_part_without_weights_has_no_ratio(corpus_path):
    state, _, _, _ = parts(make_config(corpus_path, "inverter"))
    updates = Updates(state.model)
    updates.measure()
    assert updates.figures.keys() == {
        "update_speakers",
        "update_conditioner",
        "update_wavenet",
    }


# -- findings --------------------------------------------------------------------------------------

# The bundled model's log: training likelihood, held-out likelihood, lower ends of the intervals of
# the probes, perplexity and share of codes in use at each validation. Dither came in after 5,000.
DEMO = [
    (1000, 3.350, 3.556, 0.234, 0.069, 115.9, 0.711),
    (2000, 3.314, 3.387, 0.313, 0.160, 169.1, 0.895),
    (3000, 3.140, 3.294, 0.392, 0.249, 167.7, 0.891),
    (4000, 3.059, 3.228, 0.444, 0.323, 173.5, 0.871),
    (5000, 3.087, 3.179, 0.477, 0.390, 181.7, 0.918),
    (6000, 3.418, 3.552, 0.460, 0.378, 179.8, 0.918),
    (7000, 3.332, 3.469, 0.494, 0.427, 179.0, 0.914),
    (8000, 3.340, 3.436, 0.524, 0.475, 185.1, 0.926),
    (9000, 3.266, 3.409, 0.570, 0.532, 184.8, 0.938),
    (10000, 3.292, 3.387, 0.627, 0.603, 184.4, 0.926),
]
PARTS = ("encoder", "bottleneck", "speakers", "conditioner", "wavenet")


def healthy(step: float = 10_000, **changes: float) -> dict[str, float]:
    """A logged and validated row of a run that is well, but for the changes."""
    row = {"nll": 3.2, "gradient_norm": 0.8, "clipped": 0.2, "data_wait": 0.01}
    row |= {"learning_rate": 1e-3, **{f"update_{part}": 2e-3 for part in PARTS}}
    row |= {"heldout_nll": 3.3, "heldout_perplexity": 180.0, "heldout_codes_used": 0.9}
    row |= {"heldout_active_dimensions": 40.0, "heldout_kl": 3.0, "dead_encoder_3": 0.1}
    for probe in ("latents", "speaker"):
        row |= {f"probe_{probe}": 0.3, f"probe_{probe}_low": 0.2, f"probe_{probe}_high": 0.4}
    return row | {"step": float(step)} | changes


def config_of(**train: object) -> Config:
    model = {"bottleneck": {"codebook_size": 256, "warmup_steps": 600}}
    return Config.model_validate({"model": model, "data": {"corpus": "c"}, "train": train})


def said(watch: Watch, rows: list[dict[str, float]]) -> list[list[str]]:
    return [watch(int(row["step"]), row) for row in rows]


def test_nothing_is_said_of_the_bundled_models_log():
    watch = Watch(config_of())
    for step, nll, heldout, latents, speaker, perplexity, used in DEMO:
        for early in (800, 600, 400, 200):
            figures = {"nll": nll + early * 1e-4, "gradient_norm": 1.2, "data_wait": 0.13}
            figures |= {"learning_rate": 1e-3} | {f"update_{part}": 5e-3 for part in PARTS}
            assert watch(step - early, figures) == []
        row = healthy(
            step,
            nll=nll,
            heldout_nll=heldout,
            probe_latents_low=latents,
            probe_speaker_low=speaker,
            heldout_perplexity=perplexity,
            heldout_codes_used=used,
            dead_conditioner_1=0.125,
        )
        assert watch(step, row) == []


def test_nothing_is_said_of_a_young_run():
    """Whose codebook has not started, whose decoder does not listen, and whose rate is tiny."""
    watch = Watch(config_of(warmup=1000))
    for step in range(50, 1150, 50):
        row = {name: x for name, x in healthy(step).items() if "perplexity" not in name}
        row |= {"probe_latents_low": -0.01, "probe_speaker_low": -0.01, "dead_encoder_3": 0.9}
        row |= {"learning_rate": 1e-6 * step, "gradient_norm": 30.0, "clipped": 1.0}
        row |= {f"update_{part}": 3e-6 * step for part in PARTS}
        assert watch(step, row if step <= 1000 else healthy(step)) == []


def test_nothing_is_said_when_the_learning_rate_has_decayed_to_nothing():
    watch = Watch(config_of())
    for step, rate in enumerate((1e-5, 1e-6, 1e-7, 1e-8, 1e-9, 0.0, 0.0), start=10_000):
        row = healthy(step, learning_rate=rate) | {f"update_{p}": 0.3 * rate for p in PARTS}
        assert watch(step, row) == []


BROKEN = {
    "codebook": (
        {"heldout_perplexity": 3.14, "heldout_codes_used": 6 / 256},
        ["6 of 256 codes", "perplexity 3.1", "warmup_steps"],
    ),
    "posterior": (
        {"heldout_active_dimensions": 0.0, "heldout_kl": 0.004},
        ["KL 0.004 nats a unit", "kl_weight", "free_bits"],
    ),
    "dead": (
        {"dead_encoder_2": 0.75, "dead_encoder_3": 1.0},
        ["100% of the channels of encoder_3 and 1 more layer", "learning_rate"],
    ),
    "probe_latents": (
        {"probe_latents": 0.0, "probe_latents_low": -0.001, "probe_latents_high": 0.001},
        ["ignores the units", "+0.0000 nats", "-0.0010 to +0.0010"],
    ),
    "probe_speaker": (
        {"probe_speaker": 0.0, "probe_speaker_low": 0.0, "probe_speaker_high": 0.0},
        ["ignores who speaks", "+0.0000 to +0.0000"],
    ),
    "data_wait": ({"data_wait": 0.62}, ["62% of the time", "data.workers (now 0)"]),
    "clipping": (
        {"clipped": 1.0, "gradient_norm": 40.0},
        ["100% of the steps", "mean norm 40, train.clip 1"],
    ),
    "update_wavenet": ({"update_wavenet": 0.3}, ["wavenet's weights by 30%", "learning_rate"]),
    "update_encoder": (
        {"update_encoder": 1e-5},
        ["the encoder hardly learns", "1.0e-05", "0.010 learning rates"],
    ),
}


@pytest.mark.parametrize("name", BROKEN)
def test_what_is_broken_is_said_once_with_its_figures_until_it_was_well_again(name):
    changes, fragments = BROKEN[name]
    watch = Watch(config_of())
    good = [healthy(9000 + 10 * i) for i in range(5)]
    bad = [healthy(9100 + 10 * i, **changes) for i in range(8)]
    assert said(watch, good) == [[]] * 5
    sentences = [line for lines in said(watch, bad) for line in lines]
    assert len(sentences) == 1
    for fragment in fragments:
        assert fragment in sentences[0]
    assert sentences[0].endswith(".")
    assert said(watch, good) == [[]] * 5
    assert [line for lines in said(watch, bad) for line in lines] == sentences


def test_a_log_line_between_validations_is_no_recovery():
    watch = Watch(config_of())
    changes, _ = BROKEN["codebook"]
    between = {"nll": 3.0, "data_wait": 0.0, "learning_rate": 1e-3}
    assert len(watch(9000, healthy(9000, **changes))) == 1
    assert watch(9050, between) == []
    assert watch(10_000, healthy(10_000, **changes)) == []


def test_overfitting_is_said_when_training_goes_on_and_held_out_turns():
    watch = Watch(config_of())
    heldout = [3.5, 3.3, 3.2, 3.21, 3.25, 3.3, 3.35, 3.4]
    rows = [healthy(1000 * i, nll=3.6 - 0.1 * i, heldout_nll=x) for i, x in enumerate(heldout, 5)]
    lines = said(watch, rows)
    assert [len(line) for line in lines] == [0, 0, 0, 0, 0, 0, 1, 0]
    assert "best at step 7,000 (3.200 nats a sample) and is 3.350 now" in lines[6][0]
    # The same with a task that has become harder for both.
    harder = [row | {"nll": 3.0 + 0.1 * i} for i, row in enumerate(rows)]
    assert said(Watch(config_of()), harder) == [[]] * 8


def test_probes_that_a_corpus_cannot_have_are_neither_measured_nor_judged(corpus_path):
    """One speaker, or one held-out utterance of each: the comparison would be with itself."""
    state, excerpts, _, heldout = parts(make_config(corpus_path))
    network = state.average

    def probed(data: HeldOut) -> set[str]:
        figures = validate(network, data, excerpts, CPU, autocast=False).figures()
        names = {name.split("_")[1] for name in figures if name.startswith("probe_")}
        verdicts = judge([], [{**figures, "step": 1e6}], config_of())
        assert {name.split("_")[1] for name in verdicts if name.startswith("probe_")} == names
        return names

    assert probed(heldout) == {"latents", "speaker"}
    assert probed(held_out_alone(heldout)) == {"speaker"}


def held_out_alone(heldout):
    """One utterance of each speaker: everyone's partner is itself."""
    return type(heldout)(heldout.batches, np.arange(heldout.count), heldout.count)


# -- networks broken on purpose --------------------------------------------------------------------


def scatter(state) -> None:
    """A codebook that starts far from all encodings, so that one code is the nearest to all."""
    bottleneck = state.model.bottleneck

    def start(vectors, *, seed, step):
        far = torch.randn(bottleneck.codebook.shape, generator=torch.Generator().manual_seed(0))
        bottleneck.codebook.copy_(1000 * far)
        bottleneck.ema_sum.copy_(bottleneck.codebook)
        bottleneck.ema_count.fill_(1)
        bottleneck.started.fill_(True)

    bottleneck.start = start


def test_a_real_run_whose_codebook_collapsed_is_said_to_have(corpus_path):
    """After a few steps, told as though they had been many."""
    config = make_config(corpus_path, steps=6)
    state, excerpts, batches, heldout = parts(config)
    scatter(state)
    fit(state, batches, None, config, CPU, observe=lambda progress: True)
    figures = validate(state.average, heldout, excerpts, CPU, autocast=False).figures()
    (line,) = [line for line in Watch(config)(500, figures) if "codebook" in line]
    assert "1 of 16 codes are used on held-out speech, perplexity 1.0" in line


def own_words(net, model, corpus: Corpus, excerpts: Excerpts) -> HeldOut:
    """Held-out windows whose targets the network itself has drawn under their units and speakers.

    Nothing predicts them better than that network with just these (Gibbs' inequality), so both
    probes are above zero if, and only if, it listens. The voices' own windows would not do: their
    middles are noise, of which units and speaker tell nothing.
    """
    utterances = corpus.utterances
    chosen = np.flatnonzero(utterances.heldout)
    speakers = [int(utterances.speaker[u]) for u in chosen]
    start, window = 5000, excerpts.window
    clips = [Clip(int(u), start, window, s, s) for u, s in zip(chosen, speakers, strict=True)]
    audio = model.audio
    said = [
        decoder_codes(
            sample.result,
            mulaw=excerpts.mulaw,
            preemphasis=audio.preemphasis,
            gain=audio.gain,
        ).astype(np.int64)
        for sample in convert(net, model, corpus, clips, CPU)
    ]
    batch = excerpts.cut([(int(u), start) for u in chosen], range(len(chosen)), Noise())
    batch.codes[:] = 128
    batch.codes[:, -window:] = torch.from_numpy(np.stack(said))
    partner = np.array([i + 1 if i % 2 == 0 else i - 1 for i in range(len(chosen))])
    return HeldOut([batch], partner, len(chosen))


def test_a_decoder_that_listens_is_not_called_deaf_and_is_once_its_conditioning_is_cut(corpus_path):
    config = make_config(corpus_path)
    corpus, net = Corpus.open(corpus_path), random_network(speakers=3)
    wavenet = net.decoder.wavenet
    with torch.no_grad():  # random weights hardly listen
        for layer in wavenet.gated_layers:
            layer.condition.weight.mul_(10)
        for linear, factor in ((wavenet.skip, 6), (wavenet.hidden, 3), (wavenet.logits, 6)):
            linear.weight.mul_(factor)
    excerpts = Excerpts(corpus, config.model.audio, net.geometry, 3200)
    heldout = own_words(net, config.model, corpus, excerpts)

    def deaf() -> list[str]:
        figures = validate(net, heldout, excerpts, CPU, autocast=False).figures()
        lines = Watch(config)(5000, figures)
        return [line.split(":")[0] for line in lines if "ignores" in line]

    assert deaf() == []
    with torch.no_grad():
        for layer in wavenet.gated_layers:
            layer.condition.weight.zero_()
    assert deaf() == ["the decoder ignores the units", "the decoder ignores who speaks"]


def test_a_log_is_valid_json(corpus_path, tmp_path):
    state, excerpts, _, heldout = parts(make_config(corpus_path, "vae"))
    result = validate(state.average, heldout, excerpts, CPU, autocast=False)
    with Diary(tmp_path, 0) as diary:
        diary.write(1, result.figures(), result.vectors())
    row = json.loads((tmp_path / "metrics.jsonl").read_text())
    assert len(row["heldout_kl_dimensions"]) == 6
