"""A training run: its folder, its lock, where it goes on, and how it is left.

runs/<name>/{config.yaml, checkpoints/, metrics.jsonl, tb/}
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Executor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from vconv.config import Config, dump_yaml, load_config
from vconv.errors import InputError, VconvError

from . import checkpoint as checkpoints
from . import coverage, process
from .batches import Excerpts, Noise, TrainingBatches, held_out
from .corpus import HEADER, Corpus
from .health import Watch
from .inherit import Source, find_source, inherit
from .launch import microbatches
from .loop import Progress as StepProgress
from .loop import fit
from .meter import Meter
from .metrics import Diary
from .naming import run_name
from .prepare import prepare
from .resume import go_back, refuse_changes, resume_point, run_folder, same_corpus
from .samples import take_samples
from .state import TrainState, build_state, refresh_norms
from .world import World, expected_rank, expected_size, join

RUNS = Path("runs")
SMOKE_STEPS = 20
_console = Console(stderr=True, highlight=False)


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
    goes_back: bool = False  # to a checkpoint that was named, hence perhaps not the newest


def _begin(config: Config, folder: Path, resume: str) -> _Start:
    """All that may be refused or take long, before the other processes are met."""
    kept = folder / "checkpoints"
    checkpoints.sweep(kept)
    start, damaged = resume_point(folder, resume)
    for sentence in damaged:
        _say(f"skipped: {sentence}")
    config = _with_microbatches(config, start)
    source = None
    if start is not None:
        refuse_changes(start, config)
    elif config.train.init_from is not None:  # found before anything that takes long
        source = find_source(config.train.init_from)
    process.device(config.train.device)
    corpus = _corpus(config, folder)
    if start is not None:
        same_corpus(start, corpus)
    goes_back = resume not in ("auto", "never")
    return _Start(config, folder, start, source, corpus, goes_back)


def _train(begun: _Start) -> int:
    device = process.device(begun.config.train.device)
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
        state = build_state(config, corpus, device)
        if world.chief:
            _fill(state, begun, corpus, process.environment(device, world.size))
            (begun.folder / "config.yaml").write_text(dump_yaml(config), "utf-8")
        state.share(world)
        if config.train.compile:
            state.compile()
        run = _Run(config, begun.folder, corpus, state, device, world)
        if begun.checkpoint is not None:
            run.go_on(begun.checkpoint.header)
        return run.train(pool)


def _fill(state: TrainState, begun: _Start, corpus: Corpus, environment: Mapping[str, Any]) -> None:
    """The state to begin with, and a line that says where it is from."""
    if begun.checkpoint is not None:
        begun.checkpoint.restore(state)
        # Only now is it sure that the run goes on, from here.
        if not begun.goes_back:  # the run may have died between a save and its retention
            _retain(begun.folder / "checkpoints", begun.config)
        elif (aside := go_back(begun.folder, begun.checkpoint)) is not None:
            _say(f"set aside what does not lead up to {begun.checkpoint.path}: it is in {aside}")
        _say(f"resuming {begun.folder} at step {state.step:,} from {begun.checkpoint.path}")
        before = begun.checkpoint.header.get("environment", {})
        if differs := process.differences(before, environment):
            _say(f"note: {differs}: the last bits may not be those of an uninterrupted run")
        return
    _say(f"starting {begun.folder}: {_count(state):,} parameters, {len(corpus.speakers)} speakers")
    if begun.source is not None:
        _inherit(state, begun.source, begun.config, corpus, begun.folder)


class _Run:
    """The loop and what happens around it: diary, bar, checkpoints, signals."""

    def __init__(
        self,
        config: Config,
        folder: Path,
        corpus: Corpus,
        state: TrainState,
        device: torch.device,
        world: World,
    ) -> None:
        self.config = config
        self.folder = folder
        self.corpus = corpus
        self.state = state
        self.device = device
        self.world = world
        excerpts = Excerpts(
            corpus,
            config.model.audio,
            state.model.geometry,
            config.data.window,
            seed=config.train.seed,
            dither_db=config.data.dither_db,
        )
        self.batches = TrainingBatches(
            excerpts,
            batch=config.train.batch,
            seed=config.train.seed,
            noise=Noise.of(config),
            buffer_mb=config.data.buffer_mb,
            buffer_fraction=config.data.buffer_fraction,
        )
        self.meter = Meter()
        self.validation: dict[str, float] = {}
        self.nll = float("nan")
        self.saved = state.step
        self.stopped = 0  # the signal that all processes stop for

    def go_on(self, header: Mapping[str, Any]) -> None:
        """Take up what the checkpoint says beside the state."""
        self.validation = dict(header.get("metrics", {}))
        if "since_log" in header:
            self.meter = Meter.of(header["since_log"], self.device)

    def train(self, pool: Executor | None) -> int:
        """To the last step, or until a signal; returns the exit code."""
        config, state, world = self.config, self.state, self.world
        heldout = None
        if world.chief:
            heldout = held_out(
                self.batches.excerpts, config.train.validate_windows, config.train.batch
            )
        with ExitStack() as around:
            if world.chief:
                self.watch = Watch(config)
                for sentence in coverage.warnings(self.batches.excerpts):
                    _say(f"vconv: warning: {sentence}")
                self.diary = around.enter_context(Diary(self.folder, state.step))
                self.bar = around.enter_context(_bar(config, state))
            self.caught = around.enter_context(process.signals())
            try:
                fit(
                    state,
                    self.batches,
                    heldout,
                    config,
                    self.device,
                    observe=self.observe,
                    pool=pool,
                    world=world,
                    meter=self.meter,
                )
            except FloatingPointError as error:
                last, _ = checkpoints.newest(self.folder / "checkpoints")
                good = f"the last good checkpoint is {last.path}" if last else "none was saved"
                raise VconvError(f"{self.folder}: training stopped: {error}; {good}.") from None
            finished = state.step >= config.train.steps
            if world.chief and self.saved != state.step and (self.stopped or finished):
                self.save()
        if world.chief and self.stopped:
            _say(f"stopped at step {state.step:,}; run the same command again to go on")
        elif world.chief:
            _say(f"finished {self.folder} at step {state.step:,}: {_summary(self.validation)}")
        return 128 + self.stopped if self.stopped else 0

    def observe(self, progress: StepProgress) -> bool:
        """After each step: the chief records it, then all agree whether to go on."""
        if self.world.chief:
            self.record(progress)
        self.stopped = self.world.largest(max(self.caught, default=0))
        return not self.stopped

    def record(self, progress: StepProgress) -> None:
        if progress.figures:
            self.diary.write(progress.step, progress.figures, progress.vectors)
        if progress.validated:
            self.validation = {
                name: value
                for name, value in progress.figures.items()
                if name.startswith(("heldout_", "probe_"))
            } | {"step": float(progress.step)}
        if progress.due:
            self.save()
        every = self.config.train.sample_every
        if every and progress.step % every == 0:
            with self.meter.standing():
                self.sample(progress.step)
        if progress.figures:
            for sentence in self.watch(progress.step, progress.figures):
                _say(f"step {progress.step:,}: warning: {sentence}")
        # Said last: with nobody left to read it (a closed pipe) the process ends here.
        if progress.validated:
            _say(f"step {progress.step:,}: {_summary(self.validation)}")
        self.nll = progress.figures.get("nll", self.nll)
        self.bar.update(self.bar.task_ids[0], completed=progress.step, nll=self.nll)

    def sample(self, step: int) -> None:
        """Conversions to listen to, by the average as it would be exported."""
        refresh_norms(self.state.average, self.batches, self.device)
        take_samples(
            self.state.average,
            self.config.model,
            self.corpus,
            self.folder / "samples",
            step,
            self.diary.board,
            self.device,
        )

    def save(self) -> None:
        config, state = self.config, self.state
        refresh_norms(state.average, self.batches, self.device)
        self.diary.sync()
        checkpoints.save_checkpoint(
            self.folder / "checkpoints",
            state,
            config,
            tuple(self.corpus.speakers.names),
            {
                "position": {"step": state.step},
                "samples_seen": state.step * config.train.batch * config.data.window,
                "metrics": self.validation,
                "since_log": self.meter.to_json(),
                "corpus": {
                    "digest": self.corpus.digest,
                    "licence": self.corpus.header.get("licence", ""),
                    "hours": _hours(self.corpus),
                    "utterances": len(self.corpus.utterances),
                },
                "environment": process.environment(self.device, self.world.size),
            },
        )
        _retain(self.folder / "checkpoints", config)
        self.saved = state.step


def _retain(kept: Path, config: Config) -> None:
    checkpoints.retain(kept, keep_last=config.train.keep_last, keep_best=config.train.keep_best)


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
        _say(line)
    (folder / "init_from.json").write_text(json.dumps(inheritance.to_json(), indent=1) + "\n")


def _corpus(config: Config, folder: Path) -> Corpus:
    path = Path(config.data.corpus)
    if (path / HEADER).exists() or not path.exists():
        return Corpus.open(path)
    prepared = folder / "corpus"
    if not (prepared / HEADER).exists():
        _say(f"preparing {path} as {prepared}")
        prepare(path, prepared)
    return Corpus.open(prepared)


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


@contextmanager
def _bar(config: Config, state: TrainState) -> Iterator[Progress]:
    bar = Progress(
        TextColumn("step {task.completed:,} of {task.total:,}"),
        BarColumn(),
        TextColumn("nll {task.fields[nll]:.3f}"),
        TimeRemainingColumn(),
        console=_console,
        disable=not sys.stderr.isatty(),
    )
    bar.add_task("train", total=config.train.steps, completed=state.step, nll=float("nan"))
    with bar:
        yield bar


def _hours(corpus: Corpus) -> float:
    """Of speech: without the silence around each utterance."""
    samples = int(corpus.utterances.length.sum()) - 2 * corpus.pad_samples * len(corpus.utterances)
    return round(samples / corpus.sample_rate / 3600, 2)


def _summary(figures: Mapping[str, float]) -> str:
    if "heldout_nll" not in figures:
        return "no held-out figures"
    told = [
        ("heldout_nll", "held-out {:.3f} nats"),
        ("probe_latents", "latents of another utterance {:+.3f}"),
        ("probe_speaker", "another speaker {:+.3f}"),
        ("heldout_codes_used", "{:.0%} of codes in use"),
    ]
    return ", ".join(text.format(figures[name]) for name, text in told if name in figures)


def _count(state: TrainState) -> int:
    return sum(parameter.numel() for parameter in state.model.parameters())


def _say(text: str) -> None:
    _console.print(text, soft_wrap=True, markup=False)
