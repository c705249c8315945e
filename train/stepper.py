"""The steps of a run, one after another: on a GPU recorded once and then played.

A GPU is told what to do faster than it does it, up to a point: a step of many small operators may
take the host longer to name than the device to compute. A CUDA graph holds all of a step's
operators, so that one call starts them. It is recorded from the step that is taken without it;
what differs from step to step is sent to fixed places first (the batch here, the rest by
``commit.Deferred``).
"""

from __future__ import annotations

import warnings
from collections import deque
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import Executor
from contextlib import AbstractContextManager, nullcontext
from dataclasses import fields

import torch
from torch import Tensor

from vconv.config import Config

from .batches import Batch
from .health import Updates
from .state import TrainState
from .step import change, train_step, vectors
from .world import ALONE, World

# Steps that the host may be ahead of the device: enough for the device never to wait, few enough
# for a batch that is late to show as time spent waiting.
AHEAD = 2
# Steps taken as they are before one is recorded: they compile, choose algorithms and make the
# optimiser's moments.
WARM_UP = 3

Figures = dict[str, Tensor]


class Stepper:
    """Takes a run's steps.

    Args:
        state: what they change.
        pool: threads that decode parts of a batch, on a CPU.
        world: the processes that train together. Graphs are for one.
    """

    def __init__(
        self,
        state: TrainState,
        config: Config,
        device: torch.device,
        pool: Executor | None = None,
        world: World = ALONE,
    ) -> None:
        self._state = state
        self._config = config
        self._device = device
        self._pool = pool
        self._world = world
        self._on_gpu = device.type == "cuda"
        self._queued: deque[torch.cuda.Event] = deque()
        graphs = config.train.cuda_graph and self._on_gpu and world.size == 1
        self._recorder = Recorder(state, config, device) if graphs else None

    def wait(self) -> None:
        """Until the device is no more than ``AHEAD`` steps behind; on a CPU it never is."""
        while len(self._queued) >= AHEAD:
            self._queued.popleft().synchronize()

    def __call__(self, made: Sequence[Batch], updates: Updates | None = None) -> Figures:
        """One step from this process's microbatches, on the host or the device; its figures."""
        if self._recorder is not None:
            figures = self._recorder(made, updates)
        else:
            own = [batch.to(self._device) for batch in made]
            figures = train_step(self._state, own, self._config, self._pool, self._world, updates)
        if self._on_gpu:
            event = torch.cuda.Event()
            event.record()
            self._queued.append(event)
        return figures


class Recorder:
    """Steps by a graph, recorded anew when the bottleneck enters another phase.

    Where recording fails, steps are taken as they are from then on, and a warning says so once.
    """

    def __init__(self, state: TrainState, config: Config, device: torch.device) -> None:
        assert state.deferred is not None
        self._state = state
        self._config = config
        self._device = device
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._inputs: list[Batch] = []
        self._phase: Hashable = None
        self._taken = 0  # steps of this phase
        self._play: Callable[[], None] | None = None
        self._figures: Figures = {}
        self._refused = False

    def __call__(self, made: Sequence[Batch], updates: Updates | None = None) -> Figures:
        state = self._state
        phase = state.model.bottleneck.phase(state.step)
        if phase != self._phase:
            if self._play is not None and self._stream is not None:
                self._stream.synchronize()  # it may still be playing
            self._phase, self._taken = phase, 0
            self._play, self._figures = None, {}  # its memory is the next one's
        with self._aside():
            self._load(made)
            if self._play is None and self._taken >= WARM_UP and not self._refused:
                self._record()
            self._taken += 1
            if self._play is None:
                return train_step(state, self._inputs, self._config, updates=updates)
            assert state.deferred is not None
            state.deferred.send(state.model, state.step, vectors(self._inputs, ALONE))
            self._play()
            if updates is not None:
                updates.measure()
            state.step += 1
            # The next step overwrites them.
            return {name: value.clone() for name, value in self._figures.items()}

    def _load(self, made: Sequence[Batch]) -> None:
        """Copy a step's batches to where the graph reads them."""
        if not self._inputs:
            self._inputs = [batch.to(self._device) for batch in made]
            if self._device.type == "cpu":
                self._inputs = [batch.clone() for batch in made]
            return
        for place, batch in zip(self._inputs, made, strict=True):
            for name in (field.name for field in fields(Batch)):
                if name == "clean" and place.clean is place.wav:
                    continue  # without augmentation they are one
                getattr(place, name).copy_(getattr(batch, name), non_blocking=True)

    def _record(self) -> None:
        state = self._state

        def whole() -> None:
            self._figures = change(state, self._inputs, self._config)

        try:
            self._play = record(whole, self._stream)
        except Exception as error:
            # Nothing has been computed, but what Python noted down on the way must go.
            self._refused, self._figures = True, {}
            state.model.bottleneck.forget()
            state.optimizer.zero_grad(set_to_none=True)
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            warnings.warn(
                f"the step could not be recorded as a CUDA graph ({reason}); training goes on "
                "without one (train.cuda_graph: false)",
                stacklevel=2,
            )

    def _aside(self) -> AbstractContextManager[object]:
        """On a stream of its own, in step with the current one at both ends."""
        return nullcontext() if self._stream is None else _InStep(self._stream)


class _InStep:
    def __init__(self, stream: torch.cuda.Stream) -> None:
        self._stream = stream
        self._inside = torch.cuda.stream(stream)

    def __enter__(self) -> None:
        self._stream.wait_stream(torch.cuda.current_stream(self._stream.device))
        self._inside.__enter__()

    def __exit__(self, *error: object) -> None:
        self._inside.__exit__(*error)
        torch.cuda.current_stream(self._stream.device).wait_stream(self._stream)


def record(whole: Callable[[], None], stream: torch.cuda.Stream | None) -> Callable[[], None]:
    """Record what ``whole`` would do, without doing it; the result does it.

    Raises whatever goes wrong on the way, most often RuntimeError.
    """
    graph = torch.cuda.CUDAGraph()
    # Other threads (the one that pins batches) go on with their own work.
    with torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"):
        whole()
    return graph.replay
