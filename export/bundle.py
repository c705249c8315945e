"""Writing a bundle: everything is made beside its place, verified there, and then renamed."""

from __future__ import annotations

import hashlib
import logging
import re
import secrets
import shutil
from collections.abc import Mapping, Sequence
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from platform import python_version
from typing import Any

import numpy as np
from safetensors.numpy import save

from vconv.audio import SAMPLE_RATE, read, write_atomic
from vconv.bundle import CONDITIONER, DECODER, ENCODER, GOLDEN, SAMPLES, SPEAKERS, WEIGHTS
from vconv.errors import ModelError, SetupError, UsageError
from vconv.manifest import (
    MANIFEST,
    DataInfo,
    FileEntry,
    Manifest,
    Reduced,
    TrainingInfo,
    describe,
    seal,
)

from .checkpoint import Checkpoint, find_checkpoint, load_checkpoint
from .comparison import Comparison
from .golden import make_golden
from .onnx import export_conditioner, export_encoder
from .precision import Windows, precision_costs
from .torchscript import export_decoder
from .verify import verify
from .verify_torch import network_of

CLIP_SECONDS = 2.5
_FADE_SECONDS = 0.02
_CLIP_SUFFIXES = (".wav", ".flac", ".ogg", ".mp3")
_TOOLS = (
    "vconv",
    "torch",
    "torchaudio",
    "onnx",
    "onnxscript",
    "onnxruntime-gpu",
    "onnxruntime",
    "numpy",
)
# Where the machine that trained kept its files, and what it did besides computing.
_LOCAL_SETTINGS = {"corpus", "device", "threads"}

log = logging.getLogger("vconv")


def export_run(
    run: str | Path,
    out: str | Path,
    *,
    checkpoint: str | Path | None = None,
    name: str | None = None,
    samples: str | Path | None = None,
    command: str | None = None,
    statement: str | None = None,
    licence: str | None = None,
    limits: str = "",
    quality: Mapping[str, float] | None = None,
    speech: tuple[Sequence[Windows], int] | None = None,
    input_level_db: float | None = None,
    overwrite: bool = False,
) -> list[Comparison]:
    """Export a training run's weight average as a bundle and verify it; what it returns passed.

    Args:
        run: ``runs/<name>`` (its newest whole checkpoint) or a checkpoint's folder.
        out: the bundle's folder, which appears only once it is complete and verified.
        checkpoint: another checkpoint of the run, by name (step-000010000) or path.
        name: the model's name; by default the run's.
        samples: a folder with a recording <speaker>.wav (or flac, ogg, mp3) of each voice, of
            which the first seconds are kept.
        command: how it was trained, for the manifest.
        statement: what it was trained on, for the manifest.
        licence: the terms of the training data, by default those that the corpus states.
        limits: what it is not fit for, for the manifest.
        quality: figures to add to the last validation's.
        speech: held-out windows and the samples of one, on which the reduced precisions are judged;
            without it none is offered.
        input_level_db: how loud held-out speech is, in dBFS, to which recordings will be brought;
            without it they are heard as they are.
        overwrite: replace a bundle that is at ``out``.

    Raises UsageError if ``out`` exists or cannot be written or a clip is missing, ModelError for a
    damaged checkpoint and for an export that does not pass; nothing is left at ``out`` then.
    """
    run, out = Path(run), Path(out)
    _check_place(out, overwrite)
    found = load_checkpoint(find_checkpoint(run, checkpoint))
    name = name or found.config.name
    data = DataInfo(
        statement=statement or f"Prepared corpus {Path(found.config.data.corpus).name}.",
        licence=licence if licence is not None else str(_corpus(found).get("licence", "")),
        hours=_corpus(found).get("hours"),
        corpus_digest=str(_corpus(found).get("digest", "")),
    )
    training = TrainingInfo(
        command=command or f"vconv train {found.config.name}.yaml",
        steps=int(found.header["step"]),
        samples_seen=int(found.header.get("samples_seen", 0)),
        settings=_settings(found),
    )
    figures = {**_figures(found), **(quality or {})}
    partial = out.parent / f".{out.name}.{secrets.token_hex(4)}.partial"
    try:
        partial.mkdir(parents=True)
        _write(partial, found, name, None if samples is None else Path(samples))
        manifest = Manifest(
            name=name,
            speakers=found.speakers,
            quality=figures,
            precisions=_precisions(found, speech),
            input_level_db=input_level_db,
            limits=limits,
            training=training,
            data=data,
            tools=_tools(),
            files=_entries(partial),
            **describe(found.config.model),
        )
        (partial / MANIFEST).write_bytes(seal(manifest))
        # Its own decoder.ts, written a moment ago, may run.
        made = verify(partial, trust_code=True)
        failed = [str(comparison) for comparison in made if not comparison.passed]
        if failed:
            raise ModelError(f"{out}: the export is not equal to what was trained: {failed[0]}.")
        _put(partial, out)
    except OSError as error:
        raise UsageError(f"{out}: cannot be written ({error.strerror or error}).") from None
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    log.info("%s: exported from %s", out, found.path)
    return made


def _precisions(
    checkpoint: Checkpoint, speech: tuple[Sequence[Windows], int] | None
) -> dict[Reduced, float]:
    """What each costs; of none that is known, nothing."""
    if speech is None:
        return {}
    model = checkpoint.config.model
    network = network_of(model, len(checkpoint.speakers), checkpoint.tensors)
    try:
        return precision_costs(network, model, *speech)
    except SetupError as error:
        log.warning("%s: no reduced precision is offered: %s", checkpoint.path, error)
        return {}


def _write(folder: Path, checkpoint: Checkpoint, name: str, samples: Path | None) -> None:
    """Every file of the bundle but its manifest."""
    model, tensors = checkpoint.config.model, checkpoint.tensors
    if samples is not None:  # first: a missing clip should not cost the time of all the rest
        _write_samples(folder / SAMPLES, checkpoint.speakers, samples)
    network = network_of(model, len(checkpoint.speakers), tensors)
    metadata: dict[str, Any] = {
        "name": name,
        "config": model.model_dump(mode="json"),
        "speakers": list(checkpoint.speakers),
        "tools": _tools(),
    }
    (folder / WEIGHTS).write_bytes(save(tensors))
    (folder / SPEAKERS).write_bytes(save({"vectors": tensors["speakers.weight"]}))
    export_encoder(network, folder / ENCODER, metadata)
    export_conditioner(network, folder / CONDITIONER, metadata)
    export_decoder(network, folder / DECODER, metadata)
    (folder / GOLDEN).write_bytes(make_golden(network, model.audio).to_bytes())


def _write_samples(folder: Path, speakers: tuple[str, ...], source: Path) -> None:
    if not source.is_dir():
        raise UsageError(f"{source}: not a folder with a recording of each voice.")
    folder.mkdir()
    for index, speaker in enumerate(speakers):
        safe = re.sub(r"[^A-Za-z0-9_-]+", "_", speaker)[:60]
        recording = _clip_of(source, speaker, safe)
        clip = read(recording)[: int(CLIP_SECONDS * SAMPLE_RATE)]
        fade = min(len(clip), int(_FADE_SECONDS * SAMPLE_RATE))
        clip[len(clip) - fade :] *= np.linspace(1, 0, fade, dtype=np.float32)
        with write_atomic(folder / f"{index:03d}-{safe}.ogg") as writer:
            writer.write(clip)


def _clip_of(source: Path, speaker: str, safe: str) -> Path:
    for stem in (speaker, safe):
        for suffix in _CLIP_SUFFIXES:
            path = source / f"{stem}{suffix}"
            if "/" not in stem and path.is_file():
                return path
    raise UsageError(f"{source}: has no recording {safe}.wav (or flac, ogg, mp3) of {speaker!r}.")


def _entries(folder: Path) -> dict[str, FileEntry]:
    entries = {}
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        data = path.read_bytes()
        entries[path.relative_to(folder).as_posix()] = FileEntry(
            size=len(data), sha256=hashlib.sha256(data).hexdigest()
        )
    return entries


def _check_place(out: Path, overwrite: bool) -> None:
    if not out.name:
        raise UsageError(f"{out}: give the bundle's folder a name.")
    if not out.exists() and not out.is_symlink():
        return
    if not overwrite:
        raise UsageError(f"{out}: exists already; remove it or use --overwrite.")
    if not (out / MANIFEST).is_file():
        raise UsageError(f"{out}: exists and is not a bundle; it is not overwritten.")


def _put(partial: Path, out: Path) -> None:
    """Rename into place; an old bundle steps aside first and is then removed."""
    if not out.exists():
        partial.rename(out)
        return
    old = partial.with_suffix(".old")
    out.rename(old)
    try:
        partial.rename(out)
    except OSError:
        old.rename(out)
        raise
    shutil.rmtree(old, ignore_errors=True)


def _corpus(checkpoint: Checkpoint) -> dict[str, Any]:
    corpus = checkpoint.header.get("corpus")
    return corpus if isinstance(corpus, dict) else {}


def _figures(checkpoint: Checkpoint) -> dict[str, float]:
    metrics = checkpoint.header.get("metrics")
    metrics = metrics if isinstance(metrics, dict) else {}
    return {
        k: float(v) for k, v in metrics.items() if isinstance(v, (int, float)) and np.isfinite(v)
    }


def _settings(checkpoint: Checkpoint) -> dict[str, Any]:
    config = checkpoint.config
    return {
        section: {k: v for k, v in part.model_dump(mode="json").items() if k not in _LOCAL_SETTINGS}
        for section, part in (("data", config.data), ("train", config.train))
    }


def _tools() -> dict[str, str]:
    tools = {"python": python_version()}
    for tool in _TOOLS:
        with suppress(PackageNotFoundError):
            tools[tool] = version(tool)
    return tools
