"""Reading what a training run leaves behind, as far as an export needs it.

A checkpoint folder holds config.yaml, speakers.json, average.safetensors (the weight average,
ready for use) and checkpoint.json with the step, the last validation's figures, the corpus and the
sha256 of the others.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vconv.config import Config, load_config
from vconv.errors import ModelError
from vconv.weights import Tensors, check_tensors, expected_shapes, parse_tensors

FORMAT_VERSION = 1
HEADER = "checkpoint.json"
_FILES = ("config.yaml", "speakers.json", "average.safetensors")
_NAME = re.compile(r"step-\d+")

log = logging.getLogger("vconv")


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint of which everything that an export reads has been found whole."""

    path: Path
    header: Mapping[str, Any]
    config: Config
    speakers: tuple[str, ...]
    tensors: Tensors


def find_checkpoint(run: Path, wanted: str | Path | None = None) -> Path:
    """The folder of a checkpoint: ``run`` itself, the one that is wanted (a path, or a name such
    as step-000010000), or the newest whole one of a run. ModelError if there is none."""
    if wanted is not None:
        named = run / "checkpoints" / str(wanted)
        return named if named.is_dir() else Path(wanted)
    if (run / HEADER).is_file() or _NAME.fullmatch(run.name):
        return run
    kept = run / "checkpoints"
    found = sorted(p for p in kept.glob("step-*") if _NAME.fullmatch(p.name))
    for path in reversed(found):
        try:
            _header(path)
            return path
        except ModelError as error:
            log.warning("%s Trying the one before it.", error)
    what = "every checkpoint is damaged" if found else "there is no checkpoint"
    raise ModelError(
        f"{run}: {what}; expected a run (with checkpoints/step-...) or a checkpoint's folder."
    )


def load_checkpoint(path: Path) -> Checkpoint:
    """Read a checkpoint; ModelError names the file that is missing or damaged, or the tensor
    that does not fit, and refuses a model that has no codebook yet."""
    header = _header(path)
    config = load_config(path / "config.yaml")
    try:
        speakers = tuple(map(str, json.loads((path / "speakers.json").read_text("utf-8"))))
    except (ValueError, TypeError, RecursionError) as error:
        raise ModelError(f"{path / 'speakers.json'}: not a list of names ({error}).") from None
    where = path / "average.safetensors"
    tensors = parse_tensors(where.read_bytes(), str(where))
    check_tensors(tensors, expected_shapes(config.model, len(speakers)), str(where))
    if not tensors.get("bottleneck.started", True):
        raise ModelError(
            f"{path}: its bottleneck has no codebook yet (it starts after "
            f"{config.model.bottleneck.warmup_steps:,} steps); train on before exporting."
        )
    return Checkpoint(path, header, config, speakers, tensors)


def _header(path: Path) -> dict[str, Any]:
    """checkpoint.json, once it and the files that an export reads match their hashes."""
    try:
        header = json.loads((path / HEADER).read_text("utf-8"))
        files, version, digest = dict(header["files"]), header["format_version"], header["digest"]
        rest = {key: value for key, value in header.items() if key != "digest"}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ModelError(f"{path / HEADER}: missing or damaged ({error}).") from None
    if version != FORMAT_VERSION:
        raise ModelError(
            f"{path}: checkpoint format {version} cannot be read; this vconv reads "
            f"{FORMAT_VERSION}."
        )
    if digest != hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest():
        raise ModelError(f"{path / HEADER}: damaged; its digest does not match.")
    for name in _FILES:
        try:
            found = hashlib.sha256((path / name).read_bytes()).hexdigest()
        except OSError as error:
            raise ModelError(f"{path / name}: cannot be read ({error.strerror}).") from None
        if found != files.get(name):
            raise ModelError(f"{path / name}: damaged; its sha256 does not match.")
    return dict(header)
