"""The batches of consecutive steps, made in this process or ahead of it in others.

A step's batch is a function of (seed, step), so who makes it, how many do, and where they begin
changes no bit of it, and there is no iterator whose state would have to be saved.
"""

from __future__ import annotations

import atexit
import multiprocessing
import os
import pickle
import signal
import threading
import traceback
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields
from functools import partial
from multiprocessing import resource_tracker
from multiprocessing.process import BaseProcess
from types import TracebackType

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torch.utils.data.dataloader import _MultiProcessingDataLoaderIter

from vconv.errors import SetupError, VconvError

from .batches import Batch, TrainingBatches
from .launch import die_with

_ALIGNED = 64  # bytes; every dtype may begin there
_WORKERS_ENVIRONMENT = {
    # BLAS and OpenMP make their threads when they are loaded, before any code of ours runs.
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    # glibc would raise this to the size of a batch and then keep batches by the dozen, in holes
    # that no later one fits (measured: a worker grew by 6 MB a batch, to over 1 GB).
    "MALLOC_MMAP_THRESHOLD_": str(1 << 20),
}
_SIGNALS = {
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGUSR1") if hasattr(signal, name)
}


class Feed:
    """Hands out the batches of consecutive steps; a context manager, opened in the main thread.

    Args:
        batches: what makes them.
        workers: processes that make them ahead; 0 makes each when it is asked for.
        mine: the parts of a step that this process computes, of `parts` equal ones.
        steps: the end of training; nothing is made from there on.
        pin: hand them out in page-locked memory.
    """

    def __init__(
        self,
        batches: TrainingBatches,
        *,
        workers: int,
        mine: range,
        parts: int,
        steps: int,
        pin: bool = False,
    ) -> None:
        self._steps = _Steps(batches, mine, parts)
        self._workers = workers
        self._end = steps
        self._pin = pin
        self._ahead: _Ahead | None = None

    def __enter__(self) -> Feed:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stop()

    def at(self, step: int) -> list[Batch]:
        """The parts of a step that are this process's, in their order.

        Steps are made ahead in ascending order; another than the next one starts them anew.
        Raises what making the batch raised, and `SetupError` when a worker died.
        """
        assert step < self._end
        if not self._workers:
            made = self._steps.make(step)
            return [batch.pin_memory() for batch in made] if self._pin else made
        if self._ahead is None or self._ahead.step != step:
            self._stop()
            self._ahead = _Ahead(
                self._steps, range(step, self._end), workers=self._workers, pin=self._pin
            )
        return self._ahead.next()

    def _stop(self) -> None:
        ahead, self._ahead = self._ahead, None
        if ahead is not None:
            ahead.stop()


class _Ahead:
    """Worker processes at work on a range of steps."""

    def __init__(self, dataset: _Steps, steps: range, *, workers: int, pin: bool) -> None:
        self.step = steps.start
        # Spawned, not forked: by now this process has threads (the decoder's, TensorBoard's, the
        # BLAS's) and perhaps a CUDA context, and a fork copies their locks as they happen to be.
        # A fork server would avoid that too, but then not the trainer but the server would be
        # the workers' parent, whose death they are to share. The price is the import of torch in
        # each, once and side by side.
        before = set(multiprocessing.active_children())
        with warnings.catch_warnings(), _starting():
            # More workers than cores is the user's choice.
            warnings.filterwarnings("ignore", "This DataLoader will create", UserWarning)
            batches = iter(
                DataLoader(
                    dataset,
                    batch_size=None,
                    sampler=steps,
                    num_workers=workers,
                    pin_memory=pin,
                    multiprocessing_context="spawn",
                    worker_init_fn=partial(_begin_worker, os.getpid()),
                    generator=torch.Generator(),  # its seed would be drawn from the global one
                )
            )
        assert isinstance(batches, _MultiProcessingDataLoaderIter)
        self._batches = batches
        self._processes = [p for p in multiprocessing.active_children() if p not in before]

    def next(self) -> list[Batch]:
        self._look_after()
        try:
            made = next(self._batches)
        except (RuntimeError, OSError, EOFError):  # the last two: cut off in the middle of a batch
            self._look_after()
            raise
        if isinstance(made, _Failure):
            raise made.error from made.cause
        assert isinstance(made, _Packed)
        self.step += 1
        return made.unpack()

    def _look_after(self) -> None:
        for process in self._processes:
            if not process.is_alive():
                raise SetupError(_obituary(process)) from None

    def stop(self) -> None:
        """Ends the workers, after the batches that they are making."""
        try:
            self._batches._shutdown_workers()  # `del` would leave it to whoever holds a traceback
        finally:  # whatever is left: they do not listen to SIGTERM, and exit would wait for them
            for process in self._processes:
                process.kill()
            for process in self._processes:
                process.join()


class _Steps(Dataset["_Packed | _Failure"]):
    """Step -> its parts in one piece of memory, or why they could not be made.

    The copy in a worker opens the corpus by its path when the first step is asked for, so that a
    failure has a way home.
    """

    def __init__(self, batches: TrainingBatches, mine: range, parts: int) -> None:
        self._batches: TrainingBatches | bytes = batches
        self._mine = mine
        self._parts = parts

    def __getstate__(self) -> dict[str, object]:
        return self.__dict__ | {"_batches": pickle.dumps(self._batches)}

    def make(self, step: int) -> list[Batch]:
        if isinstance(self._batches, bytes):
            self._batches = pickle.loads(self._batches)
        assert isinstance(self._batches, TrainingBatches)
        return [self._batches.at(step, part, self._parts) for part in self._mine]

    def __getitem__(self, step: int) -> _Packed | _Failure:
        try:
            return _Packed.of(self.make(step))
        except Exception as error:
            return _Failure.of(error)


@dataclass(frozen=True)
class _Packed:
    """A step's parts side by side in one tensor: one file descriptor and one copy, however many.

    places: of each field of `Batch`, dtype, shape (parts first) and offset in bytes.
    """

    memory: Tensor
    places: tuple[tuple[torch.dtype, torch.Size, int], ...]

    @classmethod
    def of(cls, parts: list[Batch]) -> _Packed:
        columns = [[getattr(part, field.name) for part in parts] for field in fields(Batch)]
        places: list[tuple[torch.dtype, torch.Size, int]] = []
        size = 0
        met: dict[tuple[int, ...], int] = {}  # without augmentation `clean` is `wav`, once
        for column in columns:
            first, identity = column[0], tuple(map(id, column))
            place = met.setdefault(identity, size)
            places.append((first.dtype, torch.Size((len(parts), *first.shape)), place))
            if place == size:
                nbytes = len(parts) * first.numel() * first.element_size()
                size += -(-nbytes // _ALIGNED) * _ALIGNED
        packed = cls(torch.empty(size, dtype=torch.uint8), tuple(places))
        for column, spot in zip(columns, packed.places, strict=True):
            torch.stack(column, out=packed._view(*spot))
        return packed

    def _view(self, dtype: torch.dtype, shape: torch.Size, offset: int) -> Tensor:
        return self.memory[offset : offset + shape.numel() * dtype.itemsize].view(dtype).view(shape)

    def unpack(self) -> list[Batch]:
        views = {place: self._view(*place).unbind() for place in self.places}
        columns = [views[place] for place in self.places]
        return [Batch(*row) for row in zip(*columns, strict=True)]

    def pin_memory(self) -> _Packed:
        return _Packed(self.memory.pin_memory(), self.places)


@dataclass(frozen=True)
class _Failure:
    """An exception on its way from a worker, and where it came from in words."""

    error: Exception
    trace: str

    @classmethod
    def of(cls, error: Exception) -> _Failure:
        trace = "".join(traceback.format_exception(error))
        try:
            pickle.loads(pickle.dumps(error))
        except Exception:  # of a library's, whose constructor wants more than a text
            error = RuntimeError(f"{type(error).__name__}: {error}")
        return cls(error, trace)

    @property
    def cause(self) -> Exception | None:
        """For the traceback of a bug of ours; a user's mistake is its sentence alone."""
        if isinstance(self.error, VconvError):
            return None
        return RuntimeError(f"in a data worker:\n{self.trace}")


@contextmanager
def _starting() -> Iterator[None]:
    """What processes started inside inherit, with nothing changed for this one afterwards."""
    # Held back, signals wait here and are never lost, and the children begin deaf to them: there
    # is no moment before `_begin_worker` at which one would end them.
    masked = hasattr(signal, "pthread_sigmask")
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS) if masked else set()
    # The tracker of semaphores is a process too; started by the first of them it would take the
    # mask off in the middle.
    if masked:
        resource_tracker.ensure_running()
        signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
    environment = {name: os.environ.get(name) for name in _WORKERS_ENVIRONMENT}
    os.environ.update(_WORKERS_ENVIRONMENT)
    main = threading.current_thread() is threading.main_thread()
    child = getattr(signal, "SIGCHLD", None)
    handler = signal.getsignal(child) if child is not None else None
    try:
        yield
    finally:
        # DataLoader's handler raises wherever the main thread happens to be when a worker dies,
        # be it in the middle of a commit. `_Ahead.next` finds out by itself.
        if child is not None and main:
            signal.signal(child, handler or signal.SIG_DFL)
        for name, value in environment.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
        if masked:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _begin_worker(trainer: int, worker: int) -> None:
    """The first thing that a worker does: the trainer alone decides when it ends."""
    for number in _SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    # Elsewhere than on Linux DataLoader's own watch ends them, five seconds after they are idle.
    die_with(trainer)
    # There is nothing to clean up, and an interpreter that unwinds its daemon threads through
    # torch's C++ may end in std::terminate, and say so.
    atexit.register(os._exit, 0)


def _obituary(process: BaseProcess) -> str:
    code = process.exitcode or 0
    how = f"killed by {signal.Signals(-code).name}" if code < 0 else f"left with code {code}"
    return (
        f"A data worker (process {process.pid}) was {how}, for want of memory perhaps (or of "
        "space in /dev/shm); set data.workers lower, or to 0, and run the same command again."
    )
