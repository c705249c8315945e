"""Checkpoints: folders of safetensors and JSON that are either whole or not there.

``step-000010000/`` holds config.yaml, speakers.json, model.safetensors, average.safetensors
(ready for use in evaluation mode), optimizer.safetensors and checkpoint.json, which carries the
position, the last validation's figures and the sha256 of the others. A checkpoint is written
beside its place, synced, renamed, and the parent synced: losing power leaves the one before.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from vconv.config import Config, dump_yaml, load_config
from vconv.errors import ModelError, SetupError, UsageError
from vconv.weights import Shape, Tensors, check_tensors, parse_tensors

from .optimizer import slots
from .state import TrainState

FORMAT_VERSION = 1
_NAME = re.compile(r"step-(\d{9})")
_HEADER = "checkpoint.json"


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint whose files have been found whole."""

    path: Path
    header: Mapping[str, Any]

    @property
    def step(self) -> int:
        return int(self.header["step"])

    @property
    def config(self) -> Config:
        try:
            return load_config(self.path / "config.yaml")
        except UsageError as error:
            raise ModelError(str(error)) from None

    @property
    def speakers(self) -> list[str]:
        path = self.path / "speakers.json"
        try:
            names = json.loads(path.read_text("utf-8"))
        except (OSError, ValueError, RecursionError) as error:
            raise ModelError(f"{path}: cannot be read ({error}).") from None
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise ModelError(f"{path}: is damaged: it is no list of names.")
        return names

    @classmethod
    def open(cls, path: Path) -> Checkpoint:
        """Check a checkpoint folder; ModelError names the file that is missing or damaged."""
        try:
            text = (path / _HEADER).read_text("utf-8")
            header = json.loads(text)
            version = header["format_version"]
            if version != FORMAT_VERSION:  # before all that another format may have otherwise
                raise ModelError(
                    f"{path}: checkpoint format {version!r} is not known; this version of vconv "
                    f"reads format {FORMAT_VERSION}."
                )
            files, step = dict(header["files"]), int(header["step"])
        except OSError as error:
            reason = (error.strerror or str(error)).lower()
            raise ModelError(f"{path}: {_HEADER} is missing or damaged ({reason}).") from None
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            what = f"{type(error).__name__}: {error}"
            raise ModelError(f"{path}: {_HEADER} is missing or damaged ({what}).") from None
        if step < 0:
            raise ModelError(f"{path}: {_HEADER} is damaged (its step is {step}).")
        # Byte for byte: 1e-05 and 1E-05 are one value, and one of them is a flipped bit.
        if header.get("digest") != _digest(header) or text != _text(header):
            raise ModelError(f"{path}: {_HEADER} is damaged (its digest does not match).")
        for name, digest in files.items():
            try:
                found = _sha256(path / name)
            except FileNotFoundError:
                raise ModelError(f"{path}: {name} is missing.") from None
            except OSError as error:
                raise ModelError(f"{path}: {name} cannot be read ({error.strerror}).") from None
            if found != digest:
                raise ModelError(f"{path}: {name} is damaged (its sha256 does not match).")
        return cls(path, header)

    def restore(self, state: TrainState) -> None:
        """Put the stored tensors and the step into a state of the same configuration."""
        load_network(state.model, self.path / "model.safetensors")
        load_network(state.average, self.path / "average.safetensors")
        parameters = dict(state.model.named_parameters())
        path = self.path / "optimizer.safetensors"
        moments = _read(path)
        # Of a parameter that was never given a gradient there are none; of another, all.
        present = {key.rpartition("/")[0] for key in moments}
        shapes: dict[str, Shape] = {}
        for name in parameters.keys() & present:
            shape = tuple(parameters[name].shape)
            shapes |= {
                f"{name}/{slot}": () if slot == "step" else shape
                for slot in slots(state.optimizer, parameters[name])
            }
        check_tensors(moments, shapes, str(path))
        if self.step and not moments:
            raise ModelError(f"{path}: has no tensors; an optimiser without its moments is none.")
        kept: dict[str, dict[str, Tensor]] = {}
        for key, array in moments.items():
            name, _, slot = key.rpartition("/")
            kept.setdefault(name, {})[slot] = _tensor(array).to(parameters[name].device)
        for name, parameter in parameters.items():
            state.optimizer.state[parameter] = kept.get(name, {})
        state.step = self.step


def save_checkpoint(
    folder: Path,
    state: TrainState,
    config: Config,
    speakers: tuple[str, ...],
    facts: Mapping[str, Any],
) -> Path:
    """Write ``folder/step-XXXXXXXXX`` and return it; ``facts`` go into checkpoint.json.

    Raises SetupError when the disk is full or fails; the checkpoints before stand then.
    """
    target = folder / f"step-{state.step:09d}"
    partial = folder / f".{target.name}.partial"
    try:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        _write(partial, state, config, speakers, facts)
        if target.exists():  # a damaged one of the same step; replaced only by a whole one
            old = folder / f".{target.name}.old"
            shutil.rmtree(old, ignore_errors=True)
            target.rename(old)
            partial.rename(target)
            _sync_up(folder)
            shutil.rmtree(old)
        else:
            partial.rename(target)
            _sync_up(folder)
    except BaseException as error:
        shutil.rmtree(partial, ignore_errors=True)
        if isinstance(error, (OSError, SafetensorError)):
            raise SetupError(
                f"{target}: cannot be saved ({error}); the checkpoints before it stand, and the "
                "same command goes on from there."
            ) from error
        raise
    return target


def _write(
    partial: Path,
    state: TrainState,
    config: Config,
    speakers: tuple[str, ...],
    facts: Mapping[str, Any],
) -> None:
    (partial / "config.yaml").write_text(dump_yaml(config), "utf-8")
    (partial / "speakers.json").write_text(json.dumps(list(speakers), indent=1) + "\n", "utf-8")
    save_file(_stored(state.model), partial / "model.safetensors")
    save_file(_stored(state.average), partial / "average.safetensors")
    save_file(_moments(state), partial / "optimizer.safetensors")
    files = sorted(path.name for path in partial.iterdir())
    header: dict[str, Any] = {
        "format_version": FORMAT_VERSION,
        "step": state.step,
        **facts,
        "files": {name: _sha256(partial / name) for name in files},
    }
    header["digest"] = _digest(header)
    (partial / _HEADER).write_text(_text(header), "utf-8")
    for path in [*partial.iterdir(), partial]:
        sync(path)


def newest(folder: Path) -> tuple[Checkpoint | None, list[str]]:
    """The newest whole checkpoint below a folder, and a sentence for each damaged newer one."""
    damaged: list[str] = []
    for path in reversed(listed(folder)):
        try:
            return Checkpoint.open(path), damaged
        except ModelError as error:
            damaged.append(str(error))
    return None, damaged


def retain(folder: Path, *, keep_last: int, keep_best: int) -> None:
    """Remove all but the newest and, by held-out NLL, the best checkpoints.

    The newest whole one is read back first; damaged ones after it do not count, or those that a
    run goes on from would make room for them.
    """
    found, _ = newest(folder)
    if found is None:
        return
    paths = [path for path in listed(folder) if path.name <= found.path.name]
    scores: list[tuple[float, Path]] = []
    for path in paths:
        try:
            header = json.loads((path / _HEADER).read_text("utf-8"))
            scores.append((float(header["metrics"]["heldout_nll"]), path))
        except (OSError, ValueError, KeyError, TypeError):
            continue  # not validated, or damaged: it can only stay as one of the newest
    best = [path for _, path in sorted(scores, key=lambda entry: entry[0])[:keep_best]]
    # Renamed first: a folder half removed must not look like a checkpoint.
    doomed = [
        path.rename(path.with_name(f".{path.name}.old"))
        for path in paths[:-keep_last]
        if path not in best
    ]
    if doomed:
        sync(folder)
    for path in doomed:
        shutil.rmtree(path)


def sweep(folder: Path) -> None:
    """Remove what a killed process left half-written or half-removed."""
    if folder.is_dir():
        for path in folder.glob(".step-*"):
            shutil.rmtree(path, ignore_errors=True)


def is_name(name: str) -> bool:
    """Whether a checkpoint's folder may be called so."""
    return _NAME.fullmatch(name) is not None


def listed(folder: Path) -> list[Path]:
    """The checkpoints below a folder, the oldest first; damaged ones too."""
    if not folder.is_dir():
        return []
    return sorted(path for path in folder.iterdir() if is_name(path.name))


def _stored(network: torch.nn.Module) -> dict[str, Tensor]:
    return {name: t.detach().cpu().contiguous() for name, t in network.state_dict().items()}


def _moments(state: TrainState) -> dict[str, Tensor]:
    tensors = {}
    for name, parameter in state.model.named_parameters():
        for slot, value in state.optimizer.state.get(parameter, {}).items():
            tensors[f"{name}/{slot}"] = value.detach().cpu().contiguous()
    return tensors


def load_network(network: torch.nn.Module, path: Path) -> None:
    """Put the tensors of a checkpoint's file into a network; ModelError where they do not fit."""
    arrays = _read(path)
    shapes = {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
    check_tensors(arrays, shapes, str(path))
    network.load_state_dict({name: _tensor(array) for name, array in arrays.items()})


def _read(path: Path) -> Tensors:
    try:
        return parse_tensors(path.read_bytes(), str(path))
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise ModelError(f"{path}: cannot be read ({reason}).") from None


def _tensor(array: NDArray[Any]) -> Tensor:
    return torch.from_numpy(np.array(array))


def _text(header: Mapping[str, Any]) -> str:
    return json.dumps(header, indent=1, sort_keys=True) + "\n"


def _digest(header: Mapping[str, Any]) -> str:
    rest = {key: value for key, value in header.items() if key != "digest"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        digest = hashlib.sha256()
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def sync(path: Path) -> None:
    """Make a file's bytes, or a folder's entries, outlast a loss of power."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _sync_up(folder: Path) -> None:
    """Sync a folder and those above it, the run's own among them: each may be new."""
    for place in (folder, *folder.parents):
        with suppress(PermissionError):  # somebody else's, hence not new
            sync(place)
