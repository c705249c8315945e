"""What a training step must compute and move at least: arithmetic, no measurement.

The decoder's activations decide what is moved. Counted is what operators move that are not fused
with each other: each reads its inputs once and writes its output once; products and what they read
and write in bfloat16, the sums along the residual path in float32.

R residual, G gate, S skip, C conditioning channels, Q levels, W window, T samples, F frames.
"""

from __future__ import annotations

from dataclasses import dataclass

from vconv.config import Config, ModelConfig
from vconv.geometry import ENCODER, TRANSPOSED, UNIT_FRAMES, Geometry

_DFT_BINS, _FRAME, _MELS, _CEPSTRA, _DELTA = 257, 400, 80, 13, 5
_SHORT, _LONG = 2, 4  # bytes of a bfloat16 and of a float32


@dataclass(frozen=True)
class Cost:
    """Of one predicted sample, its share of the context included.

    forward, backward: multiply-adds. moved: bytes that the gated layers and the output layers read
    and write, forward and backward.
    """

    forward: float
    backward: float
    moved: float

    def seconds(self, flops: float, bandwidth: float) -> float:
        """The least time a sample can take on a device of that many floating-point operations (two
        a multiply-add) and bytes a second, if neither waits for the other."""
        return max(2 * (self.forward + self.backward) / flops, self.moved / bandwidth)


def cost(config: Config) -> Cost:
    """Of a configuration's step in precision bf16."""
    model, window = config.model, config.data.window
    geometry = Geometry.of(**model.geometry)
    plan = geometry.plan(window, lead=geometry.lead_samples)
    decoder = model.decoder
    residual, gate, kernel = decoder.residual_channels, decoder.gate_channels, decoder.kernel_size
    conditioning = decoder.conditioning_channels
    forward, backward = _front(model, plan.wav_length, plan.units)
    moved = 0.0
    lengths = _lengths(model, geometry.receptive_field + window - 1)
    for index, length in enumerate(lengths):
        last = index == len(lengths) - 1
        dilated = length * kernel * residual * 2 * gate
        onward = 0 if last else length * gate * residual
        projected = plan.steps * conditioning * 2 * gate
        forward += dilated + onward + projected
        backward += 2 * (dilated + onward + projected)
        moved += length * _layer_bytes(model, last=last) + window * 5 * _SHORT * gate
    skip, levels = decoder.skip_channels, model.audio.levels
    head = window * (len(lengths) * gate * skip + skip * skip + skip * levels)
    moved += window * _SHORT * (12 * skip + 7 * levels)
    return Cost(
        (forward + head) / window,
        (backward + 2 * head) / window,
        moved / window,
    )


def _lengths(model: ModelConfig, inputs: int) -> list[int]:
    """How many samples each gated layer puts out."""
    decoder = model.decoder
    lengths = []
    for index in range(decoder.blocks * decoder.layers):
        inputs -= (decoder.kernel_size - 1) * 2 ** (index % decoder.layers)
        lengths.append(inputs)
    return lengths


def _layer_bytes(model: ModelConfig, *, last: bool) -> int:
    """Of a sample that a gated layer puts out, without its part in the skip connections."""
    decoder = model.decoder
    residual, gate, kernel = decoder.residual_channels, decoder.gate_channels, decoder.kernel_size
    short_x, long_x = _SHORT * residual, _LONG * residual
    taps, hidden, z = kernel * short_x, 2 * _SHORT * gate, _SHORT * gate
    forward = (long_x + taps) + (taps + hidden) + (hidden + z)
    backward = (hidden + 2 * z + hidden) + (hidden + taps) + (hidden + taps)
    backward += taps + 2 * long_x
    if not last:
        forward += (z + short_x) + (short_x + 2 * long_x)
        backward += (long_x + short_x) + (short_x + z) + (short_x + z)
    if decoder.upsampling == "transposed":  # the projection is made and taken for every sample
        channels = _SHORT * decoder.conditioning_channels
        forward += (channels + hidden) + hidden
        backward += (hidden + channels) + (hidden + channels)
    else:
        backward += hidden
    return forward + backward


def _front(model: ModelConfig, samples: int, units: int) -> tuple[float, float]:
    """Multiply-adds of features, encoder, bottleneck and conditioner for one window."""
    frames = (samples - _FRAME) // 160 + 1
    features = frames * (_FRAME * 2 * _DFT_BINS + _MELS * _DFT_BINS)
    length, channels = frames, model.features.channels
    if model.features.kind == "mfcc39":
        features += frames * _CEPSTRA * _MELS
        for _ in range(2):
            length -= _DELTA - 1
            features += length * _CEPSTRA * _DELTA
    if model.encoder.instance_norm is not None:
        length -= model.encoder.instance_norm - 1
    forward = backward = 0.0
    if not model.inverter:
        strides = [(layer.kernel, layer.stride) for layer in ENCODER.layers] + [(1, 1)] * 4
        for index, (kernel, stride) in enumerate(strides):
            length = (length - kernel) // stride + 1
            layer = length * kernel * channels * model.encoder.width
            forward += layer
            backward += layer if index == 0 else 2 * layer  # the features are not learned
            channels = model.encoder.width
        outputs = model.bottleneck.latents * (2 if model.bottleneck.kind == "vae" else 1)
        projected = units * channels * outputs
        forward, backward = forward + projected, backward + 2 * projected
        if model.bottleneck.kind == "vq":
            forward += units * model.bottleneck.codebook_size * model.bottleneck.dim
    conditioner = _conditioner(model, units)
    return features + forward + conditioner, backward + 2 * conditioner


def _conditioner(model: ModelConfig, units: int) -> float:
    decoder = model.decoder
    channels, wide = decoder.conditioning_channels, decoder.conditioning_channels
    wide += decoder.speaker_dim
    length = units - 2
    total = length * 3 * model.conditions * channels
    if decoder.upsampling == "transposed":
        for kernel, stride in TRANSPOSED[1 if model.inverter else UNIT_FRAMES]:
            total += length * kernel * wide * channels
            length, wide = (length - 1) * stride + kernel - 2 * (kernel - stride), channels
        return total
    length *= 1 if model.inverter else UNIT_FRAMES
    for inputs in (wide, channels):
        length -= 2
        total += length * 3 * inputs * channels
    return total
