"""The engine `triton`: one persistent launch on a GPU draws a whole chunk for many lanes.

The kernel is `triton_kernel.generate`; here its weights are packed, its launch is chosen and its
state is kept.

Legend: B lanes, T samples, L layers, k taps, R residual, G gate, S skip and C conditioning
channels, Q levels.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
import triton
from numpy.typing import NDArray
from torch import Tensor

from vconv.engines.base import Codes, State, conditioning_steps
from vconv.errors import ModelError, UsageError
from vconv.nn.wavenet import WaveNet

from . import triton_kernel
from .torchscript import eager_network, torch_device

_OPERANDS = {"bf16": torch.bfloat16, "fp32": torch.float32}
_PANEL_BYTES = 150_000  # of a layer's weights that may lie in shared memory, of 227 KB


class LaneState(NamedTuple):
    """Lane-major, so that lanes are joined along the first dimension; each has its own time.

    code [B] int32, the previous one; time [B] int32, samples so far, which may wrap around since
    only its remainders by powers of two count; ring [B, rows, R], the inputs of all layers.
    """

    code: Tensor
    time: Tensor
    ring: Tensor


@dataclass(frozen=True)
class Launch:
    """How the kernel is cut into programs, tiles and stages.

    It is one for all calls of an engine, because sums of another tile might have other bits.
    lanes: of one program, at least 16, a power of two. wide: activations pass through memory in
    tiles of ``tile`` outputs and ``depth`` inputs, for layers too large to be held at once. warps:
    of a program. stages: of the loop over weights, how far loads go ahead.
    """

    lanes: int
    wide: bool
    tile: int
    depth: int
    warps: int
    stages: int
    head_depth: int = 32
    head_stages: int = 4

    @classmethod
    def best(cls, wavenet: WaveNet, itemsize: int) -> Launch:
        """For a network and weights of so many bytes."""
        layer = wavenet.gated_layers[0]
        channels = layer.condition.in_features if wavenet.hop == 1 else 0
        r, g, s, c = (
            _power_of_two(width) if width else 0
            for width in (
                wavenet.embedding.embedding_dim,
                layer.dilated.out_features // 2,
                wavenet.skip.out_features,
                channels,
            )
        )
        panel = itemsize * ((layer.kernel * r + c) * 2 * g + g * (r + s))
        if max(r, g) <= 128 and s <= 256 and panel <= _PANEL_BYTES:
            stages = 3 if 2 * panel <= _PANEL_BYTES else 2
            return cls(16, wide=False, tile=0, depth=0, warps=8, stages=stages)
        if itemsize == 2:
            return cls(32, wide=True, tile=128, depth=64, warps=8, stages=4)
        return cls(16, wide=True, tile=64, depth=32, warps=8, stages=3, head_stages=3)


class TritonEngine:
    """A WaveNet of the given weights, many lanes at a time. Any number of threads may use it.

    weights, and the errors for them, as TorchScriptEngine's. device: "cuda" or "cuda:N"; "cpu"
    under Triton's interpreter only, which is for tests. precision: "bf16", weights and what they
    are multiplied with rounded to bfloat16, or "fp32"; sums, the residual path and what follows
    the logits are float32 in both. launch: other than the network's best.

    Raises SetupError for a device that torch cannot use, UsageError for the CPU.
    """

    name = "triton"

    def __init__(
        self,
        weights: Mapping[str, NDArray[np.float32]],
        *,
        blocks: int,
        layers: int,
        kernel_size: int,
        hop: int,
        device: str = "cuda",
        precision: str = "bf16",
        launch: Launch | None = None,
    ) -> None:
        if device == "cpu" and not triton.knobs.runtime.interpret:
            raise UsageError(
                "the triton engine runs on a GPU only; use --device cuda, or --engine native."
            )
        self.device = torch_device(device)
        self.precision = precision
        self.hop = hop
        wavenet = eager_network(
            weights, blocks=blocks, layers=layers, kernel_size=kernel_size, hop=hop
        )
        self.levels = wavenet.levels
        self._silence = wavenet.silence
        operand = _OPERANDS[precision]
        self._launch = launch or Launch.best(wavenet, operand.itemsize)
        self._sizes = _sizes(wavenet, layers, self._launch)
        packed = _packed(wavenet, self._sizes, operand)
        self._weights = {name: tensor.to(self.device) for name, tensor in packed.items()}
        self._operand = operand
        sizes = self._sizes
        # A layer's ring has FACTOR * dilation rows.
        self._rows = sizes["FACTOR"] * (2**layers - 1) * blocks
        gates = sizes["LAYERS"] * 2 * sizes["GATE"]
        self._width = sizes["CHANNELS"] if hop == 1 else gates
        through = sizes["C"] + sizes["LAYERS"] * sizes["G"] if self._launch.wide else 0
        self._scratch = 2 * sizes["S"] + through

    def programs(self, lanes: int) -> int:
        """How many programs draw for so many lanes; each reads all weights for every sample."""
        return -(-lanes // self._launch.lanes)

    def initial_state(self, lanes: int) -> LaneState:
        """The state after silence: previous code levels // 2, contexts zero."""
        return LaneState(
            torch.full([lanes], self._silence, dtype=torch.int32, device=self.device),
            torch.zeros([lanes], dtype=torch.int32, device=self.device),
            torch.zeros(
                [lanes, self._rows, self._sizes["R"]], dtype=self._operand, device=self.device
            ),
        )

    def join(self, states: Sequence[State]) -> LaneState:
        """One state of all lanes of these, in order; they may have begun at different times."""
        parts = zip(*map(_lane_state, states), strict=True)
        return LaneState(*(torch.cat(part) for part in parts))

    def split(self, state: State, counts: Sequence[int]) -> list[LaneState]:
        """States of the first counts[0] lanes, the next counts[1] and so on, all lanes in all.

        Each has memory of its own, so that lanes kept do not keep those let go."""
        parts = [part.split(list(counts)) for part in _lane_state(state)]
        return [LaneState(*(part.clone() for part in lanes)) for lanes in zip(*parts, strict=True)]

    def generate(
        self,
        conditioning: NDArray[np.float32],
        uniforms: NDArray[np.float32],
        temperature: float,
        state: State,
    ) -> tuple[Codes, LaneState]:
        """Draws uniforms' T samples of every lane; see Engine."""
        codes, _, after = self._run(conditioning, uniforms, temperature, None, state)
        return codes.numpy(), after

    def score(
        self, conditioning: NDArray[np.float32], codes: Codes, state: State
    ) -> tuple[NDArray[np.float32], LaneState]:
        """Logits [B, T, Q] of the given codes' predecessors; see Engine."""
        nothing = np.zeros((len(codes), 1), np.float32)
        _, logits, after = self._run(conditioning, nothing, 1.0, codes, state)
        return logits.numpy(), after

    def _run(
        self,
        conditioning: NDArray[np.float32],
        uniforms: NDArray[np.float32],
        temperature: float,
        forced: Codes | None,
        state: State,
    ) -> tuple[Tensor, Tensor, LaneState]:
        before = _lane_state(state)
        lanes, samples = (uniforms if forced is None else forced).shape
        assert lanes == len(before.code), (lanes, len(before.code))
        steps = conditioning_steps(samples, self.hop)
        assert conditioning.shape == (lanes, steps, self._width), conditioning.shape
        programs = self.programs(lanes)
        rows = programs * self._launch.lanes
        with torch.inference_mode(), self._on_device():
            after = LaneState(*(part.clone() for part in before))
            given = self._sent(conditioning, torch.float32)
            following = forced is not None
            history = self._sent(np.zeros((lanes, 1)) if forced is None else forced, torch.int32)
            drawn = torch.empty(
                [lanes, 1 if following else samples],
                dtype=torch.uint8 if self.levels <= 256 else torch.int16,
                device=self.device,
            )
            logits = torch.empty(
                [lanes, samples if following else 0, self.levels], device=self.device
            )
            broken = torch.empty([lanes], dtype=torch.int32, device=self.device)
            path = self._sizes["R"] if self._launch.wide else 0
            triton_kernel.generate[(programs,)](
                codes=drawn,
                logits=logits,
                broken=broken,
                last_code=after.code,
                last_time=after.time,
                ring=after.ring,
                conditioning=given,
                uniforms=self._sent(uniforms, torch.float32),
                forced=history,
                scratch=torch.empty([rows, self._scratch], dtype=self._operand, device=self.device),
                path=torch.empty([rows, path], device=self.device),
                lanes=lanes,
                samples=samples,
                steps=steps,
                rows=self._rows,
                temperature=float(temperature),
                FORCED=following,
                HEAD_STAGES=self._launch.head_stages,
                STAGES=self._launch.stages,
                num_warps=self._launch.warps,
                **self._weights,
                **self._sizes,
            )
            # A gate has limits that hide an infinite conditioning: it is looked at too.
            unfit = broken.any() | ~torch.isfinite(given).all()
            codes, scores, failed = self._fetched(drawn, logits, unfit)
        if bool(failed):
            raise ModelError(
                "the WaveNet's output is not finite; its weights or conditioning are out of range."
            )
        return codes, scores, after

    @contextmanager
    def _on_device(self) -> Iterator[None]:
        """Triton launches on the current device of the thread."""
        if self.device.type == "cpu":
            yield
        else:
            with torch.cuda.device(self.device):
                yield

    def _sent(self, array: NDArray[Any], kind: torch.dtype) -> Tensor:
        """A contiguous copy on the device, without waiting for it."""
        on_gpu = self.device.type == "cuda"
        staged = torch.empty(array.shape, dtype=kind, pin_memory=on_gpu)
        staged.numpy()[...] = array
        return staged.to(self.device, non_blocking=True)

    def _fetched(self, *tensors: Tensor) -> list[Tensor]:
        """Copies in the machine's memory, when all are there: the call's one synchronisation."""
        if self.device.type == "cpu":
            return list(tensors)
        copies = [
            torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True).copy_(
                tensor, non_blocking=True
            )
            for tensor in tensors
        ]
        torch.cuda.current_stream().synchronize()
        return copies


def _lane_state(state: State) -> LaneState:
    assert isinstance(state, LaneState)
    return state


def _power_of_two(width: int) -> int:
    """The least that holds so many channels and that a matrix product takes."""
    return max(16, 1 << (width - 1).bit_length())


def _sizes(wavenet: WaveNet, per_block: int, launch: Launch) -> dict[str, int]:
    """The kernel's constants under its names."""
    layer = wavenet.gated_layers[0]
    residual, gate = wavenet.embedding.embedding_dim, layer.dilated.out_features // 2
    channels = layer.condition.in_features if wavenet.hop == 1 else 0
    skip = _power_of_two(wavenet.skip.out_features)
    r, g, c = (_power_of_two(width) if width else 0 for width in (residual, gate, channels))
    tile_r, tile_g, depth = r, g, 16
    if launch.wide:
        tile_r, tile_g = min(launch.tile, r), min(launch.tile, g)
        r, g = -(-residual // tile_r) * tile_r, -(-gate // tile_g) * tile_g
        # A tile of inputs is one of one tap, or of channels.
        depth = min([launch.depth, tile_r, tile_g, *([c] if c else [])])
        c = -(-channels // depth) * depth
    return {
        "LEVELS": wavenet.levels,
        "Q": _power_of_two(wavenet.levels),
        "R": r,
        "GATE": gate,
        "G": g,
        "S": skip,
        "CHANNELS": channels,
        "C": c,
        "LAYERS": len(wavenet.gated_layers),
        "PER_BLOCK": per_block,
        "TAPS": layer.kernel,
        "FACTOR": 1 << (layer.kernel - 1).bit_length(),
        "HOP": wavenet.hop,
        "WIDE": launch.wide,
        "M": launch.lanes,
        "TILE_R": tile_r,
        "TILE_G": tile_g,
        "DEPTH": depth,
        "HEAD_DEPTH": min(launch.head_depth, skip, g),
    }


def _packed(wavenet: WaveNet, sizes: Mapping[str, int], operand: torch.dtype) -> dict[str, Tensor]:
    """The kernel's weights under its names, inputs before outputs, padded with zeros."""
    layers = wavenet.gated_layers
    count, k = len(layers), sizes["TAPS"]
    r, g, s, c, q = (sizes[name] for name in ("R", "G", "S", "C", "Q"))
    residual, gate = wavenet.embedding.embedding_dim, sizes["GATE"]
    taps = torch.zeros(count, k * r + c, 2, g)
    bias = torch.zeros(count, 2, g)
    across, across_bias = torch.zeros(count, g, r), torch.zeros(count, r)
    skip = torch.zeros(count, g, s)
    with torch.no_grad():
        for index, layer in enumerate(layers):
            inputs = taps[index, : k * r].view(k, r, 2, g)
            inputs[:, :residual, :, :gate] = layer.dilated.weight.T.reshape(k, residual, 2, gate)
            if wavenet.hop == 1:
                width = sizes["CHANNELS"]
                there = taps[index, k * r : k * r + width]
                there[:, :, :gate] = layer.condition.weight.T.reshape(width, 2, gate)
                bias[index, :, :gate] = layer.condition.bias.view(2, gate)
            if layer.residual is not None:
                across[index, :gate, :residual] = layer.residual.weight.T
                across_bias[index, :residual] = layer.residual.bias
        wide = wavenet.skip.out_features
        skip[:, :gate, :wide] = wavenet.skip.weight.T.reshape(count, gate, wide)
        operands = {
            "taps": taps,
            "residual": across,
            "skip": skip,
            "hidden": _padded(wavenet.hidden.weight.T, s, s),
            "output": _padded(wavenet.logits.weight.T, s, q),
        }
        # What would become infinite stays the largest finite number.
        limit = torch.finfo(operand).max
        tensors = {name: t.clamp(-limit, limit).to(operand) for name, t in operands.items()}
        tensors |= {
            "embedding": _padded(wavenet.embedding.weight, len(wavenet.embedding.weight), r),
            "bias": bias,
            "residual_bias": across_bias,
            "skip_bias": _padded(wavenet.skip.bias[None], 1, s),
            "hidden_bias": _padded(wavenet.hidden.bias[None], 1, s),
            "output_bias": _padded(wavenet.logits.bias[None], 1, q),
        }
    return {name: tensor.contiguous() for name, tensor in tensors.items()}


def _padded(matrix: Tensor, rows: int, columns: int) -> Tensor:
    filled = torch.zeros(rows, columns)
    filled[: matrix.shape[0], : matrix.shape[1]] = matrix
    return filled
