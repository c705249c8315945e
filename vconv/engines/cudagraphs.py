"""The step of ``nn.incremental`` as CUDA graphs: a block of samples in one launch.

A sample takes some ninety operations, and on a GPU each takes longer to launch than to compute for
few lanes. So the operations of a block of samples are recorded once, with all that they read and
write at fixed places, and launched together from then on. It is the eager module that is recorded:
the engine for a GPU where nothing better is there, and what a better one is compared with.

A recording is good for one number of lanes, one temperature, and for drawing or following codes.
Lanes are therefore made up to a round number: in company (``shared``) their number changes often,
and a recording takes as long as some chunks do.

Legend: B lanes, T samples, F conditioning steps, C conditioning width, Q levels.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vconv.engines.base import conditioning_steps
from vconv.engines.torchscript import IncrementalEngine
from vconv.nn.incremental import IncrementalWaveNet

_State = tuple[Tensor, Tensor, Tensor]

MOST_RECORDINGS = 16  # at a time; of those beyond, the one unused for longest goes
_ROUND_LANES = 64


class CudaGraphsEngine(IncrementalEngine):
    """An engine of which the step is replayed as CUDA graphs; its parameters and errors are
    ``IncrementalEngine``'s. On "cpu" the same blocks are run without a recording, for tests."""

    name = "cudagraphs"

    def __init__(
        self,
        weights: Mapping[str, NDArray[np.float32]],
        *,
        blocks: int,
        layers: int,
        kernel_size: int,
        hop: int,
        device: str = "cuda",
    ) -> None:
        super().__init__(
            weights,
            blocks=blocks,
            layers=layers,
            kernel_size=kernel_size,
            hop=hop,
            device=device,
            step=Replayed,
        )


class Replayed:
    """``IncrementalWaveNet.forward``, block after block of fixed size.

    Threads take turns, call by call; states are copied in and out, so that they stay the caller's.
    """

    def __init__(self, network: IncrementalWaveNet) -> None:
        self._network = network
        self._blocks: OrderedDict[tuple[int, float, bool], _Block] = OrderedDict()
        self._lock = threading.Lock()

    def __call__(
        self,
        conditioning: Tensor,
        uniforms: Tensor,
        temperature: float,
        forced: Tensor | None,
        state: _State,
    ) -> tuple[Tensor, Tensor, _State]:
        """As ``IncrementalWaveNet.forward``. Only launches: nothing here waits for the device, but
        for a new recording."""
        lanes, samples = uniforms.shape
        network = self._network
        hop, length = network.hop, network.conditioning.block
        codes = torch.empty([lanes, samples], dtype=torch.int64, device=uniforms.device)
        logits = uniforms.new_empty([lanes, 0 if forced is None else samples, network.levels])
        with self._lock:
            block = self._block(lanes, conditioning.shape[2], temperature, forced is not None)
            block.enter(state)
            for first in range(0, samples, length):
                # With hop 1 the last block may be a part of one.
                here = slice(first, min(first + length, samples))
                step = first // hop
                steps = conditioning_steps(here.stop - first, hop)
                block.run(
                    conditioning[:, step : step + steps],
                    uniforms[:, here],
                    None if forced is None else forced[:, here],
                )
                codes[:, here] = block.codes[:lanes, : here.stop - first]
                logits[:, here] = block.logits[:lanes, : here.stop - first]
            return codes, logits, block.leave(lanes)

    def _block(self, lanes: int, width: int, temperature: float, forced: bool) -> _Block:
        key = (round_lanes(lanes), temperature, forced)
        block = self._blocks.pop(key, None)
        if block is None:
            if len(self._blocks) >= MOST_RECORDINGS:
                device = self._network.bias_sum.device
                if device.type == "cuda":
                    torch.cuda.synchronize(device)  # it may be running for another thread
                self._blocks.popitem(last=False)
            block = _Block(self._network, key[0], width, temperature, forced)
        self._blocks[key] = block
        return block


def round_lanes(lanes: int) -> int:
    """The lanes that are computed for so many: the next power of two, or above 64 the next multiple
    of 64."""
    if lanes <= _ROUND_LANES:
        return 1 << (lanes - 1).bit_length()
    return -(-lanes // _ROUND_LANES) * _ROUND_LANES


class _Block:
    """A block of samples of so many lanes, of which everything has a fixed place.

    Lanes beyond those of a call go on computing whatever is there; lanes do not touch each other.
    """

    def __init__(
        self,
        network: IncrementalWaveNet,
        lanes: int,
        width: int,
        temperature: float,
        forced: bool,
    ) -> None:
        device = network.bias_sum.device
        self._network = network
        self._length = length = network.conditioning.block
        self._temperature = temperature
        steps = conditioning_steps(length, network.hop)
        self._conditioning = torch.zeros([lanes, steps, width], device=device)
        self._uniforms = torch.zeros([lanes, length], device=device)
        self._state = network.initial_state(lanes)
        self.codes = torch.zeros([lanes, length], dtype=torch.int64, device=device)
        self.logits = torch.zeros([lanes, length if forced else 0, network.levels], device=device)
        self._forced = self.codes.clone() if forced else None
        self._whole = _recorded(self._advance, device) if device.type == "cuda" else self._advance

    def enter(self, state: _State) -> None:
        """Begin from this state, of as many lanes or fewer."""
        code, contexts, position = state
        self._state[0][: len(code)] = code
        self._state[1][:, : len(code)] = contexts
        self._state[2].copy_(position)

    def leave(self, lanes: int) -> _State:
        """The state of the first lanes, the caller's own."""
        code, contexts, position = self._state
        its = contexts[:, :lanes].clone(memory_format=torch.contiguous_format)
        return code[:lanes].clone(), its, position.clone()

    def run(self, conditioning: Tensor, uniforms: Tensor, forced: Tensor | None) -> None:
        """The next samples, into ``codes`` and, if they are forced, ``logits``."""
        lanes, samples = uniforms.shape
        self._conditioning[:lanes, : conditioning.shape[1]] = conditioning
        self._uniforms[:lanes, :samples] = uniforms
        if forced is not None:
            assert self._forced is not None
            self._forced[:lanes, :samples] = forced
        if samples == self._length:
            self._whole()
        else:
            self._advance(samples)

    def _advance(self, samples: int | None = None) -> None:
        """The first samples of the block, or all: what is recorded."""
        steps = conditioning_steps(samples or self._length, self._network.hop)
        here = slice(samples)
        codes, logits, after = self._network(
            self._conditioning[:, :steps],
            self._uniforms[:, here],
            self._temperature,
            None if self._forced is None else self._forced[:, here],
            self._state,
        )
        self.codes[:, here] = codes
        self.logits[:, here] = logits
        for place, value in zip(self._state, after, strict=True):
            place.copy_(value)


def _recorded(function: Callable[[], None], device: torch.device) -> Callable[[], None]:
    """The function's launches on the device, as one."""
    with torch.cuda.device(device):
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            function()  # libraries choose their kernels and take their memory before a recording
        graph = torch.cuda.CUDAGraph()
        # Other threads may go on using the device meanwhile, onnxruntime's sessions for example.
        with torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"):
            function()
        torch.cuda.current_stream().wait_stream(stream)
    return graph.replay
