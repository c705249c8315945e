"""Several files at a time, in threads over one converter."""

from __future__ import annotations

import contextlib
import queue
import threading
import time
from types import TracebackType
from typing import Protocol

from .attempt import Options, Outcome, Task, attempt, gathering
from .converter import Converter
from .lanes import usable_cores
from .results import Cancelled

_PATIENCE_SECONDS = 15.0


class Pool(Protocol):
    """Whatever converts tasks: threads here, or machines. A context manager; leaving it ends what
    is running."""

    @property
    def wanted(self) -> int:
        """How many more tasks keep it busy."""

    def submit(self, task: Task) -> None:
        """Give it another."""

    def wait(self, seconds: float) -> list[Outcome]:
        """What is over, as soon as there is any, or after so long."""

    def stop(self) -> list[Outcome]:
        """End what is running, and wait for its end; the outcomes that came about meanwhile."""

    @property
    def shares(self) -> dict[int, tuple[float, float | None]]:
        """Of the tasks that are running: the seconds done, and in all where that is known."""

    def __enter__(self) -> Pool: ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None: ...


class Threads:
    """``count`` threads; those that are busy share the process's cores."""

    def __init__(self, converter: Converter, options: Options, count: int) -> None:
        self._converter = converter
        self._options = options
        self._count = count
        self._pending = 0
        self._stopped = False
        self._tasks: queue.SimpleQueue[Task | None] = queue.SimpleQueue()
        self._over: queue.SimpleQueue[Outcome | None] = queue.SimpleQueue()
        self._running: dict[int, tuple[float, float | None]] = {}
        self._threads: list[threading.Thread] = []
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> Threads:
        self._stack.enter_context(gathering())
        # Daemons: a disk that has gone away, and with it a thread for ever, keeps nobody here.
        self._threads = [
            threading.Thread(target=self._work, daemon=True) for _ in range(self._count)
        ]
        for thread in self._threads:
            thread.start()
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
        self._stack.close()

    @property
    def wanted(self) -> int:
        """As many are waiting as are running: no thread waits for one that is being told of."""
        return 2 * self._count - self._pending

    def submit(self, task: Task) -> None:
        self._pending += 1
        self._tasks.put(task)

    def wait(self, seconds: float) -> list[Outcome]:
        outcomes = []
        try:
            outcomes.append(self._over.get(timeout=seconds))
            while True:
                outcomes.append(self._over.get_nowait())
        except queue.Empty:
            pass
        self._pending -= len(outcomes)
        return [outcome for outcome in outcomes if outcome is not None]

    def stop(self) -> list[Outcome]:
        self._stopped = True
        for _ in self._threads:
            self._tasks.put(None)
        deadline = time.monotonic() + _PATIENCE_SECONDS
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))
        self._threads = []
        return self.wait(0)

    @property
    def shares(self) -> dict[int, tuple[float, float | None]]:
        return self._running.copy()

    def _work(self) -> None:
        while (task := self._tasks.get()) is not None and not self._stopped:
            self._over.put(self._attempt(task))

    def _attempt(self, task: Task) -> Outcome | None:
        def progress(done: float, total: float | None) -> bool:
            self._running[task.number] = done, total
            return not self._stopped

        self._running[task.number] = 0.0, None
        try:
            return attempt(
                self._converter, task, self._options, progress=progress, cores=self._share
            )
        except Cancelled:
            return None
        finally:
            del self._running[task.number]

    def _share(self) -> int:
        return max(1, usable_cores() // max(1, len(self._running)))
