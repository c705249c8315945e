"""Starting from another model's weights: what is taken over, what starts fresh, and who says so."""

import copy
import functools
import itertools
import json
import shutil
from pathlib import Path

import pytest
import torch

import tiny_model
from networks import CONFIG as MODEL
from networks import speech
from vconv.config import Config, ModelConfig
from vconv.errors import ModelError, UsageError
from vconv.nn.autoencoder import Autoencoder, build_autoencoder
from vconv.train.checkpoint import save_checkpoint
from vconv.train.inherit import Inheritance, Source, find_source, inherit
from vconv.train.state import TrainState

OLD = ("ada", "bea", "cyd")
NEW = ("cyd", "ann", "ada", "bob")  # two of the old ones, in other places


def variant(**changes: object) -> ModelConfig:
    """The small model with other values: ``encoder__width=14``."""
    values = MODEL.model_dump()
    for key, value in changes.items():
        *section, last = key.split("__")
        (values[section[0]] if section else values)[last] = value
    return ModelConfig.model_validate(values)


def random_network(config: ModelConfig, speakers: int, seed: int) -> Autoencoder:
    """Every tensor of the state random: nothing that is left out can pass for copied."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = build_autoencoder(config, speakers)
        for name, tensor in model.state_dict().items():
            if not tensor.is_floating_point():
                tensor.fill_(1)
            elif name.endswith((".std", "running_var", "ema_count")):
                tensor.uniform_(0.5, 1.5)
            elif not name.startswith("bottleneck.") or config.bottleneck.kind != "fsq":
                tensor.copy_(0.3 * torch.randn_like(tensor))
    return model


def source_of(config: ModelConfig = MODEL, seed: int = 1) -> Source:
    tensors = random_network(config, len(OLD), seed).state_dict()
    return Source(Path("runs/old"), config, OLD, tensors, step=400, digest="ab" * 32)


def fresh_state(config: ModelConfig = MODEL, speakers: tuple[str, ...] = NEW) -> TrainState:
    """As ``build_state`` makes it, with statistics as if of a corpus."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(2)
        model = build_autoencoder(config, len(speakers)).train()
        model.features.mean.normal_()
        if model.pitch is not None:
            model.pitch.speaker_means.normal_(7)
    average = copy.deepcopy(model).eval().requires_grad_(False)
    return TrainState(model, average, torch.optim.AdamW(model.parameters()), step=0)


def config_of(model: ModelConfig) -> Config:
    return Config.model_validate({"model": model.model_dump(), "data": {"corpus": "corpora/new"}})


def start(
    before: ModelConfig, now: ModelConfig, speakers: tuple[str, ...] = NEW
) -> tuple[Source, TrainState, Inheritance]:
    source, state = source_of(before), fresh_state(now, speakers)
    return source, state, inherit(state, source, config_of(now), speakers)


def taken(inheritance: Inheritance) -> set[str]:
    return {name for names in inheritance.to_json()["taken"].values() for name in names}


def fresh(inheritance: Inheritance) -> dict[str, str]:
    """Reasons by part."""
    return {name: part["reason"] for name, part in inheritance.to_json()["fresh"].items()}


def logits(model: Autoencoder, speaker: int) -> torch.Tensor:
    geometry = model.geometry
    plan = geometry.plan(640, lead=geometry.lead_samples)
    length = geometry.receptive_field + 639
    codes = torch.randint(256, (1, length), generator=torch.Generator().manual_seed(0))
    wav = speech(1, plan.wav_length)
    speakers = torch.tensor([speaker])
    with torch.no_grad():
        units = torch.cat([model.encode(wav).z, model.prosody(wav, speakers)], dim=1)
        return model.decode(
            units,
            model.speaker_vectors(speakers),
            codes,
            model.decoder.wavenet.no_context(1),
            steps=slice(plan.skip, plan.skip + plan.steps),
            wanted=640,
        )


def test_with_everything_taken_over_the_kept_speakers_get_the_very_same_logits():
    source, state, _ = start(MODEL, MODEL)
    old = build_autoencoder(MODEL, len(OLD)).eval()
    old.load_state_dict(source.tensors)
    for name in ("ada", "cyd"):
        found = logits(state.average, NEW.index(name))
        assert torch.equal(found, logits(old, OLD.index(name)))
    assert not torch.equal(found, logits(old, OLD.index("bea")))


VARIANTS = {
    "as it was": variant(),
    "wider": variant(encoder__width=14),
    "instance norm": variant(encoder__instance_norm=31),
    "mfcc": variant(features__kind="mfcc39"),
    "ae": variant(bottleneck__kind="ae"),
    "ae of 2": variant(bottleneck__kind="ae", bottleneck__dim=2),
    "vae": variant(bottleneck__kind="vae"),
    "vae of 3": variant(bottleneck__kind="vae", bottleneck__dim=3),
    "fsq": variant(bottleneck__kind="fsq", bottleneck__levels=(5, 4)),
    "fsq in another order": variant(bottleneck__kind="fsq", bottleneck__levels=(4, 5)),
    "more codes": variant(bottleneck__codebook_size=20),
    "codes by gradient": variant(bottleneck__update="gradient"),
    "transposed": variant(decoder__upsampling="transposed"),
    "pitch": variant(decoder__pitch=True),
    "other dilations": variant(decoder__blocks=4, decoder__layers=2),
    "three taps": variant(decoder__kernel_size=3),
    "skip": variant(decoder__skip_channels=11),
    "gate": variant(decoder__gate_channels=8),
    "levels": variant(audio__levels=64),
    "conditioning": variant(decoder__conditioning_channels=8),
    "speaker": variant(decoder__speaker_dim=4),
    "inverter": variant(kind="inverter"),
    "inverter of mfcc": variant(kind="inverter", features__kind="mfcc39"),
    "inverter, transposed": variant(kind="inverter", decoder__upsampling="transposed"),
}


BOTTLENECKS = list(VARIANTS)[4:12]
INVERTERS = list(VARIANTS)[-3:]
PAIRS = [
    *(("as it was", name) for name in VARIANTS),
    *((name, "as it was") for name in VARIANTS),
    *itertools.permutations(BOTTLENECKS, 2),
    *itertools.permutations(INVERTERS, 2),
]


@functools.cache
def prepared(name: str) -> tuple[Source, TrainState, dict[str, torch.Tensor]]:
    """Made once for all pairs: a source, a state to start, and what the state begins as."""
    state = fresh_state(VARIANTS[name])
    return source_of(VARIANTS[name]), state, copy.deepcopy(state.model.state_dict())


@pytest.mark.parametrize(("before", "now"), PAIRS)
def test_every_tensor_is_the_sources_or_fresh_and_the_record_says_which(before, now):
    """So the keys that decide are complete: no other has a say in what the tensors' shapes are."""
    source, _, _ = prepared(before)
    _, state, untouched = prepared(now)
    state.model.load_state_dict(untouched)
    inheritance = inherit(state, source, config_of(VARIANTS[now]), NEW)
    record = inheritance.to_json()
    own, copied = state.model.state_dict(), taken(inheritance)
    left = {name for part in record["fresh"].values() for name in part["tensors"]}
    assert not copied & left
    assert copied | left == own.keys() - {"pitch.speaker_means"}
    for name in own.keys() - {"speakers.weight"}:
        expected = source.tensors[name] if name in copied else untouched[name]
        assert torch.equal(own[name], expected), name
    for name, tensor in state.average.state_dict().items():
        assert torch.equal(tensor, own[name]), name
    json.dumps(record, allow_nan=False)


def test_optimiser_and_step_start_fresh_and_the_average_is_a_copy():
    _, state, _ = start(MODEL, MODEL)
    assert state.step == 0
    assert not state.optimizer.state
    optimised = {id(p) for group in state.optimizer.param_groups for p in group["params"]}
    assert optimised == {id(p) for p in state.model.parameters()}
    shared = {p.data_ptr() for p in state.model.parameters()}
    assert not shared & {p.data_ptr() for p in state.average.parameters()}


@pytest.mark.parametrize("upsampling", ["linear", "transposed"])
def test_an_autoencoder_takes_an_inverters_decoder_but_for_what_reads_the_units(upsampling):
    before = variant(kind="inverter", decoder__upsampling=upsampling)
    _, state, inheritance = start(before, variant(decoder__upsampling=upsampling))
    own = state.model.state_dict().keys()
    decoder = {n for n in own if n.startswith("decoder.") and ".mix." not in n}
    assert taken(inheritance) == decoder | {"speakers.weight"}
    assert set(fresh(inheritance).values()) == {"kind was inverter, is autoencoder"}


def test_an_inverters_mix_is_not_taken_for_one_of_latents_that_happen_to_be_as_wide():
    _, _, inheritance = start(variant(kind="inverter"), variant(bottleneck__dim=80))
    assert "decoder.conditioner.mix" in fresh(inheritance)


def test_between_inverters_the_statistics_go_with_the_layer_that_reads_the_features():
    inverter = variant(kind="inverter")
    assert "features.mean" in taken(start(inverter, inverter)[2])
    narrower = variant(kind="inverter", decoder__conditioning_channels=8)
    assert "features.mean" not in taken(start(inverter, narrower)[2])


def test_switching_the_codebook_on_keeps_the_latents_as_they_were():
    before = variant(bottleneck__kind="ae")
    source, state, inheritance = start(before, MODEL)
    old = build_autoencoder(before, len(OLD)).eval()
    old.load_state_dict(source.tensors)
    wav = speech(1, 8000)
    with torch.no_grad():
        assert torch.equal(state.average.latents(wav), old.latents(wav))
    assert fresh(inheritance) == {"bottleneck.codebook": "bottleneck.kind was ae, is vq"}
    assert not state.model.bottleneck.started
    assert state.model.bottleneck.vectors_wanted(MODEL.bottleneck.warmup_steps) > 0


@pytest.mark.parametrize(
    ("before", "now", "reason"),
    [
        ("vae", "as it was", "bottleneck.kind was vae, is vq"),
        ("vae of 3", "as it was", "bottleneck.kind was vae, is vq"),
        ("ae of 2", "as it was", "latent width was 2, is 6"),
        ("as it was", "vae", "bottleneck.kind was vq, is vae"),
    ],
)
def test_another_bottleneck_starts_fresh_behind_the_encoder_that_is_kept(before, now, reason):
    """Even a vae of 3, whose projection has the shape of a vq's of 6."""
    _, _, inheritance = start(VARIANTS[before], VARIANTS[now])
    assert fresh(inheritance)["bottleneck"] == reason
    assert {"features", "encoder"} <= inheritance.to_json()["taken"].keys()


@pytest.mark.parametrize(
    ("before", "now", "reason"),
    [
        ("as it was", "more codes", "bottleneck.codebook_size was 16, is 20"),
        ("codes by gradient", "as it was", "bottleneck.update was gradient, is ema"),
        ("fsq", "fsq in another order", "bottleneck.levels was [5, 4], is [4, 5]"),
        ("ae of 2", "fsq", "bottleneck.kind was ae, is fsq"),
    ],
)
def test_another_codebook_starts_fresh_behind_the_projection_that_is_kept(before, now, reason):
    """Sums that a gradient's codebook lacks would pull it to zero; levels in another order have
    tables of the same shape."""
    _, _, inheritance = start(VARIANTS[before], VARIANTS[now])
    assert fresh(inheritance)["bottleneck.codebook"] == reason
    assert "bottleneck.project.weight" in taken(inheritance)


def test_a_codebook_that_has_not_started_is_not_said_to_be_taken_over():
    source = source_of()
    source.tensors["bottleneck.started"].fill_(False)
    inheritance = inherit(fresh_state(), source, config_of(MODEL), NEW)
    assert fresh(inheritance) == {"bottleneck.codebook": "the source has none yet"}


@pytest.mark.parametrize(
    ("now", "reason"),
    [
        ("wider", "encoder.width was 12, is 14"),
        ("instance norm", "encoder.instance_norm was null, is 31"),
        ("mfcc", "features.kind was logmel80, is mfcc39"),
    ],
)
def test_an_encoder_of_which_a_part_does_not_fit_starts_fresh_with_all_that_belongs_to_it(
    now, reason
):
    _, _, inheritance = start(MODEL, VARIANTS[now])
    together = ("features", "encoder", "bottleneck", "bottleneck.codebook")
    assert fresh(inheritance) == dict.fromkeys(together, reason)
    assert f"starts fresh: {', '.join(together)} ({reason})" in inheritance.report()


@pytest.mark.parametrize(
    "now", ["other dilations", "three taps", "skip", "gate", "levels"], ids=lambda n: n
)
def test_a_wavenet_is_taken_whole_or_not_at_all(now):
    _, _, inheritance = start(MODEL, VARIANTS[now])
    assert {"decoder.wavenet", "decoder.wavenet.condition"} == fresh(inheritance).keys()
    assert not [name for name in taken(inheritance) if name.startswith("decoder.wavenet.")]


def test_other_dilations_are_noticed_though_every_shape_is_the_same():
    _, _, inheritance = start(MODEL, VARIANTS["other dilations"])
    assert (
        fresh(inheritance)["decoder.wavenet"]
        == "decoder.blocks was 2, is 4; decoder.layers was 4, is 2"
    )


def test_with_another_conditioning_only_its_projections_in_the_wavenet_start_fresh():
    _, state, inheritance = start(MODEL, VARIANTS["conditioning"])
    wavenet = {name for name in state.model.state_dict() if name.startswith("decoder.wavenet.")}
    weights = {name for name in wavenet if name.endswith("condition.weight")}
    assert len(weights) == 8
    assert taken(inheritance) & wavenet == wavenet - weights


def test_speakers_are_matched_by_name_and_new_ones_begin_close_to_the_mean_voice():
    source, state, inheritance = start(MODEL, MODEL)
    old, rows = source.tensors["speakers.weight"], state.model.speakers.weight.detach()
    assert torch.equal(rows[NEW.index("ada")], old[OLD.index("ada")])
    assert torch.equal(rows[NEW.index("cyd")], old[OLD.index("cyd")])
    mean = old.double().mean(0)
    apart = torch.stack([rows[NEW.index(name)] for name in ("ann", "bob")]).double() - mean
    random = fresh_state().model.speakers.weight.detach()[[NEW.index("ann"), NEW.index("bob")]]
    torch.testing.assert_close(apart, 0.1 * random.double(), rtol=1e-3, atol=1e-6)
    assert not torch.equal(apart[0], apart[1])
    assert inheritance.kept == ("cyd", "ada")
    assert inheritance.new == ("ann", "bob")
    assert inheritance.dropped == ("bea",)


@pytest.mark.parametrize("now", ["speaker", "conditioning", "transposed"])
def test_speakers_start_fresh_with_the_layer_that_reads_them(now):
    """Through a fresh layer, rows close to each other would be hard to tell apart."""
    _, state, inheritance = start(MODEL, VARIANTS[now])
    assert torch.equal(
        state.model.speakers.weight, fresh_state(VARIANTS[now]).model.speakers.weight
    )
    assert not inheritance.kept + inheritance.new + inheritance.dropped
    assert not [line for line in inheritance.report() if line.startswith("speakers: ")]


def test_the_speakers_mean_pitches_stay_those_of_the_new_corpus():
    pitch = VARIANTS["pitch"]
    _, state, _ = start(pitch, pitch)
    expected = fresh_state(pitch).model.pitch.speaker_means
    assert torch.equal(state.model.pitch.speaker_means, expected)
    assert torch.equal(state.average.pitch.speaker_means, expected)


def test_when_nothing_fits_each_difference_is_named_once_and_the_state_is_untouched():
    now = variant(
        encoder__width=14,
        decoder__residual_channels=10,
        decoder__conditioning_channels=8,
        decoder__speaker_dim=4,
    )
    state = fresh_state(now)
    with pytest.raises(UsageError) as caught:
        inherit(state, source_of(), config_of(now), NEW)
    assert str(caught.value) == (
        "train.init_from: nothing of runs/old fits this model: encoder.width was 12, is 14; "
        "decoder.conditioning_channels was 9, is 8; decoder.speaker_dim was 5, is 4; "
        "decoder.residual_channels was 8, is 10."
    )
    for name, tensor in fresh_state(now).model.state_dict().items():
        assert torch.equal(state.model.state_dict()[name], tensor), name


def test_the_report_says_what_comes_from_where_and_who_speaks():
    _, _, inheritance = start(variant(bottleneck__kind="ae"), MODEL)
    lines = inheritance.report()
    assert lines[0] == "weights of runs/old (step 400)"
    assert lines[1].startswith(
        "taken over: features (2 tensors), encoder (54 tensors, 5,544 parameters), "
        "bottleneck (6 tensors, 84 parameters), speakers (1 tensor, 20 parameters), "
    )
    assert lines[2:] == [
        "starts fresh: bottleneck.codebook (bottleneck.kind was ae, is vq)",
        "speakers: 2 kept (cyd, ada), 2 new start as the mean voice (ann, bob), 1 dropped",
    ]


def test_many_speakers_are_counted_rather_than_listed():
    many = tuple(f"p{number}" for number in range(225, 325))
    line = start(MODEL, MODEL, many)[2].report()[-1]
    assert line == (
        "speakers: 100 new start as the mean voice (p225, p226, p227, p228, p229, p230, p231, p232 "
        "and 92 more), 3 dropped"
    )


def test_another_signal_is_warned_of_only_where_the_decoder_is_taken_over():
    other = variant(audio__preemphasis=0.9, audio__gain=3.0)
    assert start(MODEL, other)[2].report()[-2:] == [
        "warning: the decoder has learned a signal of audio.preemphasis 0.85, and 0.9 is another "
        "one",
        "warning: the decoder has learned a signal of audio.gain 2.0, and 3.0 is another one",
    ]
    fresh_decoder = variant(audio__preemphasis=0.9, audio__levels=64)
    assert not start(MODEL, fresh_decoder)[2].warnings


# Where the weights come from


def checkpoint(run: Path, step: int) -> Path:
    """A checkpoint whose average is not its model."""
    state = fresh_state(speakers=OLD)
    state.average.load_state_dict(random_network(MODEL, len(OLD), seed=step).state_dict())
    state.step = step
    return save_checkpoint(run / "checkpoints", state, config_of(MODEL), OLD, {})


def damage(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def test_of_a_run_the_newest_checkpoints_average_is_taken(tmp_path):
    checkpoint(tmp_path, 2)
    path = checkpoint(tmp_path, 4)
    for where in (tmp_path, path):
        source = find_source(str(where))
        assert source.where == path
        assert source.step == 4
        assert source.speakers == OLD
        assert source.config == MODEL
        expected = random_network(MODEL, len(OLD), seed=4).state_dict()
        assert source.tensors.keys() == expected.keys()
        for name, tensor in expected.items():
            assert torch.equal(source.tensors[name], tensor), name
    record = inherit(fresh_state(), source, config_of(MODEL), NEW).to_json()
    assert record["digest"] == json.loads((path / "checkpoint.json").read_text())["digest"]
    assert (record["where"], record["step"]) == (str(path), 4)


def test_a_damaged_checkpoint_is_named_and_of_a_run_the_one_before_it_taken(tmp_path):
    checkpoint(tmp_path, 2)
    path = checkpoint(tmp_path, 4)
    damage(path / "average.safetensors")
    with pytest.raises(ModelError, match=r"step-000000004: average\.safetensors is damaged"):
        find_source(str(path))
    source = find_source(str(tmp_path))
    assert source.step == 2
    report = inherit(fresh_state(), source, config_of(MODEL), NEW).report()
    assert report[-1].startswith(f"warning: {path}: average.safetensors is damaged")
    (tmp_path / "checkpoints/step-000000002/checkpoint.json").unlink()
    with pytest.raises(ModelError, match="every checkpoint is damaged"):
        find_source(str(tmp_path))
    with pytest.raises(ModelError, match=r"checkpoint\.json is missing"):
        find_source(str(tmp_path / "checkpoints/step-000000002"))


def test_a_bundle_gives_the_weights_it_was_exported_with_by_path_and_by_name(tmp_path, monkeypatch):
    monkeypatch.setenv("VCONV_HOME", str(tmp_path))
    shutil.copytree(tiny_model.exported(), tmp_path / "models" / "ours")
    for where in (str(tiny_model.exported()), "ours"):
        source = find_source(where)
        assert source.speakers == tiny_model.SPEAKERS
        assert source.config == tiny_model.CONFIG.model
        for name, array in tiny_model.random_tensors().items():
            assert torch.equal(source.tensors[name], torch.tensor(array)), name
    state = fresh_state(source.config, ("bea", "new"))
    inheritance = inherit(state, source, config_of(source.config), ("bea", "new"))
    assert not inheritance.to_json()["fresh"]
    assert inheritance.step == 20
    damage(tmp_path / "models" / "ours" / "weights.safetensors")
    with pytest.raises(ModelError, match=r"weights\.safetensors: damaged"):
        find_source("ours")


def test_where_there_is_nothing_to_start_from_the_kinds_of_source_are_named(tmp_path):
    (tmp_path / "checkpoints").mkdir()
    for text in (str(tmp_path), str(tmp_path / "nowhere"), "nobody"):
        with pytest.raises(UsageError, match=r"no known model \(.*demo"):
            find_source(text)
