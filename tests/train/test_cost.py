"""What a step is said to compute, against torch's own count of the operators that run."""

from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from networks import CONFIG as MODEL
from vconv.config import Config, load_config
from vconv.nn.autoencoder import build_autoencoder
from vconv.train.batches import Batch
from vconv.train.cost import cost
from vconv.train.objective import backward

WINDOW, ITEMS = 640, 2
DECODER = {"upsampling": "transposed", "kernel_size": 3}


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"features": {"kind": "mfcc39"}, "decoder": MODEL.decoder.model_dump() | DECODER},
        {"kind": "inverter"},
        {"bottleneck": {"kind": "vae", "dim": 6}},
    ],
    ids=["linear", "transposed", "inverter", "vae"],
)
def test_multiply_adds_are_those_that_run_forward_and_backward(changes):
    config = Config.model_validate(
        {"model": MODEL.model_dump() | changes, "data": {"corpus": "none", "window": WINDOW}}
    )
    model = build_autoencoder(config.model, 3).train()
    geometry = model.geometry
    plan = geometry.plan(WINDOW, lead=geometry.lead_samples)
    wav = torch.randn(ITEMS, plan.wav_length)
    latents = config.model.latents
    batch = Batch(
        wav=wav,
        clean=wav,
        codes=torch.randint(256, (ITEMS, geometry.receptive_field + WINDOW)),
        speakers=torch.zeros(ITEMS, dtype=torch.long),
        jitter=torch.arange(plan.units).expand(ITEMS, -1),
        noise=torch.randn(ITEMS, config.model.draws, latents, plan.units),
    )
    if config.model.draws == 0:
        batch = Batch(
            *(getattr(batch, n) for n in ("wav", "clean", "codes", "speakers", "jitter")),
            noise=torch.zeros(ITEMS, 0, latents, plan.units),
        )
    if hasattr(model.bottleneck, "started"):
        model.bottleneck.codebook.normal_()
        model.bottleneck.started.fill_(True)
    with FlopCounterMode(display=False) as counter:
        backward(
            model,
            batch,
            window=WINDOW,
            steps=slice(plan.skip, plan.skip + plan.steps),
            decode_batch=None,
        )
    found = cost(config)
    counted = counter.get_total_flops() / 2 / (ITEMS * WINDOW)
    assert found.forward + found.backward == pytest.approx(counted, rel=0.01)


def test_the_larger_of_arithmetic_and_memory_is_the_floor():
    root = Path(__file__).resolve().parents[2]
    found = cost(load_config(root / "configs" / "tiny.yaml"))
    assert found.seconds(1.0, 1e30) == 2 * (found.forward + found.backward)
    assert found.seconds(1e30, 1.0) == found.moved
