"""Where a run goes on: its folder, the checkpoint to start from, what may have changed
since, and what becomes of the steps that are gone back on.
"""

from __future__ import annotations

import difflib
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from vconv.config import RESUMABLE, Config, flatten
from vconv.errors import InputError, ModelError, SetupError, UsageError
from vconv.manifest import MANIFEST

from . import checkpoint as checkpoints
from .checkpoint import Checkpoint
from .corpus import Corpus
from .take_windows import TakeWindows

_METRICS = "metrics.jsonl"
_ASIDE = "abandoned-at-"
# What a run that has not begun may leave: none of it is anybody's work.
_BEGINNINGS = {".lock", "lock.json", "config.yaml", "init_from.json"}


@contextmanager
def run_folder(folder: Path) -> Iterator[None]:
    """The folder of a run, made where it is new, and removed again when an error leaves before the
    run has begun. Raises SetupError when it cannot be written."""
    new = [place for place in (folder, *folder.parents) if not os.path.lexists(place)]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        yield
    except BaseException as error:
        if new and folder.is_dir() and {path.name for path in folder.iterdir()} <= _BEGINNINGS:
            shutil.rmtree(folder, ignore_errors=True)
            for place in new[1:]:
                with suppress(OSError):  # another run is in it by now
                    place.rmdir()
        if isinstance(error, OSError) and _is_inside(error, folder):
            reason = (error.strerror or str(error)).lower()
            raise SetupError(
                f"{folder}: cannot be written ({reason} at {error.filename}); run the command from "
                "a folder that can be."
            ) from error
        raise


def resume_point(folder: Path, resume: str) -> tuple[Checkpoint | None, list[str]]:
    """(the checkpoint to go on from, a sentence for each damaged newer one that was skipped).

    ``resume``: "auto", the run's newest whole one, if it has any; "never", none, and UsageError if
    there is one; or the path of a run or checkpoint. Raises UsageError when nothing is there,
    ModelError when all that is there is damaged.
    """
    if resume not in ("auto", "never"):
        return _of_path(resume)
    found, damaged = checkpoints.newest(folder / "checkpoints")
    aside = sorted((folder / "checkpoints").glob(f"{_ASIDE}*"))
    if found is None and not damaged and aside:
        raise UsageError(
            f"{folder}: all checkpoints of the run have been set aside; go on from one of them, "
            f"such as one in {aside[-1]}, with --resume, or choose another --run."
        )
    if found is None and damaged:
        raise ModelError(
            f"{folder}: every checkpoint of the run is damaged, the newest: {damaged[0]} Move them "
            "away to start anew."
        )
    if found is not None and resume == "never":
        raise UsageError(
            f"{folder}: the run exists, at step {found.step:,}; choose another --run or drop "
            "--resume never to go on."
        )
    return found, damaged


def refuse_changes(start: Checkpoint, config: Config) -> None:
    """UsageError naming the first key that may not be another when a run is resumed."""
    before, now = flatten(start.config), flatten(config)
    before["train.microbatches"] = before["train.microbatches"] or 1  # null: one process's
    for key, value in now.items():
        if key not in RESUMABLE and before.get(key) != value:
            raise UsageError(
                f"{key} was {before.get(key)!r} in {start.path} and is {value!r} now: it may not "
                "change when a run is resumed; choose another --run to start anew."
            )


def same_corpus(start: Checkpoint, corpus: Corpus) -> None:
    """InputError unless it is the corpus that the checkpoint was trained on."""
    trained = start.header.get("corpus")
    if not isinstance(trained, dict) or trained.get("digest") != corpus.digest:
        raise InputError(
            f"{corpus.path}: is not the corpus that {start.path} was trained on (its digest "
            "differs); resume with that one, or choose another --run."
        )
    names, own = start.speakers, list(corpus.speakers.names)
    if names != own:
        told = f"{len(own)}, and {len(names)} in {start.path}"
        for index, (name, other) in enumerate(zip(own, names, strict=False)):
            if name != other:
                told = f"speaker {index} is {name!r}, and {other!r} in {start.path}"
                break
        raise InputError(f"{corpus.path}: its speakers are not the checkpoint's: {told}.")


def same_takes(start: Checkpoint, takes: TakeWindows | None) -> None:
    """InputError unless they are the takes that the checkpoint was trained on, or neither is."""
    before = start.header.get("takes")
    if before == (None if takes is None else takes.digest):
        return
    if takes is None:
        raise InputError(
            f"data.takes: {start.path} was trained on takes, and none are given; resume with those "
            f"({start.config.data.takes}), or choose another --run."
        )
    what = "without takes" if before is None else "on other takes (their digest differs)"
    raise InputError(
        f"{takes.takes.path}: {start.path} was trained {what}, and data.takes may not change when "
        "a run is resumed; choose another --run."
    )


def go_back(folder: Path, start: Checkpoint) -> Path | None:
    """Make ``start``, which its user named, the newest checkpoint of the run in ``folder``.

    What does not lead up to it is moved into ``checkpoints/abandoned-at-<step>``, with the log so
    far, and that folder returned; None if there is nothing. Left where they are, newer checkpoints
    would be taken for the newest at the next resume, and the steps from ``start`` on be lost
    instead. What leads up to it are older checkpoints of the same run; if it is from elsewhere,
    nothing that is here, and a copy of it begins the run: the next resume must find it.
    """
    kept = folder / "checkpoints"
    kept.mkdir(exist_ok=True)
    same = start.path.resolve().parent == kept.resolve()
    copy = kept / f".{start.path.name}.partial"
    if not same:
        shutil.copytree(start.path, copy)
        for path in (*copy.iterdir(), copy):
            checkpoints.sync(path)
    stale = [path for path in checkpoints.listed(kept) if not same or path.name > start.path.name]
    place = _abandon(folder, stale, start.step, keep_log=same) if stale else None
    if not same:
        copy.rename(kept / f"step-{start.step:09d}")
        checkpoints.sync(kept)
    return place


def _abandon(folder: Path, stale: Sequence[Path], step: int, *, keep_log: bool) -> Path:
    kept = folder / "checkpoints"
    place, count = kept / f"{_ASIDE}{step:09d}", 1
    while os.path.lexists(place):
        count += 1
        place = kept / f"{_ASIDE}{step:09d}-{count}"
    place.mkdir()
    log = folder / _METRICS
    if log.exists():
        shutil.copyfile(log, place / _METRICS)
        checkpoints.sync(place / _METRICS)
    # The newest first: wherever this is struck, the newest left is one that leads on.
    for path in reversed(stale):
        path.rename(place / path.name)
    for changed in (place, kept):
        checkpoints.sync(changed)
    if log.exists() and not keep_log:
        log.unlink()
    return place


def _of_path(resume: str) -> tuple[Checkpoint, list[str]]:
    path = Path(resume)
    told = f"--resume {resume}"
    if not os.path.lexists(path):
        near = difflib.get_close_matches(resume, ("auto", "never"), n=1)
        hint = f"did you mean {near[0]}?" if near else "allowed are auto, never and a path."
        raise UsageError(
            f"{told}: there is nothing, hence no whole checkpoint to go on from; {hint}"
        )
    if not path.is_dir():
        raise UsageError(f"{told}: is a file; a run and a checkpoint are folders.")
    if (path / "checkpoint.json").exists() or checkpoints.is_name(path.resolve().name):
        return Checkpoint.open(path), []
    inside = path / "checkpoints"
    found, damaged = checkpoints.newest(inside if inside.is_dir() else path)
    if found is not None:
        return found, damaged
    if damaged:
        raise ModelError(f"{told}: no whole checkpoint is there, the newest: {damaged[0]}")
    if (path / MANIFEST).exists():
        raise UsageError(
            f"{told}: is an exported model, which cannot be gone on from (it has no optimiser); "
            f"start a new run from its weights with --set train.init_from={resume}."
        )
    raise UsageError(f"{told}: there is no whole checkpoint to go on from in this folder.")


def _is_inside(error: OSError, folder: Path) -> bool:
    names: Sequence[object] = (error.filename, error.filename2)
    places = [Path(os.path.abspath(name)) for name in names if isinstance(name, str | os.PathLike)]
    own = Path(os.path.abspath(folder))
    return any(place.is_relative_to(own) or own.is_relative_to(place) for place in places)
