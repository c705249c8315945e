"""encoder.onnx and conditioner.onnx.

B batch, T samples, U units, D latent width, E speaker width, C conditioning channels, F
conditioning steps, L layers, G gate channels.

Exported without the exporter's optimiser, which folds batch norm into convolutions and constants
into new ones. So every weight is in the file under its eager name with its eager numbers, and
``vconv verify`` can compare them one by one; onnxruntime folds them when it loads the file. Only
the arithmetic on shapes is folded here.
"""

from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import onnx
import onnx_ir
import torch
from onnxscript import optimizer
from torch import Tensor, nn

from vconv.geometry import Span
from vconv.nn.autoencoder import Autoencoder

from .golden import handed_over

OPSET = 20


class EncoderGraph(nn.Module):
    """waveform [B, T] -> codes [B, U] (-1 without a codebook), latents [B, U, D] (quantised), and
    of a network with pitch [B, U, 2]: log2 of F0 in Hz, voicing."""

    def __init__(self, network: Autoencoder) -> None:
        super().__init__()
        self.features = network.features
        self.encoder = network.encoder
        self.bottleneck = network.bottleneck
        self.pitch = network.pitch

    def forward(self, waveform: Tensor) -> tuple[Tensor, ...]:
        latents = self.bottleneck.latents(self.encoder(self.features(waveform)))
        codes, quantised = self.bottleneck.quantise(latents)
        outputs = codes, quantised.transpose(1, 2)
        return outputs if self.pitch is None else (*outputs, self.pitch(waveform).transpose(1, 2))


class ConditionerGraph(nn.Module):
    """latents [B, U, D] (D + 2 with pitch: see ``golden.joined``), speaker [B, E] -> every layer's
    projection [B, F, L * 2G], or the channels [B, F, C] where F is at the sample rate."""

    def __init__(self, network: Autoencoder) -> None:
        super().__init__()
        self.decoder = network.decoder

    def forward(self, latents: Tensor, speaker: Tensor) -> Tensor:
        channels = self.decoder.conditioner(latents.transpose(1, 2), speaker)
        return handed_over(self.decoder.wavenet, channels)


def export_encoder(network: Autoencoder, path: Path, metadata: Mapping[str, Any]) -> None:
    """Write encoder.onnx of a network in evaluation mode; B and T are free."""
    samples = len(network.geometry.unit_inputs(Span(0, 3)))
    names = ("codes", "latents") if network.pitch is None else ("codes", "latents", "pitch")
    _export(
        EncoderGraph(network),
        path,
        {"waveform": torch.zeros(2, samples)},
        dynamic={"waveform": {0: "batch", 1: "samples"}},
        outputs={name: {0: "batch", 1: "units"} for name in names},
        metadata=metadata,
    )


def export_conditioner(network: Autoencoder, path: Path, metadata: Mapping[str, Any]) -> None:
    """Write conditioner.onnx of a network in evaluation mode; B and U are free."""
    units = network.geometry.plan(network.geometry.unit_hop).units + 3
    latents = torch.zeros(2, units, network.decoder.conditioner.mix.in_channels)
    _export(
        ConditionerGraph(network),
        path,
        {"latents": latents, "speaker": torch.zeros(2, network.speakers.embedding_dim)},
        dynamic={"latents": {0: "batch", 1: "units"}, "speaker": {0: "batch"}},
        outputs={"conditioning": {0: "batch", 1: "steps"}},
        metadata=metadata,
    )


Axes = Mapping[str, Mapping[int, str]]


def _export(
    graph: nn.Module,
    path: Path,
    inputs: Mapping[str, Tensor],
    *,
    dynamic: Axes,
    outputs: Axes,
    metadata: Mapping[str, Any],
) -> None:
    graph = graph.eval().requires_grad_(False)
    with _quiet():
        program = torch.onnx.export(
            graph,
            tuple(inputs.values()),
            input_names=list(inputs),
            output_names=list(outputs),
            dynamic_shapes={name: dict(axes) for name, axes in dynamic.items()},
            opset_version=OPSET,
            dynamo=True,
            optimize=False,
            verbose=False,
        )
        assert program is not None
        model = _fold_shapes(program.model)
    proto = onnx_ir.to_proto(model)
    _name_axes(proto.graph.output, outputs)
    onnx.helper.set_model_props(proto, {key: json.dumps(value) for key, value in metadata.items()})
    onnx.checker.check_model(proto, full_check=True)
    path.write_bytes(proto.SerializeToString(deterministic=True))


def _fold_shapes(model: onnx_ir.Model) -> onnx_ir.Model:
    """Fold what is computed from constants alone, but nothing that reads a weight."""
    weights = set(model.graph.initializers)

    def foldable(node: onnx_ir.Node) -> bool | None:
        reads = any(x is not None and x.name in weights for x in node.inputs)
        return False if reads else None  # None: as the optimiser sees fit

    optimizer.fold_constants(model, onnx_shape_inference=True, should_fold=foldable)
    optimizer.remove_unused_nodes(model)
    # Each node carries the source lines, with paths of this machine, that it came from.
    model.metadata_props.clear()
    model.graph.metadata_props.clear()
    for node in model.graph:
        node.metadata_props.clear()
        for value in node.outputs:
            value.metadata_props.clear()
    for value in (*model.graph.inputs, *model.graph.initializers.values()):
        value.metadata_props.clear()
    return model


def _name_axes(values: Any, names: Axes) -> None:
    """Plain names for the outputs' axes, where the exporter writes formulas."""
    for value in values:
        for axis, name in names[value.name].items():
            value.type.tensor_type.shape.dim[axis].dim_param = name


@contextmanager
def _quiet() -> Iterator[None]:
    """The exporter's own warnings (of torch's internals, of torchvision missing) help nobody."""
    log = logging.getLogger("torch.onnx")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        log.setLevel(level)
