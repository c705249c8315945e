"""A tiny random model: the checkpoint a training run would leave, and its export, made once."""

from __future__ import annotations

import atexit
import functools
import hashlib
import json
import os
import shutil
import tempfile
from pathlib import Path

import numpy as np

from vconv.config import Config, dump_yaml
from vconv.weights import expected_shapes

SPEAKERS = ("ada", "bea", "carl")
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


def random_tensors(seed: int = 0) -> dict[str, np.ndarray]:
    """Weights under which every part's signal stays near 1, batch-norm statistics that matter,
    and a codebook among the encodings."""
    random = np.random.default_rng(seed)
    tensors: dict[str, np.ndarray] = {}
    for name, shape in expected_shapes(CONFIG.model, len(SPEAKERS)).items():
        last = name.rpartition(".")[2]
        if last == "started":
            tensors[name] = np.array(True)
        elif last == "num_batches_tracked":
            tensors[name] = np.array(7, np.int64)
        elif last in ("running_var", "std"):
            tensors[name] = random.uniform(0.5, 2.0, shape).astype(np.float32)
        elif ".norm." in name and last == "weight":
            tensors[name] = random.uniform(0.8, 1.5, shape).astype(np.float32)
        else:
            scale = 1.0 if len(shape) == 1 else 1.5 / np.sqrt(np.prod(shape[1:]))
            if name.endswith(("codebook", "speakers.weight", "embedding.weight")):
                scale = 1.0
            tensors[name] = (scale * random.standard_normal(shape)).astype(np.float32)
    tensors["features.mean"] -= 4  # log-mel of speech
    return tensors


def write_checkpoint(folder: Path, tensors: dict[str, np.ndarray] | None = None) -> Path:
    """A checkpoint's folder as vconv.train leaves it, but for what an export does not read."""
    from safetensors.numpy import save

    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(dump_yaml(CONFIG), "utf-8")
    (folder / "speakers.json").write_text(json.dumps(SPEAKERS), "utf-8")
    (folder / "average.safetensors").write_bytes(save(tensors or random_tensors()))
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


@functools.cache
def exported() -> Path:
    """The bundle, exported by the project's own exporter once per process. Not to be changed."""
    from vconv.export.bundle import export_run

    folder = Path(tempfile.mkdtemp(prefix="vconv-tests-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    run = folder / "runs" / "tiny"
    write_checkpoint(run / "checkpoints" / "step-000000020")
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
