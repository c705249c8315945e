"""The training loop: one step is one indivisible change of the state.

Between two steps the state is whole; there, and only there, it is validated, saved or left.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from concurrent.futures import Executor
from dataclasses import dataclass, field

import torch
from torch import Tensor

from vconv.config import Config
from vconv.nn.autoencoder import Autoencoder

from .batches import Batch, HeldOut, TrainingBatches
from .objective import backward, learning_rate
from .state import TrainState, refresh_norms
from .validate import validate


@dataclass
class Progress:
    """What the loop tells its observers after a step."""

    step: int
    figures: dict[str, float]
    validated: bool = False
    due: bool = False  # a checkpoint is


@dataclass
class _Meter:
    """Means of the figures and the clock between two log lines."""

    started: float = field(default_factory=time.perf_counter)
    waited: float = 0.0
    steps: int = 0
    sums: dict[str, Tensor] = field(default_factory=dict)

    def add(self, metrics: dict[str, Tensor]) -> None:
        self.steps += 1
        for name, value in metrics.items():
            value = value.detach()
            self.sums[name] = self.sums[name] + value if name in self.sums else value

    def read(self, samples_per_step: int, sample_rate: int) -> dict[str, float]:
        elapsed = time.perf_counter() - self.started
        figures = {name: float(value) / self.steps for name, value in self.sums.items()}
        rate = self.steps * samples_per_step / elapsed
        figures["samples_per_second"] = rate
        figures["times_real_time"] = rate / sample_rate
        figures["data_wait"] = self.waited / elapsed
        return figures


def fit(
    state: TrainState,
    batches: TrainingBatches,
    heldout: HeldOut | None,
    config: Config,
    device: torch.device,
    *,
    observe: Callable[[Progress], bool],
    pool: Executor | None = None,
) -> None:
    """Train until ``config.train.steps``; ``observe`` is called after each step and may end it
    by returning False. ``pool`` decodes parts of a batch in parallel. Raises FloatingPointError
    when the gradient is not finite; the state is then as it was before the step."""
    train = config.train
    meter = _Meter()
    while state.step < train.steps:
        before = time.perf_counter()
        batch = batches.at(state.step).to(device)
        meter.waited += time.perf_counter() - before
        start_bottleneck(state, batches, train.seed, device)
        meter.add(train_step(state, batch, config, pool))
        progress = Progress(state.step, {}, due=state.step % train.checkpoint_every == 0)
        if state.step % train.log_every == 0 or state.step == train.steps:
            progress.figures = meter.read(
                train.batch * config.data.window, config.model.audio.sample_rate
            )
            progress.figures["learning_rate"] = _rate(state.step - 1, config)
            meter = _Meter()
        if heldout and (state.step % train.validate_every == 0 or state.step == train.steps):
            refresh_norms(state.average, batches, device)
            result = validate(
                state.average, heldout, batches.excerpts, device, autocast=train.precision == "bf16"
            )
            progress.figures |= result.figures()
            progress.validated = True
            meter.started = time.perf_counter()
            meter.waited, meter.steps, meter.sums = 0.0, 0, {}
        if not observe(progress):
            return


def train_step(
    state: TrainState, batch: Batch, config: Config, pool: Executor | None = None
) -> dict[str, Tensor]:
    """One step: gradients, then all of the state at once."""
    train, model = config.train, state.model
    with torch.autocast(
        batch.wav.device.type, dtype=torch.bfloat16, enabled=train.precision == "bf16"
    ):
        metrics = backward(
            model,
            batch,
            window=config.data.window,
            steps=_steps(model, config.data.window),
            decode_batch=train.decode_batch,
            step=state.step,
            pool=pool,
        )
    norm = torch.nn.utils.clip_grad_norm_(model.parameters(), train.clip)
    if not math.isfinite(float(norm)):
        state.optimizer.zero_grad(set_to_none=True)
        raise FloatingPointError(f"the gradient at step {state.step} is {float(norm)}")
    for group in state.optimizer.param_groups:
        group["lr"] = _rate(state.step, config)
    state.optimizer.step()
    state.optimizer.zero_grad(set_to_none=True)
    metrics |= model.bottleneck.commit(seed=train.seed, step=state.step)
    state.step += 1
    state.update_average(train.average)
    return metrics | {"gradient_norm": norm}


@torch.no_grad()
def start_bottleneck(
    state: TrainState, batches: TrainingBatches, seed: int, device: torch.device
) -> None:
    """Initialise the bottleneck from real encodings, when it says that this is due."""
    bottleneck = state.model.bottleneck
    wanted = bottleneck.vectors_wanted(state.step)
    if not wanted:
        return
    vectors: list[Tensor] = []
    step = state.step
    while sum(map(len, vectors)) < wanted:
        wav = batches.at(step).to(device).wav
        latents = state.model.latents(wav)
        vectors.append(latents.transpose(1, 2).flatten(0, 1).float())
        step += 1
    bottleneck.start(torch.cat(vectors), seed=seed, step=state.step)
    state.copy_bottleneck_buffers()


def _steps(model: Autoencoder, window: int) -> slice:
    geometry = model.geometry
    plan = geometry.plan(window, lead=geometry.lead_samples)
    return slice(plan.skip, plan.skip + plan.steps)


def _rate(step: int, config: Config) -> float:
    train = config.train
    return learning_rate(
        step,
        base=train.learning_rate,
        warmup=train.warmup,
        halve_at=train.halve_at,
        steps=train.steps,
        final_decay=train.final_decay,
    )
