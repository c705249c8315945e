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

from .config import ModelConfig
from .errors import ModelError

Tensors = dict[str, npt.NDArray[Any]]
Shape = tuple[int, ...]

FEATURE_CHANNELS = {"logmel80": 80}
# The encoder's nine kernels (Chorowski et al. 2019, section III).
_ENCODER_KERNELS = (3, 3, 4, 3, 3, 1, 1, 1, 1)
_SPECIAL_TYPES = {"num_batches_tracked": np.int64, "started": np.bool_}


def expected_shapes(config: ModelConfig, n_speakers: int) -> dict[str, Shape]:
    """Every tensor of the network's state and its shape."""
    channels = FEATURE_CHANNELS[config.features.kind]
    width, units, decoder = config.encoder.width, config.bottleneck, config.decoder
    shapes: dict[str, Shape] = {"features.mean": (channels,), "features.std": (channels,)}
    for index, kernel in enumerate(_ENCODER_KERNELS):
        inputs = channels if index == 0 else width
        shapes[f"encoder.layers.{index}.conv.weight"] = (width, inputs, kernel)
        shapes |= _norm(f"encoder.layers.{index}.norm", width)
    shapes["bottleneck.project.weight"] = (units.dim, width, 1)
    shapes |= _norm("bottleneck.norm", units.dim)
    shapes["bottleneck.codebook"] = (units.codebook_size, units.dim)
    shapes["bottleneck.ema_count"] = (units.codebook_size,)
    shapes["bottleneck.ema_sum"] = (units.codebook_size, units.dim)
    shapes["bottleneck.started"] = ()
    shapes["speakers.weight"] = (n_speakers, decoder.speaker_dim)
    conditioning = decoder.conditioning_channels
    for name, inputs in (
        ("mix", units.dim),
        ("frames.0", conditioning + decoder.speaker_dim),
        ("frames.1", conditioning),
    ):
        shapes[f"decoder.conditioner.{name}.weight"] = (conditioning, inputs, 3)
        shapes[f"decoder.conditioner.{name}.bias"] = (conditioning,)
    wavenet = _wavenet(config)
    return shapes | {f"decoder.wavenet.{name}": shape for name, shape in wavenet.items()}


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
