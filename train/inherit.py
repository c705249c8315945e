"""Starting a new run from another model's weights, as far as they mean the same in both.

What is taken over is decided part by part from the two configurations: those keys must agree that
shape the part or give its numbers their meaning (two blocks of four layers have the tensors of four
blocks of two, and other dilations). A part is taken whole or starts fresh.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vconv.bundle import Bundle, known_models
from vconv.config import Config, ModelConfig, flatten
from vconv.errors import ModelError, UsageError
from vconv.manifest import MANIFEST
from vconv.weights import Tensors, check_tensors, expected_shapes, parse_tensors

from .checkpoint import Checkpoint, newest
from .state import TrainState

# A new speaker's distance from the mean voice, in parts of a fresh vector's length: enough to tell
# new speakers apart. (The bundled model's 25 voices lie 0.8 of it from their mean.)
NEW_SPEAKER = 0.1
NAMES_SHOWN = 8

_LATENTS = "latent width"  # derived from several keys
_ENCODER = ("features.kind", "encoder.width", "encoder.instance_norm")
_CODEBOOK = {
    "vq": ("bottleneck.codebook_size", "bottleneck.update"),
    "fsq": ("bottleneck.levels",),
}
_CHANNELS = "decoder.conditioning_channels"
_WAVENET = (
    "audio.levels",
    "decoder.residual_channels",
    "decoder.gate_channels",
    "decoder.skip_channels",
    "decoder.blocks",
    "decoder.layers",
    "decoder.kernel_size",
)
_SPEAKERS = "speakers.weight"
_SIGNAL = ("audio.preemphasis", "audio.gain")


@dataclass(frozen=True)
class Source:
    """A model to start from: of a checkpoint the weight average, of a bundle its weights.

    ``tensors`` by their eager names; ``step`` and ``digest`` as it records them; ``skipped``: a
    sentence for each damaged checkpoint of the run that is newer.
    """

    where: Path
    config: ModelConfig
    speakers: tuple[str, ...]
    tensors: Mapping[str, Tensor]
    step: int
    digest: str
    skipped: tuple[str, ...] = ()


@dataclass(frozen=True)
class Part:
    """A part of the new network: its tensors, how many of their numbers are trained, and why it
    starts fresh ("" if it is taken over)."""

    name: str
    tensors: tuple[str, ...]
    parameters: int
    reason: str


@dataclass(frozen=True)
class Inheritance:
    """What a new run has taken over, and what it has not."""

    where: Path
    step: int
    digest: str
    parts: tuple[Part, ...]
    kept: tuple[str, ...]
    new: tuple[str, ...]
    dropped: tuple[str, ...]
    warnings: tuple[str, ...]

    def report(self) -> list[str]:
        """Lines for whoever starts the run."""
        taken = ", ".join(_size(part) for part in self.parts if not part.reason)
        lines = [f"weights of {self.where} (step {self.step:,})", f"taken over: {taken}"]
        fresh: dict[str, list[str]] = {}
        for part in self.parts:
            if part.reason:
                fresh.setdefault(part.reason, []).append(part.name)
        lines += [f"starts fresh: {', '.join(names)} ({why})" for why, names in fresh.items()]
        counts = []
        if self.kept:
            counts.append(f"{len(self.kept)} kept ({_listed(self.kept)})")
        if self.new:
            start = "starts" if len(self.new) == 1 else "start"
            counts.append(f"{len(self.new)} new {start} as the mean voice ({_listed(self.new)})")
        if self.dropped:
            counts.append(f"{len(self.dropped)} dropped")
        if counts:
            lines.append(f"speakers: {', '.join(counts)}")
        return lines + [f"warning: {warning}" for warning in self.warnings]

    def to_json(self) -> dict[str, Any]:
        """The record that the run keeps."""
        return {
            "where": str(self.where),
            "step": self.step,
            "digest": self.digest,
            "taken": {part.name: list(part.tensors) for part in self.parts if not part.reason},
            "fresh": {
                part.name: {"reason": part.reason, "tensors": list(part.tensors)}
                for part in self.parts
                if part.reason
            },
            "speakers": {
                "kept": list(self.kept),
                "new": list(self.new),
                "dropped": list(self.dropped),
            },
            "warnings": list(self.warnings),
        }


def find_source(text: str) -> Source:
    """The model that ``train.init_from`` names: the folder of a run (its newest whole checkpoint),
    of a checkpoint or of a bundle, or a known model's name.

    Raises UsageError if there is nothing of the kind, ModelError naming the file that is damaged.
    """
    path = Path(text)
    if any(os.path.exists(path / name) for name in ("checkpoint.json", "average.safetensors")):
        return _of_checkpoint(Checkpoint.open(path), ())
    found, damaged = newest(path / "checkpoints")
    if found is not None:
        return _of_checkpoint(found, tuple(damaged))
    if damaged:
        raise ModelError(f"{path}: every checkpoint is damaged; of the newest, {damaged[0]}")
    folder = path if os.path.exists(path / MANIFEST) else known_models().get(text)
    if folder is None:
        raise UsageError(
            f"train.init_from: {text!r} is no folder of a run with a checkpoint, of a checkpoint "
            f"or of an exported bundle, and no known model ({', '.join(known_models())})."
        )
    bundle = Bundle.open(folder)
    return Source(
        where=folder,
        config=bundle.config,
        speakers=tuple(bundle.speakers.names),
        tensors=_tensors(bundle.tensors),
        step=bundle.manifest.training.steps,
        digest=bundle.manifest.digest,
    )


@torch.no_grad()
def inherit(
    state: TrainState, source: Source, config: Config, speakers: Sequence[str]
) -> Inheritance:
    """Copy what fits into a fresh state's model and average; optimiser and step stay as they are.

    ``speakers``: the names of the state's speakers, in index order. Their mean pitches stay too:
    they were measured on the new corpus. Raises UsageError naming the differences when nothing
    fits; the state is then untouched.
    """
    parts = _parts(state, source, config.model)
    taken = [name for part in parts if not part.reason for name in part.tensors]
    if not taken:
        reasons = dict.fromkeys(reason for part in parts for reason in part.reason.split("; "))
        raise UsageError(
            f"train.init_from: nothing of {source.where} fits this model: {'; '.join(reasons)}."
        )
    own = state.model.state_dict()
    for name in taken:
        own[name].copy_(
            _voices(own[name], source, speakers) if name == _SPEAKERS else source.tensors[name]
        )
    state.average.load_state_dict(own)
    before, now = (source.speakers, speakers) if _SPEAKERS in taken else ((), ())
    return Inheritance(
        where=source.where,
        step=source.step,
        digest=source.digest,
        parts=parts,
        kept=tuple(name for name in now if name in before),
        new=tuple(name for name in now if name not in before),
        dropped=tuple(name for name in before if name not in now),
        warnings=source.skipped + _other_signal(source.config, config.model, parts),
    )


def _parts(state: TrainState, source: Source, config: ModelConfig) -> tuple[Part, ...]:
    """The new network's parts; a tensor belongs to the first pattern that its name begins with."""
    patterns = _reasons(source, config)
    tensors: dict[str, list[str]] = {name: [] for name, _, _ in patterns}
    for tensor in state.model.state_dict():
        for name, pattern, _ in patterns:
            if re.match(pattern, tensor):
                tensors[name].append(tensor)
                break
    sizes = {name: parameter.numel() for name, parameter in state.model.named_parameters()}
    return tuple(
        Part(name, tuple(own), sum(sizes.get(tensor, 0) for tensor in own), reason)
        for (name, _, reason), own in zip(patterns, tensors.values(), strict=True)
        if own
    )


def _reasons(source: Source, config: ModelConfig) -> list[tuple[str, str, str]]:
    """(part, pattern of its tensors' names, why it starts fresh) of every part there can be."""
    was, now = _facts(source.config), _facts(config)

    def differ(*keys: str) -> str:
        return "; ".join(
            f"{key} was {_shown(was[key])}, is {_shown(now[key])}"
            for key in keys
            if was[key] != now[key]
        )

    # Half a stack of convolutions is worth nothing, and what is stacked on it was made for it. A
    # bottleneck's projection is the same for all kinds but the vae's, which has two halves.
    encoder = differ("kind") or differ(*_ENCODER)
    kind = differ("bottleneck.kind")
    vae = "vae" in (was["bottleneck.kind"], now["bottleneck.kind"])
    bottleneck = encoder or (kind if vae else "") or differ(_LATENTS)
    codebook = bottleneck or kind or differ(*_CODEBOOK.get(str(now["bottleneck.kind"]), ()))
    if not codebook and not source.tensors.get("bottleneck.started", True):
        codebook = "the source has none yet"
    mix = differ("kind") or differ(_LATENTS, "decoder.pitch", _CHANNELS)
    # A speaker's vector means something to the layer that reads it only.
    joint = differ("decoder.upsampling", _CHANNELS, "decoder.speaker_dim")
    wavenet = differ(*_WAVENET)
    first, later = (
        ("frames.0", "frames.1")
        if config.decoder.upsampling == "linear"
        else ("upsample.0", "upsample.1-3")
    )
    conditioner = "decoder.conditioner."
    return [
        # Statistics belong to the first layer that reads the features.
        ("features", r"features\.", mix if config.inverter else encoder),
        ("encoder", r"encoder\.", encoder),
        ("bottleneck", r"bottleneck\.(project|norm)\.", bottleneck),
        ("bottleneck.codebook", r"bottleneck\.", codebook),
        ("speakers", r"speakers\.", joint),
        (f"{conditioner}mix", r"decoder\.conditioner\.mix\.", mix),
        (f"{conditioner}{first}", r"decoder\.conditioner\.\w+\.0\.", joint),
        (
            f"{conditioner}{later}",
            r"decoder\.conditioner\.",
            differ("decoder.upsampling", _CHANNELS),
        ),
        (
            "decoder.wavenet.condition",
            r"decoder\.wavenet\.layers\.\d+\.condition\.weight",
            wavenet or differ(_CHANNELS),
        ),
        ("decoder.wavenet", r"decoder\.wavenet\.", wavenet),
    ]


def _facts(config: ModelConfig) -> dict[str, Any]:
    return flatten(config) | {_LATENTS: config.latents}


def _voices(table: Tensor, source: Source, speakers: Sequence[str]) -> Tensor:
    """The table's rows as the source has them; a new speaker's is the source's mean voice and a
    little of the fresh row. table [N, E] -> [N, E]."""
    rows = source.tensors[_SPEAKERS].to(table.device)
    index = {name: row for row, name in enumerate(source.speakers)}
    mean = rows.mean(0)
    return torch.stack(
        [
            rows[index[name]] if name in index else mean + NEW_SPEAKER * fresh
            for name, fresh in zip(speakers, table, strict=True)
        ]
    )


def _other_signal(before: ModelConfig, now: ModelConfig, parts: Sequence[Part]) -> tuple[str, ...]:
    """Warnings of a decoder that has learned to say another signal."""
    if not any(part.name == "decoder.wavenet" and not part.reason for part in parts):
        return ()
    was, wanted = flatten(before), flatten(now)
    return tuple(
        f"the decoder has learned a signal of {key} {was[key]}, and {wanted[key]} is another one"
        for key in _SIGNAL
        if was[key] != wanted[key]
    )


def _of_checkpoint(checkpoint: Checkpoint, skipped: tuple[str, ...]) -> Source:
    config, speakers = checkpoint.config.model, checkpoint.speakers
    where = checkpoint.path / "average.safetensors"
    try:
        tensors = parse_tensors(where.read_bytes(), str(where))
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise ModelError(f"{where}: cannot be read ({reason}).") from None
    check_tensors(tensors, expected_shapes(config, len(speakers)), str(where))
    return Source(
        where=checkpoint.path,
        config=config,
        speakers=tuple(speakers),
        tensors=_tensors(tensors),
        step=checkpoint.step,
        digest=str(checkpoint.header["digest"]),
        skipped=skipped,
    )


def _tensors(arrays: Tensors) -> dict[str, Tensor]:
    return {name: torch.from_numpy(np.array(array)) for name, array in arrays.items()}


def _size(part: Part) -> str:
    tensors = f"{len(part.tensors)} tensor{'' if len(part.tensors) == 1 else 's'}"
    if not part.parameters:
        return f"{part.name} ({tensors})"
    millions = part.parameters >= 1_000_000
    count = f"{part.parameters / 1e6:.1f} M" if millions else f"{part.parameters:,}"
    return f"{part.name} ({tensors}, {count} parameters)"


def _shown(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(names[:NAMES_SHOWN])
    more = len(names) - NAMES_SHOWN
    return f"{shown} and {more} more" if more > 0 else shown
