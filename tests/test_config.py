"""Combinations that cannot work are refused when the configuration is read, saying why."""

from pathlib import Path

import pytest

from vconv.config import ModelConfig, load_config
from vconv.errors import UsageError

DEMO = Path(__file__).resolve().parents[1] / "configs" / "demo.yaml"


@pytest.mark.parametrize(
    ("overrides", "reason"),
    [
        (["model.kind=inverter", "model.encoder.instance_norm=51"], "an inverter has none"),
        (["model.kind=inverter", "model.decoder.pitch=true"], "tell the pitch already"),
        (["model.kind=inverter", "data.augment.formant=0.2"], "what it has to say"),
        (["model.kind=inverter", "data.augment.pitch_semitones=2"], "what it has to say"),
        (["model.encoder.instance_norm=50"], "odd number of frames"),
        (["model.bottleneck.levels=[300,300]"], "90,000 codes"),
        (["model.bottleneck.levels=[]"], "at least 1 item"),
        (["model.bottleneck.levels=[8,1]"], "greater than or equal to 2"),
        (["model.bottleneck.kind=rvq"], "'ae', 'vae', 'vq' or 'fsq', found 'rvq'"),
        (["model.decoder.kernel_size=4"], "less than or equal to 3"),
        (["model.bottleneck.sample=2"], "did you mean model.bottleneck.samples"),
        (["data.augment.formants=0.2"], "did you mean data.augment.formant?"),
    ],
)
def test_what_cannot_work_is_refused_saying_why(overrides, reason):
    with pytest.raises(UsageError) as refused:
        load_config(DEMO, overrides)
    assert reason in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("kind", ["ae", "vae", "vq", "fsq"])
def test_one_key_switches_between_the_bottlenecks(kind):
    config = load_config(DEMO, [f"model.bottleneck.kind={kind}"])
    assert config.model.bottleneck.kind == kind


def test_widths_follow_from_the_kind():
    def model(**values) -> ModelConfig:
        return ModelConfig.model_validate(values)

    assert (model().latents, model().codes, model().conditions) == (64, 512, 64)
    fsq = model(bottleneck={"kind": "fsq"}, decoder={"pitch": True})
    assert (fsq.latents, fsq.codes, fsq.conditions) == (4, 1000, 6)
    vae = model(bottleneck={"kind": "vae", "samples": 3})
    assert (vae.latents, vae.codes, vae.draws) == (64, None, 3)
    inverter = model(kind="inverter", features={"kind": "mfcc39"})
    assert (inverter.latents, inverter.codes, inverter.jitter, inverter.draws) == (39, None, 0.0, 0)
