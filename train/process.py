"""A training run as a process: its device, threads and memory, its lock and its signals."""

from __future__ import annotations

import ctypes
import errno
import os
import signal
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import torch

from vconv.config import Config
from vconv.errors import SetupError, UsageError

from .lock import only_writer
from .world import expected_size, local_rank

# A full, failing or read-only disk.
_STORAGE = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS}


def device(name: str) -> torch.device:
    """The device of this process: with ``auto`` or ``cuda``, that of its number on the machine."""
    several = expected_size() > 1
    if name == "auto" and not torch.cuda.is_available():
        return torch.device("cpu")
    try:
        device = torch.device("cuda" if name == "auto" else name)
    except RuntimeError:
        raise UsageError(f"train.device: {name!r} is no device; use auto, cpu or cuda:N.") from None
    if device.type != "cuda":
        return device
    if not torch.cuda.is_available():
        raise SetupError(f"train.device: {name} was asked for, but torch finds no CUDA device.")
    if several and device.index is not None:
        raise UsageError(
            f"train.device: {name} is one device, and there are {expected_size()} processes; use "
            "cuda, and each takes its own."
        )
    index = local_rank() if device.index is None else device.index
    if index >= torch.cuda.device_count():
        raise SetupError(
            f"train.device: there is no cuda:{index}; torch finds {torch.cuda.device_count()} CUDA "
            "devices" + (", too few for the processes on this machine." if several else ".")
        )
    torch.cuda.set_device(index)
    return torch.device("cuda", index)


def full_precision(device: torch.device) -> None:
    """Keep a GPU's convolutions in float32 where nothing says otherwise: torch would round their
    inputs to 10 bits, and the power of a frame of features spans more. The exported encoder
    computes in float32."""
    if device.type == "cuda":
        torch.backends.cudnn.allow_tf32 = False


def compute_exactly(device: torch.device) -> None:
    """Leave no choice of order to operators: the same bits for any number of processes.

    On a CPU an operator's sums depend on its number of threads; on a GPU on the algorithm.
    """
    if device.type == "cuda":
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read at cuBLAS's first use
        torch.backends.cudnn.benchmark = False
        torch.use_deterministic_algorithms(True)
    else:
        torch.set_num_threads(1)


def decoder_threads(config: Config, device: torch.device) -> ThreadPoolExecutor | None:
    """On a CPU, threads that decode parts of the batch side by side, each on one core.

    Cores share nothing but the weights then, where within one operator they would wait for each
    other after every small matrix product.
    """
    if device.type != "cpu" or config.train.decode_batch is None:
        return None
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    return ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,))


def keep_freed_memory() -> None:
    """Let glibc reuse large blocks instead of returning them to the system after each tensor.

    Every step allocates the same activations; mapping and zeroing their pages anew costs a CPU
    run a third of its time (measured: 1.3 to 1.5 times the samples/s with this). Elsewhere than
    with glibc there is no mallopt, and nothing is done.
    """
    trim_threshold, mmap_max = -1, -4
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return
    mallopt(mmap_max, 0)
    mallopt(trim_threshold, 2**31 - 1)


@contextmanager
def lock(folder: Path) -> Iterator[None]:
    """One writer per run; a second one is refused at once, naming the holder.

    Inside, a disk that is full or fails becomes a SetupError in one sentence.
    """
    try:
        with only_writer(folder, "a training run"):
            yield
    except OSError as error:
        if error.errno not in _STORAGE:
            raise
        raise SetupError(
            f"{folder}: cannot be written ({error}); the checkpoints stand, and the same command "
            "goes on from the last."
        ) from error


@contextmanager
def signals() -> Iterator[list[int]]:
    """Signals only set a flag (the list gets the signal's number); a second SIGINT aborts."""
    caught: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        if caught and number == signal.SIGINT:
            raise KeyboardInterrupt
        caught.append(number)

    names = [name for name in ("SIGINT", "SIGTERM", "SIGUSR1") if hasattr(signal, name)]
    before = {name: signal.signal(getattr(signal, name), note) for name in names}
    try:
        yield caught
    finally:
        for name, handler in before.items():
            signal.signal(getattr(signal, name), handler)


def environment(device: torch.device, processes: int) -> dict[str, Any]:
    """What may change the last bits of a step, for a checkpoint to record."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
    return {
        "torch": torch.__version__,
        "device": name,
        "threads": torch.get_num_threads(),
        "processes": processes,
    }


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """In what two environments differ, in words; "" when they are the same."""
    return ", ".join(
        f"{key} {before[key]} then and {value} now"
        for key, value in now.items()
        if key in before and before[key] != value
    )
