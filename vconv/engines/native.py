"""The compiled sampler as an engine: numpy in, numpy out.

Legend: B lanes, T samples, F conditioning steps, Q levels, R residual, G gate, S skip and C
conditioning channels, L = blocks * layers, k taps.
"""

from __future__ import annotations

import ctypes
import weakref
from collections.abc import Mapping
from ctypes import POINTER, c_float, c_int16
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vconv.engines.base import Codes, State, conditioning_steps
from vconv.errors import ModelError, SetupError
from vconv.native import PRECISIONS, Shape, Weights, load

# vconv_status of sampler.h, those a caller of this module can meet
_OK, _BAD_SHAPE, _BAD_WEIGHTS, _BAD_CPU = 0, 1, 2, 3
_OUT_OF_MEMORY, _NOT_FINITE = 6, 7

_MESSAGE_BYTES = 256


@dataclass(frozen=True)
class NativeState:
    """The sampler's state for `lanes` lanes, as plain bytes."""

    lanes: int
    memory: NDArray[np.uint64]


class NativeEngine:
    """A WaveNet of the given weights in the compiled sampler. Any number of threads may use it.

    weights: tensors under their eager names without `decoder.wavenet.`; with hop > 1 the
    `condition` tensors belong to the exported conditioner and are not looked at. cpu: a code path
    by name (`generic`, `avx2`, `avx512`), None for the best that this processor runs; `.cpu` tells
    which. precision: how the weights are kept, `fp32`, `bf16` or `int8` (with inputs of 7 bits).

    Raises ModelError for a tensor that is missing, unexpected, of a wrong shape or not finite, and
    SetupError where the sampler is not built or cannot run the named path.
    """

    name = "native"

    def __init__(
        self,
        weights: Mapping[str, NDArray[np.float32]],
        *,
        blocks: int,
        layers: int,
        kernel_size: int,
        hop: int,
        cpu: str | None = None,
        precision: str = "fp32",
    ) -> None:
        tensors = _validated(weights, blocks * layers, kernel_size, hop)
        self.levels, residual = tensors["embedding.weight"].shape
        self.hop = hop
        skip = len(tensors["skip.bias"])
        gate = tensors["layers.0.dilated.weight"].shape[0] // 2
        channels = tensors["layers.0.condition.weight"].shape[1] if hop == 1 else 0
        self._conditioning_width = channels if hop == 1 else blocks * layers * 2 * gate

        self._library = load()
        shape = Shape(self.levels, residual, gate, skip, blocks, layers, kernel_size, hop, channels)
        handle = ctypes.c_void_p()
        message = ctypes.create_string_buffer(_MESSAGE_BYTES)
        status = self._library.vconv_sampler_create(
            ctypes.byref(shape),
            ctypes.byref(_pointers(tensors, blocks * layers, hop)),
            None if cpu is None else cpu.encode(),
            PRECISIONS[precision],
            ctypes.byref(handle),
            message,
            _MESSAGE_BYTES,
        )
        if status == _OUT_OF_MEMORY:
            raise MemoryError("no memory for the sampler's weights")
        if status == _BAD_CPU:
            raise SetupError(f"{message.value.decode()}.")
        if status != _OK:
            raise ModelError(f"the model cannot be used: {message.value.decode()}.")
        self._handle = handle
        weakref.finalize(self, self._library.vconv_sampler_destroy, handle)
        self.precision = precision
        self.cpu: str = self._library.vconv_sampler_cpu(handle).decode()
        self.multiply_adds: int = self._library.vconv_sampler_multiply_adds(handle)

    def initial_state(self, lanes: int) -> NativeState:
        """The state after silence: previous code levels // 2, contexts zero."""
        size = self._library.vconv_sampler_state_size(self._handle, lanes)
        assert size > 0, lanes
        memory = np.empty((size + 7) // 8, np.uint64)
        status = self._library.vconv_sampler_state_init(self._handle, memory.ctypes.data, lanes)
        assert status == _OK, status
        return NativeState(lanes, memory)

    def generate(
        self,
        conditioning: NDArray[np.float32],
        uniforms: NDArray[np.float32],
        temperature: float,
        state: State,
    ) -> tuple[Codes, NativeState]:
        """Draws uniforms' T samples of every lane; see Engine."""
        codes = np.empty(uniforms.shape, np.int16)
        after = self._run(
            conditioning,
            state,
            codes.shape,
            uniforms=uniforms,
            temperature=temperature,
            codes=codes,
        )
        return (codes.astype(np.uint8) if self.levels <= 256 else codes), after

    def score(
        self, conditioning: NDArray[np.float32], codes: Codes, state: State
    ) -> tuple[NDArray[np.float32], NativeState]:
        """Logits [B, T, Q] of the given codes' predecessors; see Engine."""
        logits = np.empty((*codes.shape, self.levels), np.float32)
        after = self._run(conditioning, state, codes.shape, forced=codes, logits=logits)
        return logits, after

    def _run(
        self,
        conditioning: NDArray[np.float32],
        state: State,
        shape: tuple[int, ...],
        *,
        uniforms: NDArray[np.float32] | None = None,
        temperature: float = 0.0,
        forced: Codes | None = None,
        codes: NDArray[np.int16] | None = None,
        logits: NDArray[np.float32] | None = None,
    ) -> NativeState:
        """One vconv_sampler_run into codes or logits; returns the next state."""
        assert isinstance(state, NativeState)
        lanes, samples = shape
        assert lanes == state.lanes, (lanes, state.lanes)
        expected = (lanes, conditioning_steps(samples, self.hop), self._conditioning_width)
        assert conditioning.shape == expected, (conditioning.shape, expected)
        # Names, not temporaries: the arrays must outlive the pointers to them.
        conditioning = np.ascontiguousarray(conditioning, np.float32)
        drawn = None if uniforms is None else np.ascontiguousarray(uniforms, np.float32)
        given = None if forced is None else np.ascontiguousarray(forced, np.int16)
        memory = state.memory.copy()
        status = self._library.vconv_sampler_run(
            self._handle,
            memory.ctypes.data,
            lanes,
            samples,
            _floats(conditioning),
            None if drawn is None else _floats(drawn),
            temperature,
            None if given is None else _int16(given),
            None if codes is None else _int16(codes),
            None if logits is None else _floats(logits),
        )
        if status == _NOT_FINITE:
            raise ModelError(
                "the WaveNet's output is not finite; its weights or conditioning are out of range."
            )
        if status == _OUT_OF_MEMORY:
            raise MemoryError("no memory for the sampler's work space")
        assert status == _OK, status
        return NativeState(lanes, memory)


def _validated(
    weights: Mapping[str, NDArray[np.float32]], layers: int, kernel_size: int, hop: int
) -> dict[str, NDArray[np.float32]]:
    """The tensors the sampler reads, contiguous float32, their shapes consistent. Or ModelError."""

    def tensor(name: str) -> NDArray[np.float32]:
        if name not in weights:
            raise ModelError(f"the model lacks the tensor {name}.")
        return np.ascontiguousarray(weights[name], np.float32)

    def expect(name: str, *shape: int) -> None:
        tensors[name] = tensor(name)
        if tensors[name].shape != shape:
            raise ModelError(
                f"the tensor {name} has shape {list(tensors[name].shape)}, "
                f"where the model's configuration needs {list(shape)}."
            )

    tensors: dict[str, NDArray[np.float32]] = {}
    # The widths as these tensors tell them; the others must agree.
    first, condition = "layers.0.dilated.weight", "layers.0.condition.weight"
    for name in ("embedding.weight", first, "hidden.weight", *([condition] if hop == 1 else [])):
        if tensor(name).ndim != 2:
            raise ModelError(f"the tensor {name} has {tensor(name).ndim} dimensions instead of 2.")
    levels, residual = tensor("embedding.weight").shape
    gate, skip = tensor(first).shape[0] // 2, tensor("hidden.weight").shape[0]
    expect("embedding.weight", levels, residual)
    for layer in range(layers):
        expect(f"layers.{layer}.dilated.weight", 2 * gate, kernel_size * residual)
        if layer < layers - 1:
            expect(f"layers.{layer}.residual.weight", residual, gate)
            expect(f"layers.{layer}.residual.bias", residual)
        if hop == 1:
            expect(f"layers.{layer}.condition.weight", 2 * gate, tensor(condition).shape[1])
            expect(f"layers.{layer}.condition.bias", 2 * gate)
    expect("skip.weight", skip, layers * gate)
    expect("skip.bias", skip)
    expect("hidden.weight", skip, skip)
    expect("hidden.bias", skip)
    expect("logits.weight", levels, skip)
    expect("logits.bias", levels)
    for name in weights:
        if name not in tensors and ".condition." not in name:
            raise ModelError(f"the tensor {name} is not one of this model's.")
    return tensors


def _pointers(tensors: Mapping[str, NDArray[np.float32]], layers: int, hop: int) -> Weights:
    """The C structure; it refers to the tensors and is good as long as they live."""

    def per_layer(kind: str, count: int) -> Any:
        return (POINTER(c_float) * layers)(
            *(_floats(tensors[f"layers.{layer}.{kind}"]) for layer in range(count))
        )

    return Weights(
        _floats(tensors["embedding.weight"]),
        per_layer("dilated.weight", layers),
        per_layer("residual.weight", layers - 1),
        per_layer("residual.bias", layers - 1),
        *(
            _floats(tensors[f"{part}.{kind}"])
            for part in ("skip", "hidden", "logits")
            for kind in ("weight", "bias")
        ),
        per_layer("condition.weight", layers if hop == 1 else 0),
        per_layer("condition.bias", layers if hop == 1 else 0),
    )


def _floats(array: NDArray[np.float32]) -> Any:
    return array.ctypes.data_as(POINTER(c_float))


def _int16(array: NDArray[np.int16]) -> Any:
    return array.ctypes.data_as(POINTER(c_int16))
