"""The processes that train together, and how what they compute becomes one step.

A step's batch is cut into microbatches. What a microbatch yields (a gradient, statistics, figures)
is a function of (seed, step, its number), whichever process computes it, and a step takes the mean
over all of them. So the number of processes decides who computes, not what.

S microbatches, P numbers that each yields, N vectors.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
from torch import Tensor, distributed
from torch.distributed.distributed_c10d import PrefixStore
from torch.distributed.rendezvous import rendezvous

from vconv.errors import SetupError

# The chief may be busy that long while the others wait: preparing a raw folder, k-means. The end
# of a process is noticed at once, by its launcher.
_PATIENCE = timedelta(hours=2)


@dataclass(frozen=True)
class World:
    """This process among those that train together; alone by default.

    ``exact``: sums are formed in the order of the microbatches, whoever computed them, so that
    any number of processes gets the same bits.
    """

    rank: int = 0
    size: int = 1
    exact: bool = False

    @property
    def chief(self) -> bool:
        """Whether this process writes, validates and speaks for all."""
        return self.rank == 0

    def share(self, microbatches: int) -> range:
        """Which of a step's microbatches this process computes."""
        each = microbatches // self.size
        return range(self.rank * each, (self.rank + 1) * each)

    def mean(self, own: Iterable[Tensor], microbatches: int) -> Tensor:
        """The mean [P] of what all microbatches yield, from this process's own [P], in order."""
        if self.exact and self.size > 1:
            own = self.gather(torch.stack(list(own)))
        total: Tensor | None = None
        for part in own:
            total = part.clone() if total is None else total.add_(part)
        assert total is not None
        if self.size > 1 and not self.exact:
            with _company(self):
                distributed.all_reduce(total)
        return total.div_(microbatches)

    def gather(self, own: Tensor) -> Tensor:
        """The rows [n, ...] of each process, one after another, [size * n, ...]."""
        if self.size == 1:
            return own
        everyone = [torch.empty_like(own) for _ in range(self.size)]
        with _company(self):
            distributed.all_gather(everyone, own.contiguous())
        return torch.cat(everyone)

    def broadcast(self, tensors: Iterable[Tensor]) -> None:
        """Give every process the chief's values, in place."""
        if self.size > 1:
            with _company(self):
                for tensor in tensors:
                    distributed.broadcast(tensor.detach(), src=0)
                    torch.autograd.graph.increment_version(tensor)  # it does not say so itself

    def tell(self, value: Any) -> Any:
        """The chief's value, in every process; anything that can be pickled."""
        if self.size == 1:
            return value
        box = [value]
        with _company(self):
            distributed.broadcast_object_list(box, src=0)
        return box[0]

    def largest(self, value: int) -> int:
        """The largest of all processes' values; it is also where they wait for each other."""
        if self.size == 1:
            return value
        # On the host, whatever the device: nothing here waits for a GPU.
        box = torch.tensor(value)
        with _company(self):
            distributed.all_reduce(box, distributed.ReduceOp.MAX)
        return int(box)

    def insist(self, tensors: Sequence[Tensor], step: int) -> None:
        """Raise SetupError unless every process holds the same bits.

        They must: each applies the same mean to the same weights. Cores or devices that round
        differently would drift apart unnoticed.
        """
        if self.size == 1:
            return
        whole = torch.cat([tensor.detach().reshape(-1).view(torch.int32) for tensor in tensors])
        places = torch.arange(1, len(whole) + 1, device=whole.device)
        digest = int((whole.long() * places).sum())  # wraps around, as a checksum may
        if self.largest(digest) != -self.largest(-digest):
            raise SetupError(
                f"the processes' weights differ at step {step:,}: they do not compute alike (other "
                "devices, or a fault); use one kind of device."
            )


ALONE = World()


def expected_size() -> int:
    """How many processes this one's launcher (torchrun, or ours) has started; 1 without one."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def expected_rank() -> int:
    """This process's number among them."""
    return int(os.environ.get("RANK", "0"))


def local_rank() -> int:
    """This process's number among those on this machine: which GPU it takes."""
    return int(os.environ.get("LOCAL_RANK", "0"))


@contextmanager
def join(device: torch.device, *, exact: bool) -> Iterator[World]:
    """Meet the other processes that this one's launcher has started, if any.

    Tensors of a GPU are exchanged by NCCL, the host's by gloo.
    """
    if expected_size() == 1:
        yield World(exact=exact)
        return
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    world = World(expected_rank(), expected_size(), exact)
    with _company(world):
        store, rank, size = next(rendezvous("env://", timeout=_PATIENCE))
        # torchrun keeps its store when it starts a failed group again, with the addresses of the
        # processes that are gone.
        attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
        distributed.init_process_group(
            backend,
            store=PrefixStore(f"attempt-{attempt}", store),
            rank=rank,
            world_size=size,
            timeout=_PATIENCE,
        )
    try:
        yield world
    finally:
        distributed.destroy_process_group()


@contextmanager
def _company(world: World) -> Iterator[None]:
    """A process that is left alone says so in a sentence; why the other ended is its to say."""
    try:
        yield
    except RuntimeError as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise SetupError(
            f"process {world.rank} of {world.size} has lost the others ({reason}); the "
            "checkpoints stand, and the same command goes on from the last."
        ) from error
