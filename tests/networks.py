"""Small random networks in evaluation mode, with everything that could hide a bug away from 0."""

import torch

from vconv.config import (
    BottleneckConfig,
    DecoderConfig,
    EncoderConfig,
    ModelConfig,
)
from vconv.nn.autoencoder import Autoencoder, build_autoencoder

CONFIG = ModelConfig(
    encoder=EncoderConfig(width=12),
    bottleneck=BottleneckConfig(dim=6, codebook_size=16, warmup_steps=2),
    decoder=DecoderConfig(
        residual_channels=8,
        gate_channels=10,
        skip_channels=12,
        blocks=2,
        layers=4,
        conditioning_channels=9,
        speaker_dim=5,
    ),
)


def network(*, quantised: bool = True, seed: int = 0, speakers: int = 4) -> Autoencoder:
    """A network whose batch-norm statistics, codebook and weights are all random."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = build_autoencoder(CONFIG, speakers)
        for module in model.modules():
            if isinstance(module, torch.nn.BatchNorm1d):
                module.running_mean.normal_(0, 0.1)
                module.running_var.uniform_(0.5, 1.5)
                module.weight.data.uniform_(0.5, 1.5)
                module.bias.data.normal_(0, 0.1)
        if quantised:
            model.bottleneck.codebook.normal_()
            model.bottleneck.ema_count.fill_(1.0)
            model.bottleneck.ema_sum.copy_(model.bottleneck.codebook)
            model.bottleneck.started.fill_(True)
    return model.eval()


def speech(batch: int, length: int, *, seed: int = 0) -> torch.Tensor:
    """Noise with a slow envelope, [B, T]."""
    generator = torch.Generator().manual_seed(seed)
    time = torch.arange(length) / 16000
    envelope = 0.3 * (1 + torch.sin(2 * torch.pi * 3 * time))
    return 0.3 * envelope * torch.randn(batch, length, generator=generator)
