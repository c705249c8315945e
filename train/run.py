"""How a training run begins: its folder and its lock, and where it goes on.

runs/<name>/{config.yaml, checkpoints/, metrics.jsonl, tb/, samples/}
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from vconv.config import Config, dump_yaml, load_config
from vconv.errors import InputError
from vconv.geometry import Geometry

from . import checkpoint as checkpoints
from . import process
from .corpus import HEADER, Corpus
from .inherit import Source, find_source, inherit
from .launch import microbatches
from .naming import run_name
from .prepare import prepare
from .resume import go_back, refuse_changes, resume_point, run_folder, same_corpus, same_takes
from .running import Running, retain, say
from .state import TrainState, build_state
from .take_file import read_takes
from .take_windows import TakeWindows
from .world import expected_rank, expected_size, join

RUNS = Path("runs")
SMOKE_STEPS = 20


def train_command(
    config_path: Path,
    *,
    run: str | None = None,
    overrides: Sequence[str] = (),
    resume: str = "auto",
    smoke_test: bool = False,
) -> int:
    """Train as a configuration says; returns the exit code (0, or 128 + signal).

    ``resume``: "auto" goes on from the run's newest whole checkpoint, "never" refuses a run that
    has one, a path goes on from that run or checkpoint. ``smoke_test`` trains a few steps with a
    validation and a checkpoint, into the run ``<name>-smoke``. One of several processes where a
    launcher (torchrun) says so.
    """
    config = load_config(config_path, overrides)
    name = run_name(run, config, config_path)
    if smoke_test:
        name += "-smoke"
        config = _smoke(config)
    if not Path(config.data.corpus).exists():
        raise InputError(
            f"{config.data.corpus}: does not exist; data.corpus is a corpus made by `vconv "
            "prepare`, or a folder or manifest of recordings."
        )
    folder = RUNS / name
    if expected_rank() != 0:
        return _train(_Start(config, folder))
    if config.train.init_from is not None and not folder.exists():
        find_source(config.train.init_from)  # refused before it leaves an empty run
    with run_folder(folder), process.lock(folder):
        return _train(_begin(config, folder, resume))


@dataclass
class _Start:
    """What a run begins with; all but the first two are found by the chief."""

    config: Config
    folder: Path
    checkpoint: checkpoints.Checkpoint | None = None
    source: Source | None = None
    corpus: Corpus | None = None
    takes: TakeWindows | None = None
    goes_back: bool = False  # to a checkpoint that was named, hence perhaps not the newest


def _begin(config: Config, folder: Path, resume: str) -> _Start:
    """All that may be refused or take long, before the other processes are met."""
    kept = folder / "checkpoints"
    checkpoints.sweep(kept)
    start, damaged = resume_point(folder, resume)
    for sentence in damaged:
        say(f"skipped: {sentence}")
    config = _with_microbatches(config, start)
    source = None
    if start is not None:
        refuse_changes(start, config)
    elif config.train.init_from is not None:  # found before anything that takes long
        source = find_source(config.train.init_from)
    process.device(config.train.device)
    corpus = _corpus(config, folder)
    takes = _takes(config, corpus)
    if start is not None:
        same_corpus(start, corpus)
        same_takes(start, takes)
    goes_back = resume not in ("auto", "never")
    return _Start(config, folder, start, source, corpus, takes, goes_back)


def _train(begun: _Start) -> int:
    device = process.device(begun.config.train.device)
    process.full_precision(device)
    if device.type == "cpu":
        process.keep_freed_memory()
    if begun.config.train.threads:
        torch.set_num_threads(begun.config.train.threads)
    pool = process.decoder_threads(begun.config, device)
    if begun.config.train.elastic_exact:
        process.compute_exactly(device)
    with join(device, exact=begun.config.train.elastic_exact) as world:
        config, path = world.tell((begun.config, begun.corpus and begun.corpus.path))
        corpus = begun.corpus or Corpus.open(path)
        takes = begun.takes or _takes(config, corpus)
        state = build_state(config, corpus, device)
        if world.chief:
            _fill(state, begun, corpus, process.environment(device, world.size))
            (begun.folder / "config.yaml").write_text(dump_yaml(config), "utf-8")
        state.share(world)
        if config.train.compile:
            state.compile()
        run = Running(config, begun.folder, corpus, state, device, world, takes)
        if begun.checkpoint is not None:
            run.go_on(begun.checkpoint.header)
        return run.train(pool)


def _fill(state: TrainState, begun: _Start, corpus: Corpus, environment: Mapping[str, Any]) -> None:
    """The state to begin with, and a line that says where it is from."""
    if begun.checkpoint is not None:
        begun.checkpoint.restore(state)
        # Only now is it sure that the run goes on, from here.
        if not begun.goes_back:  # the run may have died between a save and its retention
            retain(begun.folder / "checkpoints", begun.config)
        elif (aside := go_back(begun.folder, begun.checkpoint)) is not None:
            say(f"set aside what does not lead up to {begun.checkpoint.path}: it is in {aside}")
        say(f"resuming {begun.folder} at step {state.step:,} from {begun.checkpoint.path}")
        before = begun.checkpoint.header.get("environment", {})
        if differs := process.differences(before, environment):
            say(f"note: {differs}: the last bits may not be those of an uninterrupted run")
        return
    say(f"starting {begun.folder}: {_count(state):,} parameters, {len(corpus.speakers)} speakers")
    if begun.takes is not None:
        windows = begun.takes
        say(
            f"{windows.share:.0%} of the windows are takes: {windows.used:,} of the "
            f"{len(windows.takes.ends):,} in {windows.takes.path} are long enough"
        )
    if begun.source is not None:
        _inherit(state, begun.source, begun.config, corpus, begun.folder)


def _with_microbatches(config: Config, start: checkpoints.Checkpoint | None) -> Config:
    """Their number, decided when a run starts and kept from then on."""
    wanted = config.train.microbatches
    if wanted is None and start is not None:
        wanted = start.config.train.microbatches or 1
    count = microbatches(wanted, config.train.batch, expected_size())
    train = config.train.model_copy(update={"microbatches": count})
    return config.model_copy(update={"train": train})


def _inherit(
    state: TrainState, source: Source, config: Config, corpus: Corpus, folder: Path
) -> None:
    inheritance = inherit(state, source, config, corpus.speakers.names)
    for line in inheritance.report():
        say(line)
    (folder / "init_from.json").write_text(json.dumps(inheritance.to_json(), indent=1) + "\n")


def _corpus(config: Config, folder: Path) -> Corpus:
    path = Path(config.data.corpus)
    if (path / HEADER).exists() or not path.exists():
        return Corpus.open(path)
    prepared = folder / "corpus"
    if not (prepared / HEADER).exists():
        say(f"preparing {path} as {prepared}")
        prepare(path, prepared)
    return Corpus.open(prepared)


def _takes(config: Config, corpus: Corpus) -> TakeWindows | None:
    data, audio = config.data, config.model.audio
    if data.takes is None:
        return None
    return TakeWindows(
        corpus,
        read_takes(Path(data.takes), corpus, audio),
        audio,
        window=data.window,
        receptive_field=Geometry.of(**config.model.geometry).receptive_field,
        seed=config.train.seed,
        share=data.takes_share,
    )


def _smoke(config: Config) -> Config:
    values = config.model_dump()
    values["train"] |= {
        "steps": SMOKE_STEPS,
        "log_every": 5,
        "validate_every": SMOKE_STEPS // 2,
        "checkpoint_every": SMOKE_STEPS // 2,
        "final_decay": 0,
        "halve_at": (),
    }
    values["model"]["bottleneck"]["warmup_steps"] = SMOKE_STEPS // 4
    return Config.model_validate(values)


def _count(state: TrainState) -> int:
    return sum(parameter.numel() for parameter in state.model.parameters())
