"""Tiny random models of the whole family: the checkpoints that training runs would leave, and
their exports, each made once."""

from __future__ import annotations

import atexit
import functools
import hashlib
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from vconv.config import Config, ModelConfig, dump_yaml

SPEAKERS = ("ada", "bea", "carl")

# What each member's model section says differently from a configuration of the first kind.
MEMBERS: Mapping[str, Mapping[str, Any]] = {
    "vq": {},
    "vq_gradient": {"bottleneck": {"update": "gradient"}},
    "ae": {"bottleneck": {"kind": "ae"}},
    "vae": {"bottleneck": {"kind": "vae"}},
    "fsq": {"bottleneck": {"kind": "fsq", "levels": (4, 3, 5)}},
    "pitch": {"decoder": {"pitch": True}},
    "kernel_3": {"decoder": {"kernel_size": 3}},
    "instance_norm": {"encoder": {"instance_norm": 11}},
    "paper": {"features": {"kind": "mfcc39"}, "decoder": {"upsampling": "transposed"}},
    "inverter": {"kind": "inverter"},
    "transposed_inverter": {
        "kind": "inverter",
        "features": {"kind": "mfcc39"},
        "decoder": {"upsampling": "transposed"},
    },
}

CONFIG = Config.model_validate(
    {
        "name": "tiny",
        "model": {
            "encoder": {"width": 12},
            "bottleneck": {"dim": 6, "codebook_size": 16, "warmup_steps": 4},
            "decoder": {
                "residual_channels": 8,
                "gate_channels": 6,
                "skip_channels": 10,
                "blocks": 2,
                "layers": 4,
                "conditioning_channels": 7,
                "speaker_dim": 5,
            },
        },
        "data": {"corpus": "corpora/tiny"},
    }
)


def varied(model: ModelConfig, *changes: Mapping[str, Any]) -> ModelConfig:
    """The configuration with other values for some keys of some sections."""
    values = model.model_dump()
    for change in changes:
        for key, value in change.items():
            values[key] = {**values[key], **value} if isinstance(value, Mapping) else value
    return ModelConfig.model_validate(values)


def config_of(member: str) -> Config:
    """The tiny configuration of a member of the family."""
    return CONFIG.model_copy(update={"model": varied(CONFIG.model, MEMBERS[member])})


def random_tensors(member: str = "vq") -> dict[str, np.ndarray]:
    """The member's weights; the same at every call."""
    return tensors_of(config_of(member).model)


def tensors_of(model: ModelConfig) -> dict[str, np.ndarray]:
    """Random weights of which every part matters: batch-norm statistics near those of the signals
    (so that nothing saturates) but not equal to them, and a codebook among the encodings."""
    import torch

    from vconv.export.golden import golden_signal
    from vconv.nn.autoencoder import build_autoencoder

    torch.manual_seed(1)
    random = np.random.default_rng(1)
    network = build_autoencoder(model, len(SPEAKERS))
    wav = torch.from_numpy(golden_signal(network.geometry))[None]
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            # Everywhere about as large as in a trained network.
            parts = {"wavenet": 2, "project": 0.5, "upsample": 1}
            parameter.mul_(next((x for part, x in parts.items() if part in name), 1.5))
            if ".norm." in name:
                parameter.add_(0.2 * torch.randn_like(parameter))
        frames = network.features.raw(wav)[0]
        network.features.mean.copy_(frames.mean(1))
        network.features.std.copy_(frames.std(1))
        for module in network.modules():
            if isinstance(module, torch.nn.BatchNorm1d):
                module.momentum = 1.0
        if network.pitch is not None:
            network.pitch.speaker_means.copy_(torch.tensor([100.0, 140.0, 250.0]).log2())
        latents = network.latents(wav)[0].T
        if hasattr(network.bottleneck, "started"):
            size = len(network.bottleneck.codebook)
            spread = random.choice(len(latents), size, replace=size > len(latents))
            rows = latents[torch.from_numpy(spread)] + 0.1
            if size > len(latents):  # no two alike
                rows += 0.3 * torch.randn_like(rows)
            network.bottleneck.codebook.copy_(rows)
            network.bottleneck.started.fill_(True)
    tensors = {
        name: np.array(tensor.detach().numpy()) for name, tensor in network.state_dict().items()
    }
    for name, tensor in tensors.items():
        if name.endswith(("running_mean", "running_var", "ema_count", "ema_sum")):
            tensors[name] = (tensor * random.uniform(0.9, 1.1, tensor.shape)).astype(np.float32)
    return tensors


def write_checkpoint(
    folder: Path, tensors: Mapping[str, np.ndarray] | None = None, member: str = "vq"
) -> Path:
    """A checkpoint's folder as vconv.train leaves it, but for what an export does not read."""
    return write_checkpoint_of(folder, config_of(member), tensors or random_tensors(member))


def write_checkpoint_of(folder: Path, config: Config, tensors: Mapping[str, np.ndarray]) -> Path:
    """The same of any configuration."""
    from safetensors.numpy import save

    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(dump_yaml(config), "utf-8")
    (folder / "speakers.json").write_text(json.dumps(SPEAKERS), "utf-8")
    (folder / "average.safetensors").write_bytes(save(dict(tensors)))
    header = {
        "format_version": 1,
        "step": 20,
        "samples_seen": 51200,
        "metrics": {"heldout_nll": 2.5, "probe_latents": 0.4, "probe_speaker": 0.3},
        "corpus": {"digest": "ab" * 32, "licence": "CC0-1.0", "hours": 0.1},
        "files": {
            path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()
        },
    }
    header["digest"] = hashlib.sha256(json.dumps(header, sort_keys=True).encode()).hexdigest()
    (folder / "checkpoint.json").write_text(json.dumps(header, indent=1, sort_keys=True), "utf-8")
    return folder


def write_clips(folder: Path) -> Path:
    """Three seconds of a tone for each speaker."""
    import soundfile

    folder.mkdir()
    for index, speaker in enumerate(SPEAKERS):
        tone = 0.1 * np.sin(np.arange(48000) * (0.05 + 0.01 * index))
        soundfile.write(folder / f"{speaker}.wav", tone, 16000)
    return folder


def exported(member: str = "vq") -> Path:
    """The member's bundle, exported by the project's own exporter once per process. Not to be
    changed."""
    return _exported(member)


@functools.cache
def _exported(member: str) -> Path:
    from vconv.export.bundle import export_run

    folder = Path(tempfile.mkdtemp(prefix="vconv-tests-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    run = folder / "runs" / "tiny"
    write_checkpoint(run / "checkpoints" / "step-000000020", member=member)
    export_run(run, folder / "tiny", samples=write_clips(folder / "clips"))
    os.chmod(folder / "tiny", 0o755)
    return folder / "tiny"


def reseal(folder: Path, **changes: object) -> Path:
    """Make a changed bundle consistent again, as a forger would: hashes, sizes and digest; with
    other values for fields of the manifest."""
    from vconv.manifest import MANIFEST, FileEntry, Manifest, seal

    manifest = Manifest.model_validate_json((folder / MANIFEST).read_bytes())
    files = {
        path.relative_to(folder).as_posix(): FileEntry(
            size=path.stat().st_size, sha256=hashlib.sha256(path.read_bytes()).hexdigest()
        )
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != MANIFEST
    }
    (folder / MANIFEST).write_bytes(seal(manifest.model_copy(update={"files": files, **changes})))
    return folder


def main() -> None:
    """Write the bundle that tests/export keeps of the newest format, packed (tests/export/format-N
    becomes format-N.tar.xz): 32 levels, few channels, and what is new in the format."""
    from vconv.export.bundle import export_run

    target = Path(sys.argv[1])
    newest = ({"audio": {"levels": 32}}, MEMBERS["fsq"], MEMBERS["pitch"])
    config = CONFIG.model_copy(update={"model": varied(CONFIG.model, *newest)})
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = Path(folder) / "step-000000020"
        write_checkpoint_of(checkpoint, config, tensors_of(config.model))
        for comparison in export_run(checkpoint, Path(folder) / target.name, name=target.name):
            print(comparison)
        shutil.make_archive(str(target), "xztar", folder, target.name)


if __name__ == "__main__":
    main()
