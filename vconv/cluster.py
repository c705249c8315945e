"""Several machines: the tasks of a batch for the actors of a Ray cluster.

Every actor loads the model once and converts a file at a time, by the function that threads use
too. The machines share a file system: an actor leaves its output complete beside its place, and the
driver, which alone writes the record, puts it there. So a file that is tried again because its
actor died, or was thought to have died, appears once.
"""

from __future__ import annotations

import contextlib
import importlib
import logging
import os
import platform
import signal
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Any

from .attempt import Options, Outcome, Task, attempt, gathering
from .audio import beside_prefix
from .converter import Converter, load
from .errors import SetupError, UsageError, VconvError
from .manifest import MANIFEST
from .reading import printable
from .record import remove_beside

MAX_ATTEMPTS = 3
_KILL_SECONDS = 10.0
_INTERRUPTIONS = ("SIGINT", "SIGTERM", "SIGHUP")


class _Worker:
    """What an actor does."""

    def __init__(self, options: Options, digest: str) -> None:
        self._options = options
        self._digest = digest
        self._converter: Converter | None = None

    def start(self) -> VconvError | None:
        """Load the model; why it cannot be used, if it cannot."""
        options = self._options
        try:
            converter = load(
                options.model,
                device=options.device,
                engine=options.engine,
                precision=options.precision,
            )
        except VconvError as error:
            return type(error)(f"On the machine {platform.node()}: {error}")
        if converter.info.digest != self._digest:
            return UsageError(
                f"On the machine {platform.node()} the model {options.model} is another one; "
                "name a folder that all machines share."
            )
        self._converter = converter
        return None

    def attempt(self, task: Task) -> Outcome:
        """Convert a file."""
        assert self._converter is not None
        with gathering():
            outcome = attempt(
                self._converter,
                task,
                self._options,
                progress=lambda done, total: True,
                cores=lambda: 1,
            )
        error = outcome.error
        if error is None or isinstance(error, (VconvError, MemoryError)):
            return outcome
        # Not every exception can travel.
        return replace(outcome, error=RuntimeError(f"{type(error).__name__}: {error}"))


@dataclass
class _Actor:
    handle: Any
    task: Task | None = None  # None while it starts


class Cluster:
    """A pool (``pool.Pool``) of actors: ``count``, by default one for each processor.

    Entering it raises SetupError where there is no Ray, or no cluster at the address; waiting
    raises what an actor says that cannot load the model.
    """

    def __init__(
        self, address: str, converter: Converter, options: Options, count: int | None, files: int
    ) -> None:
        self._address = address
        self._count = count
        self._files = files
        folder = os.path.exists(os.path.join(options.model, MANIFEST))
        # Resolved here, so that all machines do the same; paths as an actor understands them.
        self._options = replace(
            options,
            model=os.path.abspath(options.model) if folder else options.model,
            engine=converter.engine,
            precision=converter.precision,
        )
        self._digest = converter.info.digest
        self._ray: Any = None
        self._waiting: deque[Task] = deque()
        self._idle: list[Any] = []
        self._actors: dict[Any, _Actor] = {}  # by the reference to what it is doing
        self._deaths: dict[int, int] = {}
        self._false_starts = 0

    def __enter__(self) -> Cluster:
        try:
            self._ray = importlib.import_module("ray")
        except ImportError:
            raise SetupError("--ray needs Ray; run `pip install 'vconv[cluster]'`.") from None
        self._connect()
        try:
            processors = int(self._ray.cluster_resources().get("CPU", 0))
            self._count = min(self._count or processors, self._files)
            if self._count == 0:
                raise SetupError(f"--ray={printable(self._address)}: it has no processors.")
            for _ in range(self._count):
                self._start()
        except BaseException:
            self._ray.shutdown()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for outcome in self.stop():
            if outcome.made is not None:
                outcome.made.path.unlink(missing_ok=True)
        with _own_handlers():
            self._ray.shutdown()

    @property
    def wanted(self) -> int:
        """One task for each actor, and one that waits."""
        assert self._count is not None
        busy = sum(actor.task is not None for actor in self._actors.values())
        return 2 * self._count - busy - len(self._waiting)

    @property
    def shares(self) -> dict[int, tuple[float, float | None]]:
        """Unknown: actors tell of whole files only."""
        return {}

    def submit(self, task: Task) -> None:
        self._waiting.append(
            replace(task, source=os.path.abspath(task.source), target=os.path.abspath(task.target))
        )
        self._hand_out()

    def wait(self, seconds: float) -> list[Outcome]:
        if not self._actors:
            time.sleep(seconds if self._waiting else 0)
            return []
        over, _ = self._ray.wait(list(self._actors), num_returns=1, timeout=seconds)
        # Whatever else is over by now, too.
        over, _ = self._ray.wait(list(self._actors), num_returns=len(self._actors), timeout=0)
        outcomes = []
        for reference in over:
            actor = self._actors.pop(reference)
            outcome = self._result(reference, actor)
            if outcome is not None:
                outcomes.append(outcome)
        self._hand_out()
        return outcomes

    def stop(self) -> list[Outcome]:
        handles = [*self._idle, *(actor.handle for actor in self._actors.values())]
        self._idle, self._waiting = [], deque()
        for handle in handles:
            self._ray.kill(handle)
        outcomes = []
        references = list(self._actors)
        if references:
            self._ray.wait(references, num_returns=len(references), timeout=_KILL_SECONDS)
        for reference, actor in self._actors.items():
            if actor.task is None:
                continue
            try:
                outcomes.append(self._ray.get(reference, timeout=0))
            except Exception:  # killed, as was meant
                _clear_away(actor.task)
        self._actors = {}
        return outcomes

    def _result(self, reference: Any, actor: _Actor) -> Outcome | None:
        """What an actor brings; it is then idle, or replaced by another."""
        task = actor.task
        died = self._ray.exceptions.RayActorError
        try:
            found = self._ray.get(reference)
        except died as error:
            with contextlib.suppress(Exception):
                self._ray.kill(actor.handle)  # if it only could not be reached
            self._start()
            return self._again(task, error)
        except self._ray.exceptions.RayError as error:
            self._idle.append(actor.handle)
            if task is None:
                raise SetupError(f"--ray: an actor cannot start ({_line(error)}).") from None
            return Outcome(task.number, "failed", error=RuntimeError(_line(error)))
        if task is None and found is not None:
            raise found
        self._idle.append(actor.handle)
        return None if task is None else found

    def _again(self, task: Task | None, error: Exception) -> Outcome | None:
        """Hand a task out anew whose actor died; the failure that it is after a few deaths."""
        if task is None:
            self._false_starts += 1
            if self._false_starts > MAX_ATTEMPTS * (self._count or 1):
                raise SetupError(f"--ray: the actors die as they start ({_line(error)}).")
            return None
        _clear_away(task)
        deaths = self._deaths[task.number] = self._deaths.get(task.number, 0) + 1
        if deaths < MAX_ATTEMPTS:
            self._waiting.appendleft(task)
            return None
        what = f"{printable(task.source)}: {deaths} actors died of converting it, or beside it."
        return Outcome(task.number, "failed", error=SetupError(what))

    def _start(self) -> None:
        actor = self._ray.remote(_Worker).options(num_cpus=1, max_restarts=0)
        handle = actor.remote(self._options, self._digest)
        self._actors[handle.start.remote()] = _Actor(handle)

    def _hand_out(self) -> None:
        while self._idle and self._waiting:
            handle, task = self._idle.pop(), self._waiting.popleft()
            self._actors[handle.attempt.remote(task)] = _Actor(handle, task)

    def _connect(self) -> None:
        """A running cluster at the address; for auto the one that is running here, if any, or a new
        one of this machine alone."""
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # a cluster of ours reports nothing
        os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # or it warns of that
        options = {"logging_level": logging.ERROR, "log_to_driver": False}
        with _own_handlers():
            try:
                if self._address == "auto":
                    try:
                        self._ray.init(address="auto", **options)
                        return
                    except ConnectionError:
                        self._address = "local"
                if self._address == "local":
                    options["include_dashboard"] = False
                self._ray.init(address=self._address, **options)
            except Exception as error:  # they share no base but this one
                raise SetupError(
                    f"--ray={printable(self._address)}: cannot be reached ({_line(error)})."
                ) from None


@contextlib.contextmanager
def _own_handlers() -> Iterator[None]:
    """Keep our signal handlers: Ray installs one that leaves with another exit code."""
    numbers = [getattr(signal, name) for name in _INTERRUPTIONS if hasattr(signal, name)]
    before = {number: signal.getsignal(number) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _clear_away(task: Task) -> None:
    """Remove what a dead actor left half-written."""
    target = Path(task.target)
    remove_beside(str(target.parent), {beside_prefix(target)})


def _line(error: Exception) -> str:
    """The first line of what may be many."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return printable(lines[0].strip().rstrip("."))
