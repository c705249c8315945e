"""The whole network: features, encoder, bottleneck, speaker table, conditioner, WaveNet.

B batch, T samples, U units, D latent width, E speaker width, Q levels.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional

from ..config import ModelConfig
from ..geometry import Geometry
from .bottleneck import VQ, BottleneckResult
from .conditioner import LinearConditioner
from .encoder import Encoder
from .features import LogMel
from .wavenet import State, WaveNet


class Decoder(nn.Module):
    """Conditioner and WaveNet."""

    def __init__(self, conditioner: LinearConditioner, wavenet: WaveNet) -> None:
        super().__init__()
        self.conditioner = conditioner
        self.wavenet = wavenet


class Autoencoder(nn.Module):
    """Chorowski et al. 2019: speech -> units -> speech in a chosen speaker's voice."""

    def __init__(
        self,
        features: LogMel,
        encoder: Encoder,
        bottleneck: VQ,
        speakers: nn.Embedding,
        decoder: Decoder,
        geometry: Geometry,
    ) -> None:
        super().__init__()
        self.features = features
        self.encoder = encoder
        self.bottleneck = bottleneck
        self.speakers = speakers
        self.decoder = decoder
        self.geometry = geometry

    def encode(self, wav: Tensor) -> BottleneckResult:
        """wav [B, T] -> units (codes [B, U], z [B, D, U])."""
        result: BottleneckResult = self.bottleneck(self.encoder(self.features(wav)))
        return result

    def speaker_vectors(self, speakers: Tensor) -> Tensor:
        """Rows of the speaker table: speakers [...] (indices) -> [..., E]."""
        return functional.embedding(speakers, self.speakers.weight)

    def condition(self, z: Tensor, speaker: Tensor) -> Tensor:
        """z [B, D, U], speaker vectors [B, E] -> conditioning [B, F, C]."""
        conditioning: Tensor = self.decoder.conditioner(z, speaker)
        return conditioning

    def decode(
        self,
        z: Tensor,
        speaker: Tensor,
        inputs: Tensor,
        state: State,
        *,
        steps: slice,
        wanted: int | None = None,
    ) -> Tensor:
        """Teacher-forced logits [B, T, Q] of z [B, D, U] and speaker vectors [B, E].

        ``steps`` picks from the conditioning those that end with the inputs (``geometry.Plan``).
        """
        conditioning = self.condition(z, speaker)[:, steps]
        logits: Tensor = self.decoder.wavenet(inputs, conditioning, state, wanted=wanted)[0]
        return logits


def build_geometry(config: ModelConfig) -> Geometry:
    """The geometry of a configured model."""
    decoder = config.decoder
    return Geometry.of(
        features=config.features.kind,
        upsampling=decoder.upsampling,
        kernel_size=decoder.kernel_size,
        blocks=decoder.blocks,
        layers=decoder.layers,
    )


def build_autoencoder(config: ModelConfig, speakers: int) -> Autoencoder:
    """The network of a configuration for that many speakers."""
    geometry = build_geometry(config)
    features = LogMel()
    bottleneck, decoder = config.bottleneck, config.decoder
    return Autoencoder(
        features=features,
        encoder=Encoder(features.channels, config.encoder.width),
        bottleneck=VQ(
            config.encoder.width,
            bottleneck.dim,
            bottleneck.codebook_size,
            commitment_weight=bottleneck.commitment_weight,
            decay=bottleneck.decay,
            warmup_steps=bottleneck.warmup_steps,
            restart_below=bottleneck.restart_below,
        ),
        speakers=nn.Embedding(speakers, decoder.speaker_dim),
        decoder=Decoder(
            LinearConditioner(bottleneck.dim, decoder.speaker_dim, decoder.conditioning_channels),
            WaveNet(
                levels=config.audio.levels,
                residual_channels=decoder.residual_channels,
                gate_channels=decoder.gate_channels,
                skip_channels=decoder.skip_channels,
                conditioning_channels=decoder.conditioning_channels,
                blocks=decoder.blocks,
                layers=decoder.layers,
                kernel_size=decoder.kernel_size,
                hop=geometry.conditioning_hop,
            ),
        ),
        geometry=geometry,
    )
