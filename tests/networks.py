"""Small random networks in evaluation mode, with everything that could hide a bug away from 0."""

import torch

from tiny_model import MEMBERS, varied
from vconv.config import BottleneckConfig, DecoderConfig, EncoderConfig, ModelConfig
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


def network(
    member: str = "vq", *, quantised: bool = True, seed: int = 0, speakers: int = 4
) -> Autoencoder:
    """A network of a member of the family whose batch-norm statistics, codebook and weights are
    all random; its speakers' pitches lie between 100 and 250 Hz. Without ``quantised`` its
    codebook, if it learns one, has not started."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = build_autoencoder(varied(CONFIG, MEMBERS[member]), speakers)
        for module in model.modules():
            if isinstance(module, torch.nn.BatchNorm1d):
                module.running_mean.normal_(0, 0.1)
                module.running_var.uniform_(0.5, 1.5)
                module.weight.data.uniform_(0.5, 1.5)
                module.bias.data.normal_(0, 0.1)
        if quantised and hasattr(model.bottleneck, "started"):
            model.bottleneck.codebook.data.normal_()
            model.bottleneck.ema_count.fill_(1.0)
            model.bottleneck.started.fill_(True)
            if hasattr(model.bottleneck, "ema_sum"):
                model.bottleneck.ema_sum.copy_(model.bottleneck.codebook)
        if model.pitch is not None:
            model.pitch.speaker_means.copy_(torch.empty(speakers).uniform_(100, 250).log2())
    return model.eval()


def speech(batch: int, length: int, *, seed: int = 0) -> torch.Tensor:
    """Noise with a slow envelope, [B, T]."""
    generator = torch.Generator().manual_seed(seed)
    time = torch.arange(length) / 16000
    envelope = 0.3 * (1 + torch.sin(2 * torch.pi * 3 * time))
    return 0.3 * envelope * torch.randn(batch, length, generator=generator)
