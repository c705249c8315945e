"""The step of ``nn.incremental`` as an engine: numpy in, numpy out, CPU or GPU; and scripted.

Our own class is scripted and given the weights. A bundle's ``decoder.ts`` is never run here:
TorchScript is executable code, and loading it runs it.

Legend: B lanes, T samples, Q levels.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vconv.engines.base import Codes, State, conditioning_steps
from vconv.errors import ModelError, SetupError
from vconv.nn.incremental import IncrementalWaveNet, scripted
from vconv.nn.wavenet import WaveNet

_State = tuple[Tensor, Tensor, Tensor]

Step: TypeAlias = Callable[
    [Tensor, Tensor, float, Tensor | None, _State], tuple[Tensor, Tensor, _State]
]
"""``IncrementalWaveNet.forward``, or what does the same."""


class IncrementalEngine:
    """A WaveNet of the given weights in steps of ``IncrementalWaveNet``. Any number of threads may
    use it.

    weights: tensors under their eager names without `decoder.wavenet.`; with hop > 1 the
    `condition` tensors belong to the exported conditioner and are not looked at. device: "cpu",
    "cuda" or "cuda:N". step: makes of the network, which is on the device, the form that runs.

    Raises ModelError for tensors that are missing, unexpected, of a wrong shape or not finite,
    SetupError for a device that torch cannot use.
    """

    name = "eager"
    precision = "fp32"

    def __init__(
        self,
        weights: Mapping[str, NDArray[np.float32]],
        *,
        blocks: int,
        layers: int,
        kernel_size: int,
        hop: int,
        device: str = "cpu",
        step: Callable[[IncrementalWaveNet], Step] = lambda network: network,
    ) -> None:
        self.device = torch_device(device)
        wavenet = eager_network(
            weights, blocks=blocks, layers=layers, kernel_size=kernel_size, hop=hop
        )
        self._incremental = IncrementalWaveNet(wavenet).to(self.device)
        self._step = step(self._incremental)
        projected = len(wavenet.layers) * 2 * self._incremental.gate
        channels = wavenet.gated_layers[0].condition.in_features
        self._width = channels if hop == 1 else projected
        self.levels = wavenet.levels
        self.hop = hop

    def initial_state(self, lanes: int) -> _State:
        """The state after silence: previous code levels // 2, contexts zero."""
        return self._incremental.initial_state(lanes)

    def generate(
        self,
        conditioning: NDArray[np.float32],
        uniforms: NDArray[np.float32],
        temperature: float,
        state: State,
    ) -> tuple[Codes, _State]:
        """Draws uniforms' T samples of every lane; see Engine."""
        codes, _, after, finite = self._run(conditioning, uniforms, temperature, None, state)
        drawn = codes.to(torch.uint8 if self.levels <= 256 else torch.int16)
        return _fetched(drawn, finite), after

    def score(
        self, conditioning: NDArray[np.float32], codes: Codes, state: State
    ) -> tuple[NDArray[np.float32], _State]:
        """Logits [B, T, Q] of the given codes' predecessors; see Engine."""
        nothing = np.zeros(codes.shape, np.float32)
        _, logits, after, finite = self._run(conditioning, nothing, 1.0, codes, state)
        return _fetched(logits, finite), after

    def join(self, states: Sequence[State]) -> _State:
        """The lanes of several states, in their order, as one state; see Joining."""
        with torch.inference_mode():
            return self._incremental.join([_own(state) for state in states])

    def split(self, state: State, counts: Sequence[int]) -> list[State]:
        """A state's lanes as states of so many each; see Joining."""
        with torch.inference_mode():
            return [*self._incremental.split(_own(state), list(counts))]

    def _run(
        self,
        conditioning: NDArray[np.float32],
        uniforms: NDArray[np.float32],
        temperature: float,
        forced: Codes | None,
        state: State,
    ) -> tuple[Tensor, Tensor, _State, Tensor]:
        """Codes, logits, the state after them, and whether all is finite."""
        state = _own(state)
        lanes, samples = uniforms.shape
        assert lanes == len(state[0]), (lanes, len(state[0]))
        expected = (lanes, conditioning_steps(samples, self.hop), self._width)
        assert conditioning.shape == expected, (conditioning.shape, expected)
        with torch.inference_mode():
            told = self._tensor(conditioning, np.float32)
            codes, logits, after = self._step(
                told,
                self._tensor(uniforms, np.float32),
                float(temperature),
                None if forced is None else self._tensor(forced, np.int64),
                state,
            )
            # A context forgets what passed through it, so the conditioning is looked at too.
            looked_at = [torch.isfinite(part).all() for part in (told, logits, after[1])]
            return codes, logits, after, torch.stack(looked_at).all()

    def _tensor(self, array: NDArray[Any], kind: Any) -> Tensor:
        # A copy: torch warns about arrays it may not write to.
        return torch.from_numpy(np.array(array, kind, order="C")).to(self.device)


class TorchScriptEngine(IncrementalEngine):
    """An engine of which the step is compiled by TorchScript; its parameters and errors are
    ``IncrementalEngine``'s."""

    name = "torchscript"

    def __init__(
        self,
        weights: Mapping[str, NDArray[np.float32]],
        *,
        blocks: int,
        layers: int,
        kernel_size: int,
        hop: int,
        device: str = "cpu",
    ) -> None:
        super().__init__(
            weights,
            blocks=blocks,
            layers=layers,
            kernel_size=kernel_size,
            hop=hop,
            device=device,
            step=scripted,
        )


def _own(state: State) -> _State:
    assert isinstance(state, tuple)
    return state


def _fetched(values: Tensor, finite: Tensor) -> NDArray[Any]:
    """Numbers from the device, with the verdict on them: one copy, so that it is waited for once.

    Raises ModelError if the verdict is bad.
    """
    with torch.inference_mode():
        packed = torch.cat((values.flatten(), finite.to(values.dtype).view(1))).cpu().numpy()
    if not packed[-1]:
        raise ModelError(
            "the WaveNet's output is not finite; its weights or conditioning are out of range."
        )
    found: NDArray[Any] = packed[:-1].reshape(tuple(values.shape))
    return found


def torch_device(device: str) -> torch.device:
    """The device of that name; SetupError for one that torch cannot use."""
    chosen = torch.device(device)
    if chosen.type == "cuda" and (chosen.index or 0) >= torch.cuda.device_count():
        raise SetupError(
            f"device {device} was asked for, but torch finds {torch.cuda.device_count()} CUDA "
            "devices; use --device cpu."
        )
    return chosen


def eager_network(
    weights: Mapping[str, NDArray[np.float32]],
    *,
    blocks: int,
    layers: int,
    kernel_size: int,
    hop: int,
) -> WaveNet:
    """The eager network with these weights, its widths read off them; ModelError for tensors that
    are missing, unexpected, of a wrong shape or not finite."""

    def shape(name: str) -> tuple[int, ...]:
        if name not in weights:
            raise ModelError(f"the model lacks the tensor {name}.")
        found = weights[name].shape
        if len(found) != 2:
            raise ModelError(f"the tensor {name} has {len(found)} dimensions instead of 2.")
        return found

    levels, residual = shape("embedding.weight")
    gates, _ = shape("layers.0.dilated.weight")
    network = WaveNet(
        levels=levels,
        residual_channels=residual,
        gate_channels=gates // 2,
        skip_channels=shape("skip.weight")[0],
        # With hop > 1 projecting is the exported conditioner's.
        conditioning_channels=shape("layers.0.condition.weight")[1] if hop == 1 else 1,
        blocks=blocks,
        layers=layers,
        kernel_size=kernel_size,
        hop=hop,
    )
    wanted = {k: v for k, v in network.state_dict().items() if hop == 1 or ".condition." not in k}
    given = {k: v for k, v in weights.items() if hop == 1 or ".condition." not in k}
    for name in sorted(wanted.keys() | given.keys()):
        if name not in given:
            raise ModelError(f"the model lacks the tensor {name}.")
        if name not in wanted:
            raise ModelError(f"the tensor {name} is not one of this model's.")
        found, needed = list(given[name].shape), list(wanted[name].shape)
        if found != needed:
            raise ModelError(
                f"the tensor {name} has shape {found}, where the model's configuration needs "
                f"{needed}."
            )
        if not np.isfinite(given[name]).all():
            raise ModelError(f"the tensor {name} has numbers that are NaN or infinite.")
    tensors = {k: torch.from_numpy(np.array(v, np.float32)) for k, v in given.items()}
    network.load_state_dict(tensors, strict=False)
    return network.eval()
