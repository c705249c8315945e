"""What every kind of bottleneck must keep, so that nothing outside has to ask which it is."""

import numpy as np
import pytest
import torch

import contracts
from vconv.config import BottleneckConfig, EncoderConfig, ModelConfig
from vconv.geometry import Geometry
from vconv.nn.autoencoder import build_bottleneck
from vconv.nn.bottleneck import Bottleneck, perplexity

KINDS = {
    "ae": {"kind": "ae", "dim": 6},
    "vae": {"kind": "vae", "dim": 6, "samples": 2},
    "vq": {"kind": "vq", "dim": 6, "codebook_size": 16},
    "vq by gradient": {"kind": "vq", "dim": 6, "codebook_size": 16, "update": "gradient"},
    "fsq": {"kind": "fsq", "levels": (4, 3, 3)},
    "inverter": None,
}


@pytest.fixture(params=KINDS, ids=[kind.replace(" ", "_") for kind in KINDS])
def config(request) -> ModelConfig:
    values = KINDS[request.param]
    if values is None:
        return ModelConfig(kind="inverter")
    return ModelConfig(
        encoder=EncoderConfig(width=10), bottleneck=BottleneckConfig.model_validate(values)
    )


def build(config: ModelConfig) -> Bottleneck:
    torch.manual_seed(0)
    bottleneck = build_bottleneck(config, Geometry.of(**config.geometry))
    if bottleneck.vectors_wanted(10_000):
        bottleneck.start(torch.randn(500, config.latents), seed=0, step=0)
    return bottleneck


def encodings(config: ModelConfig, batch: int = 3, units: int = 7) -> torch.Tensor:
    return torch.randn(batch, 80 if config.inverter else 10, units)


def test_the_widths_are_those_the_configuration_tells(config):
    bottleneck = build(config).eval()
    result = bottleneck(encodings(config))
    assert result.z.shape == (3, config.latents, 7)
    assert result.codes.shape == (3, 7)
    assert result.codes.dtype == torch.int64
    assert bottleneck.codebook_size == (config.codes or 0)
    if config.codes is None:
        assert (result.codes == -1).all()
    else:
        assert result.codes.min() >= 0
        assert result.codes.max() < config.codes


def test_evaluation_is_quantising_the_latents_and_draws_nothing(config):
    bottleneck = build(config).eval()
    x = encodings(config)
    codes, z = bottleneck.quantise(bottleneck.latents(x))
    for _ in range(2):
        result = bottleneck(x)
        torch.testing.assert_close(result.z, z)
        assert torch.equal(result.codes, codes)


def test_items_do_not_mix(config):
    bottleneck = build(config).eval()
    contracts.assert_items_are_independent(lambda x: bottleneck(x).z, encodings(config, 5))


def test_the_encoder_learns_through_it(config):
    bottleneck = build(config).train()
    x = encodings(config).requires_grad_()
    noise = torch.randn(3, config.draws, config.latents, 7)
    result = bottleneck(x, noise=noise, step=100)
    assert len(result.z) == 3 * max(1, config.draws)
    (gradient,) = torch.autograd.grad((result.z * torch.randn_like(result.z)).sum(), x)
    assert (gradient.abs().sum(1) > 0).all()
    assert torch.isfinite(gradient).all()


def test_a_step_is_a_function_of_its_input_seed_and_step(config):
    states = []
    for attempt in range(2):
        bottleneck = build(config).train()
        torch.manual_seed(3)
        noise = torch.randn(3, config.draws, config.latents, 7)
        result = bottleneck(encodings(config), noise=noise, step=5)
        torch.manual_seed(attempt)
        bottleneck.commit(seed=1, step=5)
        states.append([result.z, *bottleneck.state_dict().values()])
    for first, second in zip(*states, strict=True):
        assert torch.equal(first, second)


def test_bf16_does_not_reach_it(config):
    bottleneck = build(config).eval()
    x = encodings(config)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(bottleneck(x).z, bottleneck(x.float()).z)
        assert bottleneck(x.bfloat16()).z.dtype == torch.float32


@pytest.mark.parametrize("share", [[1.0], [0.5, 0.5], [0.7, 0.2, 0.1]])
def test_perplexity_is_the_exponential_of_the_entropy(share):
    codes = torch.repeat_interleave(
        torch.arange(len(share)), torch.tensor([round(100 * s) for s in share])
    )
    expected = np.exp(-sum(s * np.log(s) for s in share))
    assert float(perplexity(codes, 8)) == pytest.approx(expected, rel=1e-4)
