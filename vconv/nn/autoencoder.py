"""The whole network: features, encoder, bottleneck, speaker table, conditioner, WaveNet.

B batch, T samples, U units, D latent width, E speaker width, Q levels.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional

from ..config import ModelConfig
from ..geometry import TRANSPOSED, UNIT_FRAMES, Geometry, Span
from .bottleneck import AE, VAE, Bottleneck, BottleneckResult
from .conditioner import LinearConditioner, TransposedConditioner
from .encoder import Encoder
from .features import Features, build_features
from .fsq import FSQ
from .pitch import WINDOW, Pitch, relative
from .vq import VQ
from .wavenet import State, WaveNet


class Decoder(nn.Module):
    """Conditioner and WaveNet."""

    def __init__(
        self, conditioner: LinearConditioner | TransposedConditioner, wavenet: WaveNet
    ) -> None:
        super().__init__()
        self.conditioner = conditioner
        self.wavenet = wavenet


class Autoencoder(nn.Module):
    """Chorowski et al. 2019: speech -> units -> speech in a chosen speaker's voice.

    Without an encoder it is the inverter: the units are the features.
    """

    def __init__(
        self,
        features: Features,
        encoder: Encoder | nn.Identity,
        bottleneck: Bottleneck,
        speakers: nn.Embedding,
        decoder: Decoder,
        geometry: Geometry,
        pitch: Pitch | None = None,
    ) -> None:
        super().__init__()
        self.features = features
        self.encoder = encoder
        self.bottleneck = bottleneck
        self.speakers = speakers
        self.decoder = decoder
        self.geometry = geometry
        self.pitch = pitch

    def latents(self, wav: Tensor) -> Tensor:
        """wav [B, T] -> latents [B, D, U], before quantisation."""
        return self.bottleneck.latents(self.encoder(self.features(wav)))

    def encode(
        self, wav: Tensor, *, noise: Tensor | None = None, step: int | None = None
    ) -> BottleneckResult:
        """wav [B, T] -> units; see ``Bottleneck.forward``."""
        encodings = self.encoder(self.features(wav))
        result: BottleneckResult = self.bottleneck(encodings, noise=noise, step=step)
        return result

    def prosody(self, wav: Tensor, speakers: Tensor) -> Tensor:
        """wav [B, T], speakers [B] (indices) -> pitch relative to the speaker's own, and voicing,
        [B, 2, U]; [B, 0, U] where the decoder is not told them."""
        if self.pitch is None:
            units = len(self.geometry.encoder.outputs(Span(0, wav.shape[1])))
            return wav.new_zeros(len(wav), 0, units)
        return relative(self.pitch(wav), self.pitch.speaker_means[speakers])

    def speaker_vectors(self, speakers: Tensor) -> Tensor:
        """Rows of the speaker table: speakers [...] (indices) -> [..., E]."""
        return functional.embedding(speakers, self.speakers.weight)

    def condition(self, units: Tensor, speaker: Tensor) -> Tensor:
        """units [B, D (+ 2), U] (latents, and prosody where it is told), speaker vectors [B, E]
        -> conditioning [B, F, C]."""
        conditioning: Tensor = self.decoder.conditioner(units, speaker)
        return conditioning

    def decode(
        self,
        units: Tensor,
        speaker: Tensor,
        inputs: Tensor,
        state: State,
        *,
        steps: slice,
        wanted: int | None = None,
    ) -> Tensor:
        """Teacher-forced logits [B, T, Q]; units and speaker vectors as for ``condition``.

        ``steps`` picks from the conditioning those that end with the inputs (``geometry.Plan``).
        """
        conditioning = self.condition(units, speaker)[:, steps]
        logits: Tensor = self.decoder.wavenet(inputs, conditioning, state, wanted=wanted)[0]
        return logits


def build_autoencoder(config: ModelConfig, speakers: int) -> Autoencoder:
    """The network of a configuration for that many speakers."""
    geometry = Geometry.of(**config.geometry)
    features = build_features(config.features.kind)
    decoder = config.decoder
    return Autoencoder(
        features=features,
        encoder=nn.Identity()
        if config.inverter
        else Encoder(
            features.channels, config.encoder.width, instance_norm=config.encoder.instance_norm
        ),
        bottleneck=build_bottleneck(config, geometry),
        speakers=nn.Embedding(speakers, decoder.speaker_dim),
        decoder=Decoder(
            build_conditioner(config, geometry),
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
        pitch=build_pitch(geometry, speakers) if decoder.pitch else None,
    )


def build_bottleneck(config: ModelConfig, geometry: Geometry) -> Bottleneck:
    """The bottleneck of a configuration; the inverter's lets the features pass."""
    width, bottleneck = config.encoder.width, config.bottleneck
    if config.inverter:
        return Bottleneck()
    if bottleneck.kind == "ae":
        return AE(width, bottleneck.dim)
    if bottleneck.kind == "vae":
        return VAE(
            width,
            bottleneck.dim,
            kl_weight=bottleneck.kl_weight,
            kl_warmup=bottleneck.kl_warmup,
            free_bits=bottleneck.free_bits,
            unit_hop=geometry.unit_hop,
        )
    if bottleneck.kind == "fsq":
        return FSQ(width, bottleneck.levels)
    return VQ(
        width,
        bottleneck.dim,
        bottleneck.codebook_size,
        gradient=bottleneck.update == "gradient",
        commitment_weight=bottleneck.commitment_weight,
        decay=bottleneck.decay,
        warmup_steps=bottleneck.warmup_steps,
        restart_below=bottleneck.restart_below,
    )


def build_conditioner(
    config: ModelConfig, geometry: Geometry
) -> LinearConditioner | TransposedConditioner:
    """The conditioner of a configuration."""
    decoder = config.decoder
    repeats = 1 if config.inverter else UNIT_FRAMES
    widths = config.conditions, decoder.speaker_dim, decoder.conditioning_channels
    if decoder.upsampling == "transposed":
        return TransposedConditioner(*widths, strides=[s for _, s in TRANSPOSED[repeats]])
    return LinearConditioner(*widths, repeats=repeats)


def build_pitch(geometry: Geometry, speakers: int) -> Pitch:
    """Pitch estimates at the units' places: centred on what each unit stands for."""
    window = len(geometry.unit_inputs(Span(0, 1)))
    centre = int(geometry.encoder.anchor(0))
    left = centre - WINDOW // 2
    return Pitch(left, window - left - WINDOW, speakers, geometry.unit_hop)
