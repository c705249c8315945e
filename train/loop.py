"""The training loop: one step is one indivisible change of the state.

Between two steps the state is whole; there, and only there, it is validated, saved or left.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from vconv.config import Config
from vconv.nn.autoencoder import Autoencoder

from .batches import Batch, HeldOut, TrainingBatches
from .feed import Feed
from .health import Updates
from .meter import Meter
from .objective import backward, learning_rate
from .state import TrainState, refresh_norms
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
            with meter.waiting():
                own = [batch.to(device) for batch in feed.at(state.step)]
            start_bottleneck(state, batches, config, device, world)
            step = state.step + 1
            logged = step % train.log_every == 0 or step == train.steps
            updates = Updates(state.model) if logged and world.chief else None
            meter.add(train_step(state, own, config, pool, world, updates))
            progress = Progress(state.step, {}, due=state.step % train.checkpoint_every == 0)
            if logged:
                progress.figures = meter.read(
                    train.batch * config.data.window, config.model.audio.sample_rate
                )
                progress.figures["learning_rate"] = _rate(state.step - 1, config)
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
                return


def train_step(
    state: TrainState,
    own: Sequence[Batch],
    config: Config,
    pool: Executor | None = None,
    world: World = ALONE,
    updates: Updates | None = None,
) -> dict[str, Tensor]:
    """One step: what the microbatches yield, averaged, then all of the state at once.

    ``own``: this process's microbatches, in order. Each is normalised by batch statistics of its
    own; the running ones move once, by their mean.
    """
    train, model = config.train, state.model
    norms = _Norms(model)
    names: list[str] = []
    learning: list[nn.Parameter] = []

    def yields() -> Iterator[Tensor]:
        for batch in own:
            norms.restore()
            state.optimizer.zero_grad(set_to_none=True)
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
            names[:] = metrics
            # Before the codebook's start there may be parameters without a gradient.
            learning[:] = [p for p in model.parameters() if p.grad is not None]
            gradients = [p.grad for p in learning if p.grad is not None]
            figures = [value.detach().float() for value in metrics.values()]
            yield torch.cat([t.reshape(-1) for t in (*gradients, *norms.running, *figures)])

    count = world.size * len(own)
    mean = world.mean(yields(), count)
    widths = [p.numel() for p in learning], [t.numel() for t in norms.running], [1] * len(names)
    gradients, statistics, figures = (
        part.split(width)
        for part, width in zip(mean.split([sum(w) for w in widths]), widths, strict=True)
    )
    for parameter, gradient in zip(learning, gradients, strict=True):
        parameter.grad = gradient.view_as(parameter)
    norm = torch.nn.utils.clip_grad_norm_(model.parameters(), train.clip)
    if not math.isfinite(float(norm)):
        norms.restore()
        state.optimizer.zero_grad(set_to_none=True)
        raise FloatingPointError(f"the gradient at step {state.step} is {float(norm)}")
    norms.set(statistics)
    for group in state.optimizer.param_groups:
        group["lr"] = _rate(state.step, config)
    state.optimizer.step()
    if updates is not None:
        updates.measure()
    state.optimizer.zero_grad(set_to_none=True)
    committed = model.bottleneck.commit(seed=train.seed, step=state.step, gather=world.gather)
    # Sums over many vectors: on a GPU their order, and with it the last bits, is nobody's promise.
    world.broadcast(model.bottleneck.state_dict().values())
    state.step += 1
    state.update_average(train.average)
    measured = {name: value[0] for name, value in zip(names, figures, strict=True)}
    return measured | committed | {"gradient_norm": norm, "clipped": (norm > train.clip).float()}


@torch.no_grad()
def start_bottleneck(
    state: TrainState,
    batches: TrainingBatches,
    config: Config,
    device: torch.device,
    world: World = ALONE,
) -> None:
    """Initialise the bottleneck from real encodings, when it says that this is due."""
    bottleneck = state.model.bottleneck
    wanted = bottleneck.vectors_wanted(state.step)
    if not wanted:
        return
    train = config.train
    parts = train.microbatches or world.size
    norms = _Norms(state.model)
    vectors: list[Tensor] = []
    step = state.step
    while sum(map(len, vectors)) < wanted:
        own = [
            state.model.latents(batches.at(step, k, parts).to(device).wav)
            for k in world.share(parts)
        ]
        vectors.append(world.gather(torch.cat(own).transpose(1, 2).flatten(0, 1).float()))
        step += 1
    norms.restore()
    if world.chief:
        bottleneck.start(torch.cat(vectors), seed=train.seed, step=state.step)
    world.broadcast(bottleneck.state_dict().values())
    state.copy_bottleneck_buffers()


class _Norms:
    """The running statistics of a network's batch norms, as they are when this is made."""

    def __init__(self, network: nn.Module) -> None:
        norms = [m for m in network.modules() if isinstance(m, nn.BatchNorm1d)]
        buffers = [buffer for norm in norms for buffer in norm.buffers()]
        self._before = [(buffer, buffer.clone()) for buffer in buffers]
        # Without the counts of batches.
        self.running = [buffer for buffer in buffers if buffer.is_floating_point()]

    def restore(self) -> None:
        for buffer, before in self._before:
            buffer.copy_(before)

    def set(self, values: Sequence[Tensor]) -> None:
        for buffer, value in zip(self.running, values, strict=True):
            buffer.copy_(value)


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
