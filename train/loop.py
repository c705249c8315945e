"""The training loop: one step is one indivisible change of the state.

Between two steps the state is whole; there, and only there, it is validated, saved or left.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Executor
from dataclasses import dataclass, field

import torch

from vconv.config import Config

from .batches import HeldOut, TrainingBatches
from .commit import rate_of
from .feed import Feed
from .health import Updates
from .meter import Meter
from .state import TrainState, refresh_norms
from .step import start_bottleneck
from .stepper import Stepper
from .validate import validate
from .world import ALONE, World


@dataclass
class Progress:
    """What the loop tells its observers after a step."""

    step: int
    figures: dict[str, float]
    vectors: dict[str, list[float]] = field(default_factory=dict)  # see Validation.vectors
    validated: bool = False
    due: bool = False  # a checkpoint is


def fit(
    state: TrainState,
    batches: TrainingBatches,
    heldout: HeldOut | None,
    config: Config,
    device: torch.device,
    *,
    observe: Callable[[Progress], bool],
    pool: Executor | None = None,
    world: World = ALONE,
    meter: Meter | None = None,
) -> None:
    """Train until ``config.train.steps``; ``observe`` is called after each step and may end it
    by returning False. ``pool`` decodes parts of a batch in parallel; ``world`` are the processes
    that train together, of which the chief alone validates; ``meter`` holds what has been measured
    since the last log line. Raises FloatingPointError when the gradient is not finite; the state is
    then as it was before the step."""
    train = config.train
    meter = meter or Meter()
    stepper = Stepper(state, config, device, pool, world)
    parts = train.microbatches or world.size
    with Feed(
        batches,
        workers=config.data.workers,
        mine=world.share(parts),
        parts=parts,
        steps=train.steps,
        pin=device.type == "cuda",
    ) as feed:
        while state.step < train.steps:
            stepper.wait()
            with meter.waiting():
                made = feed.at(state.step)
            start_bottleneck(state, batches, config, device, world)
            step = state.step + 1
            logged = step % train.log_every == 0 or step == train.steps
            updates = Updates(state.model) if logged and world.chief else None
            meter.add(stepper(made, updates))
            if _is_looked_at(state.step, config):
                state.settle()
            progress = Progress(state.step, {}, due=state.step % train.checkpoint_every == 0)
            if logged:
                progress.figures = meter.read(
                    train.batch * config.data.window, config.model.audio.sample_rate
                )
                progress.figures["learning_rate"] = rate_of(state.step - 1, config)
                if device.type == "cuda":
                    progress.figures["peak_memory_gb"] = peak_memory_gb(device)
                if updates is not None:
                    progress.figures |= updates.figures
            due = state.step % train.validate_every == 0 or state.step == train.steps
            if heldout and world.chief and due:
                progress.validated = True
                with meter.standing():
                    refresh_norms(state.average, batches, device)
                    result = validate(
                        state.average,
                        heldout,
                        batches.excerpts,
                        device,
                        autocast=train.precision == "bf16",
                    )
                progress.figures |= result.figures()
                progress.vectors = result.vectors()
            if progress.due:
                world.insist([*state.model.parameters()], state.step)
            if not observe(progress):
                state.settle()
                return


def peak_memory_gb(device: torch.device) -> float:
    """The most that tensors have taken of a GPU's memory so far, in 10^9 bytes."""
    return torch.cuda.max_memory_allocated(device) / 1e9


def _is_looked_at(step: int, config: Config) -> bool:
    """Whether something after this step reads the state."""
    train = config.train
    intervals = train.log_every, train.validate_every, train.checkpoint_every, train.sample_every
    return step == train.steps or any(every and step % every == 0 for every in intervals)
