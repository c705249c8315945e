"""Several training processes on one machine: started together, told together, ended together.

What starts them needs no torch.
"""

from __future__ import annotations

import ctypes
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import FrameType

from vconv.config import load_config
from vconv.errors import UsageError
from vconv.messages import say

# Left to the others, once one has failed, to end by themselves.
_GRACE_SECONDS = 5.0
_LAUNCHER = "VCONV_LAUNCHER"
_SIGNALS = ("SIGINT", "SIGTERM", "SIGUSR1")


def launch_training(
    processes: int,
    config: Path,
    *,
    run: str | None,
    overrides: Sequence[str],
    resume: str,
    smoke_test: bool,
) -> int:
    """``vconv train --nproc``; raises UsageError for what every process would refuse."""
    if "RANK" in os.environ:
        raise UsageError("--nproc starts processes, and torchrun has started them already.")
    train = load_config(config, overrides).train
    microbatches(train.microbatches, train.batch, processes)
    arguments = [str(config), "--resume", resume]
    arguments += [] if run is None else ["--run", run]
    arguments += [word for override in overrides for word in ("--set", override)]
    arguments += ["--smoke-test"] if smoke_test else []
    return launch(processes, arguments)


def microbatches(wanted: int | None, batch: int, size: int) -> int:
    """How many microbatches a step has; ``wanted`` None: one for each process.

    Raises UsageError when they cannot be shared out evenly.
    """
    count = size if wanted is None else wanted
    if batch % count:
        raise UsageError(
            f"train.batch must be a multiple of the number of processes, {size}; found {batch}."
        )
    if count % size:
        fitting = ", ".join(str(n) for n in range(1, count + 1) if count % n == 0)
        raise UsageError(
            f"{size} processes cannot share the run's {count} microbatches evenly; start one of "
            f"{fitting} processes, or a new run with train.microbatches a multiple of {size}."
        )
    return count


def launch(processes: int, arguments: Sequence[str]) -> int:
    """Run ``python -m vconv.train`` that many times as one group; returns the exit code.

    Signals are passed on. When a process fails the others are ended, and its code is returned
    (128 + signal when one killed it).
    """
    environment = os.environ | {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(_free_port()),
        "WORLD_SIZE": str(processes),
        "LOCAL_WORLD_SIZE": str(processes),
        _LAUNCHER: str(os.getpid()),
    }
    # Processes that each take all cores get in each other's way.
    environment.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // processes)))
    children = [
        subprocess.Popen(
            [sys.executable, "-m", "vconv.train", *arguments],
            env=environment | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            # Out of the terminal's group: what it sends reaches them through this process, once.
            start_new_session=True,
        )
        for rank in range(processes)
    ]

    told: list[int] = []

    def pass_on(number: int, frame: FrameType | None) -> None:
        told.append(number)
        for child in children:
            if child.poll() is None:
                child.send_signal(number)

    names = [name for name in _SIGNALS if hasattr(signal, name)]
    before = {name: signal.signal(getattr(signal, name), pass_on) for name in names}
    try:
        code = _wait(children)
        # Told twice they break off; some then lose the others, which is no fault of theirs.
        return 128 + told[0] if len(told) > 1 else code
    finally:
        for child in children:
            child.kill()
            child.wait()
        for name, handler in before.items():
            signal.signal(getattr(signal, name), handler)


def die_with_launcher() -> None:
    """Have this process end with its launcher, if it has one.

    A launcher that is killed tells nobody; its processes would go on writing into the run, and
    hold it against the next.
    """
    if "RANK" in os.environ:
        launcher = os.environ.get(_LAUNCHER)
        die_with(os.getppid() if launcher is None else int(launcher))


def die_with(parent: int) -> None:
    """Have the kernel end this process when its parent is gone, however it went.

    Linux only: elsewhere there is no such request. In the parent it is the thread that started
    this process which counts.
    """
    if sys.platform == "linux":
        request_death_signal = 1  # PR_SET_PDEATHSIG
        ctypes.CDLL(None).prctl(request_death_signal, signal.SIGKILL)
    if os.getppid() != parent:  # gone before the request
        os._exit(128 + signal.SIGKILL)


def _wait(children: Sequence[subprocess.Popen[bytes]]) -> int:
    """Until all have ended; the code of the first that failed, else of those that were stopped."""
    stopped = {0, *(128 + int(getattr(signal, name)) for name in _SIGNALS if hasattr(signal, name))}
    failed: int | None = None
    deadline = float("inf")
    while any(child.poll() is None for child in children):
        for rank, child in enumerate(children):
            code = child.poll()
            if failed is None and code is not None and code not in stopped:
                failed, deadline = code, time.monotonic() + _GRACE_SECONDS
                if code < 0:
                    say(
                        f"process {rank} of {len(children)} was killed by signal {-code}; run the "
                        "same command again to go on"
                    )
        if time.monotonic() > deadline:
            for child in children:
                child.kill()
        time.sleep(0.05)
    if failed is None:
        failed = max((child.returncode for child in children), key=lambda code: (code < 0, code))
    return 128 - failed if failed < 0 else failed


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
