"""A run while it lasts: the loop, and around it diary, bar, checkpoints, samples and signals."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from concurrent.futures import Executor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from vconv.config import Config
from vconv.errors import VconvError

from . import checkpoint as checkpoints
from . import coverage, process
from .batches import Excerpts, Noise, TrainingBatches, held_out
from .corpus import Corpus
from .health import Watch
from .loop import Progress as StepProgress
from .loop import fit, peak_memory_gb
from .meter import Meter
from .metrics import Diary
from .samples import take_samples
from .state import TrainState, refresh_norms
from .take_windows import TakeWindows
from .world import World

_console = Console(stderr=True, highlight=False)


class Running:
    """The loop and what happens around it: diary, bar, checkpoints, signals."""

    def __init__(
        self,
        config: Config,
        folder: Path,
        corpus: Corpus,
        state: TrainState,
        device: torch.device,
        world: World,
        takes: TakeWindows | None = None,
    ) -> None:
        self.config = config
        self.folder = folder
        self.corpus = corpus
        self.takes = takes
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
            takes=takes,
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
                    say(f"vconv: warning: {sentence}")
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
            say(f"stopped at step {state.step:,}; run the same command again to go on")
        elif world.chief:
            say(f"finished {self.folder} at step {state.step:,}: {_summary(self.validation)}")
        if world.chief and self.device.type == "cuda":
            say(f"peak memory of the device: {peak_memory_gb(self.device):.1f} GB")
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
                say(f"step {progress.step:,}: warning: {sentence}")
        # Said last: with nobody left to read it (a closed pipe) the process ends here.
        if progress.validated:
            say(f"step {progress.step:,}: {_summary(self.validation)}")
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
                "takes": None if self.takes is None else self.takes.digest,
                "environment": process.environment(self.device, self.world.size),
            },
        )
        retain(self.folder / "checkpoints", config)
        self.saved = state.step


def retain(kept: Path, config: Config) -> None:
    checkpoints.retain(kept, keep_last=config.train.keep_last, keep_best=config.train.keep_best)


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


def say(text: str) -> None:
    _console.print(text, soft_wrap=True, markup=False)
