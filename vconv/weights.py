"""The tensors a model has: their names, shapes and types, from its configuration alone.

The names are those of the eager network (``nn.autoencoder``), which a test holds this list to.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError
from safetensors.numpy import load

from .config import BottleneckConfig, ModelConfig
from .errors import ModelError
from .geometry import TRANSPOSED, UNIT_FRAMES

Tensors = dict[str, npt.NDArray[Any]]
Shape = tuple[int, ...]

# The encoder's nine kernels (Chorowski et al. 2019, section III).
_ENCODER_KERNELS = (3, 3, 4, 3, 3, 1, 1, 1, 1)
_MAX_HEADER = 4_000_000  # a thousand tensors need a fortieth of it
_SPECIAL_TYPES = {"num_batches_tracked": np.int64, "started": np.bool_}


def expected_shapes(config: ModelConfig, n_speakers: int) -> dict[str, Shape]:
    """Every tensor of the network's state and its shape."""
    channels, decoder = config.features.channels, config.decoder
    shapes: dict[str, Shape] = {"features.mean": (channels,), "features.std": (channels,)}
    if not config.inverter:
        shapes |= _encoder(config) | _bottleneck(config.bottleneck, config.encoder.width)
    shapes["speakers.weight"] = (n_speakers, decoder.speaker_dim)
    if decoder.pitch:
        shapes["pitch.speaker_means"] = (n_speakers,)
    for name, shape in _conditioner(config).items():
        shapes[f"decoder.conditioner.{name}.weight"] = shape
        shapes[f"decoder.conditioner.{name}.bias"] = (decoder.conditioning_channels,)
    wavenet = _wavenet(config)
    return shapes | {f"decoder.wavenet.{name}": shape for name, shape in wavenet.items()}


def _encoder(config: ModelConfig) -> dict[str, Shape]:
    width = config.encoder.width
    shapes: dict[str, Shape] = {}
    for index, kernel in enumerate(_ENCODER_KERNELS):
        inputs = config.features.channels if index == 0 else width
        shapes[f"encoder.layers.{index}.conv.weight"] = (width, inputs, kernel)
        shapes |= _norm(f"encoder.layers.{index}.norm", width)
    return shapes


def _bottleneck(bottleneck: BottleneckConfig, width: int) -> dict[str, Shape]:
    kind, latents, codes = bottleneck.kind, bottleneck.latents, bottleneck.codes
    if kind == "vae":
        shapes: dict[str, Shape] = {
            "project.weight": (2 * latents, width, 1),
            "project.bias": (2 * latents,),
        }
    else:
        shapes = {"project.weight": (latents, width, 1), **_norm("norm", latents)}
    if codes is not None:
        shapes["codebook"] = (codes, latents)
    if kind == "vq":
        shapes |= {"ema_count": (bottleneck.codebook_size,), "started": ()}
        if bottleneck.update == "ema":
            shapes["ema_sum"] = shapes["codebook"]
    if kind == "fsq":
        shapes |= dict.fromkeys(("reach", "offset", "shift", "width"), (latents,))
    return {f"bottleneck.{name}": shape for name, shape in shapes.items()}


def _conditioner(config: ModelConfig) -> dict[str, Shape]:
    """Weights of the conditioner's convolutions; a transposed one has its inputs first."""
    decoder = config.decoder
    channels = decoder.conditioning_channels
    joined = channels + decoder.speaker_dim
    shapes: dict[str, Shape] = {"mix": (channels, config.conditions, 3)}
    if decoder.upsampling == "linear":
        return shapes | {"frames.0": (channels, joined, 3), "frames.1": (channels, channels, 3)}
    kernels = [kernel for kernel, _ in TRANSPOSED[1 if config.inverter else UNIT_FRAMES]]
    for index, kernel in enumerate(kernels):
        shapes[f"upsample.{index}"] = (joined if index == 0 else channels, channels, kernel)
    return shapes


def _norm(name: str, channels: int) -> dict[str, Shape]:
    vectors = ("weight", "bias", "running_mean", "running_var")
    shapes: dict[str, Shape] = {f"{name}.{vector}": (channels,) for vector in vectors}
    return shapes | {f"{name}.num_batches_tracked": ()}


def _wavenet(config: ModelConfig) -> dict[str, Shape]:
    decoder, levels = config.decoder, config.audio.levels
    residual, gate = decoder.residual_channels, decoder.gate_channels
    skip, count = decoder.skip_channels, decoder.blocks * decoder.layers
    shapes: dict[str, Shape] = {"embedding.weight": (levels, residual)}
    for index in range(count):
        layer = f"layers.{index}"
        shapes[f"{layer}.dilated.weight"] = (2 * gate, decoder.kernel_size * residual)
        shapes[f"{layer}.condition.weight"] = (2 * gate, decoder.conditioning_channels)
        shapes[f"{layer}.condition.bias"] = (2 * gate,)
        if index < count - 1:
            shapes[f"{layer}.residual.weight"] = (residual, gate)
            shapes[f"{layer}.residual.bias"] = (residual,)
    for name, outputs, inputs in (
        ("skip", skip, count * gate),
        ("hidden", skip, skip),
        ("logits", levels, skip),
    ):
        shapes[f"{name}.weight"] = (outputs, inputs)
        shapes[f"{name}.bias"] = (outputs,)
    return shapes


def parse_tensors(data: bytes, where: str) -> Tensors:
    """The tensors of a safetensors file; ModelError if it is not one."""
    header = int.from_bytes(data[:8], "little")
    if _MAX_HEADER < header < len(data):  # a longer one is a lie that is found below
        raise ModelError(
            f"{where}: its header has {header:,} bytes; at most {_MAX_HEADER:,} are read."
        )
    try:
        return load(data)
    except (SafetensorError, KeyError, ValueError) as error:
        raise ModelError(f"{where}: not a whole safetensors file ({error}).") from None


def check_tensors(
    tensors: Mapping[str, npt.NDArray[Any]], shapes: Mapping[str, Shape], where: str
) -> None:
    """ModelError naming the first tensor that is missing, unexpected, of another shape or type,
    or not finite (and how many of its numbers are not)."""
    for name, shape in shapes.items():
        if name not in tensors:
            raise ModelError(f"{where}: the tensor {name} {list(shape)} is missing.")
    for name, tensor in tensors.items():
        if name not in shapes:
            raise ModelError(
                f"{where}: the tensor {name} {list(tensor.shape)} is not one of this model's."
            )
        if tensor.shape != shapes[name]:
            raise ModelError(
                f"{where}: the tensor {name} has shape {list(tensor.shape)}, where the model's "
                f"configuration needs {list(shapes[name])}."
            )
        wanted = np.dtype(_SPECIAL_TYPES.get(name.rpartition(".")[2], np.float32))
        if tensor.dtype != wanted:
            raise ModelError(f"{where}: the tensor {name} is {tensor.dtype}, expected {wanted}.")
        bad = int(np.count_nonzero(~np.isfinite(tensor)))
        if bad:
            raise ModelError(
                f"{where}: the tensor {name} has {bad:,} of {tensor.size:,} numbers that are NaN "
                "or infinite."
            )
