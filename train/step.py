"""One step: what its microbatches yield, averaged, then one change of all of the state.

B batch, U units.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import Executor

import torch
from torch import Tensor, nn

from vconv.config import Config
from vconv.nn.autoencoder import Autoencoder

from .batches import Batch, TrainingBatches
from .commit import Gradient, Norms, commit
from .health import Updates
from .objective import backward
from .state import TrainState
from .world import ALONE, World


def train_step(
    state: TrainState,
    own: Sequence[Batch],
    config: Config,
    pool: Executor | None = None,
    world: World = ALONE,
    updates: Updates | None = None,
) -> dict[str, Tensor]:
    """One step: what the microbatches yield, averaged, then all of the state at once.

    ``own``: this process's microbatches, in order, on the state's device. Each is normalised by
    batch statistics of its own; the running ones move once, by their mean.
    """
    if state.deferred is not None:
        state.deferred.send(state.model, state.step, vectors(own, world))
    figures = change(state, own, config, pool, world, updates)
    state.step += 1
    return figures


def vectors(own: Sequence[Batch], world: World) -> int:
    """How many latent vectors all processes see in a step."""
    return world.size * sum(batch.jitter.numel() for batch in own)


def change(
    state: TrainState,
    own: Sequence[Batch],
    config: Config,
    pool: Executor | None = None,
    world: World = ALONE,
    updates: Updates | None = None,
) -> dict[str, Tensor]:
    """All of a step but its number. With a deferred commit it asks the device nothing, and of the
    step's number only the bottleneck's phase enters it: it can be recorded and played again."""
    train, model = config.train, state.model
    norms = Norms(model)
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
                    nll=state.nll,
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
    found = Gradient(norm, norms, statistics)
    settle = commit if state.deferred is None else state.deferred.commit
    committed = settle(state, found, config, world, updates)
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
    state.settle()
    train = config.train
    parts = train.microbatches or world.size
    norms = Norms(state.model)
    vectors: list[Tensor] = []
    step = state.step
    while sum(map(len, vectors)) < wanted:
        with torch.compiler.set_stance("force_eager"):  # once: no cause to compile it anew
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


def _steps(model: Autoencoder, window: int) -> slice:
    geometry = model.geometry
    plan = geometry.plan(window, lead=geometry.lead_samples)
    return slice(plan.skip, plan.skip + plan.steps)
