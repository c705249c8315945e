"""How fast a GPU's multiprocessors read from its L2 cache, by a Triton kernel.

It does what a program does that generates: all programs read the same buffer, of the size of a
network's weights, from one end to the other and again. The first level of cache is passed over
(``.cg``), or it would answer a program for another one on its multiprocessor.
"""

from __future__ import annotations

import statistics

import torch
import triton
import triton.language as tl

BLOCK = 4096
SIZE = 320 * BLOCK  # float32: 5.2 MB
REPEATS = 200
PROGRAMS = 4  # of a multiprocessor, so that enough reads are under way


@triton.jit
def read(x, sums, size: tl.constexpr, repeats: tl.constexpr, block: tl.constexpr):
    offsets = tl.arange(0, block)
    total = tl.zeros([block], tl.float32)
    for _ in range(repeats):
        for first in range(0, size, block):
            total += tl.load(x + first + offsets, cache_modifier=".cg")
    tl.store(sums + tl.program_id(0) * block + offsets, total)


def bytes_per_second(device: str, size: int = SIZE, repeats: int = REPEATS) -> float:
    """All multiprocessors together; the median of seven turns.

    Raises AssertionError if something else was read.
    """
    programs = PROGRAMS * torch.cuda.get_device_properties(device).multi_processor_count
    with torch.cuda.device(device):
        x = torch.randint(0, 8, [size], device=device).float()
        sums = torch.full([programs, BLOCK], -1.0, device=device)
        times = []
        for _ in range(9):
            begun, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            begun.record()
            read[(programs,)](x, sums, size, repeats, BLOCK, num_warps=8)
            ended.record()
            torch.cuda.synchronize()
            times.append(begun.elapsed_time(ended) / 1000)
        assert torch.equal(sums[-1], repeats * x.view(-1, BLOCK).sum(0))
    return programs * repeats * x.nbytes / statistics.median(times[2:])
