"""What every generating engine offers, and how one is made by name.

Legend: B lanes, T samples, F conditioning steps, Q levels, G gate and C conditioning channels, L
layers.

Conditioning comes in one of two forms. With hop > 1 a step is a frame of `hop` samples, projected
for every layer by the exported conditioner (width L * 2G); T samples are T / hop frames, and since
the engine interpolates between frames they need the one at their end too. With hop 1 a step is a
sample, of C channels; the engine projects them, because projections at the sample rate would be
L * 2G / C times as much to hand over (115 times for the paper's network).
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Mapping, Sequence
from typing import Any, Protocol, TypeAlias, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from vconv.errors import SetupError, UsageError

Codes: TypeAlias = NDArray[np.uint8] | NDArray[np.int16]
"""uint8 where levels <= 256, else int16."""

State: TypeAlias = object
"""Opaque: an engine's own; belongs to the engine that made it and is never changed by it."""


def conditioning_steps(samples: int, hop: int) -> int:
    """How many conditioning steps a call for so many samples takes; they are whole frames."""
    frames, rest = divmod(samples, hop)
    assert rest == 0, f"{samples} samples are not whole frames of {hop}"
    return frames + (1 if hop > 1 else 0)


class Engine(Protocol):
    """A WaveNet that generates, chunk by chunk, with its state in the caller's hands.

    The same calls with the same numbers give the same bits, however a stream is cut into chunks,
    for one engine, precision and machine code path.
    """

    @property
    def name(self) -> str: ...

    @property
    def precision(self) -> str:
        """`fp32`, `bf16` or `int8`."""

    @property
    def levels(self) -> int: ...

    @property
    def hop(self) -> int:
        """Samples per step of conditioning."""

    def initial_state(self, lanes: int) -> State:
        """The state after silence: previous code levels // 2, contexts zero."""

    def generate(
        self,
        conditioning: NDArray[np.float32],
        uniforms: NDArray[np.float32],
        temperature: float,
        state: State,
    ) -> tuple[Codes, State]:
        """Draws the next T samples of every lane.

        conditioning [B, F, L * 2G], or [B, F, C] with hop 1, F = conditioning_steps(T, hop);
        uniforms [B, T] in [0, 1); temperature 0 takes the most likely code. Returns codes [B, T]
        and the state after them. Raises ModelError where conditioning or logits are not finite.
        """

    def score(
        self, conditioning: NDArray[np.float32], codes: Codes, state: State
    ) -> tuple[NDArray[np.float32], State]:
        """Follows the given codes [B, T] (teacher forcing).

        Returns logits [B, T, Q], of which logits[:, t] predicts codes[:, t], and the state.
        """


@runtime_checkable
class Joining(Engine, Protocol):
    """An engine whose states can be put together, so that lanes of several streams are generated
    in one call (``shared.SharedEngine``)."""

    def join(self, states: Sequence[State]) -> State:
        """The lanes of several states, in their order, as one state. Nothing is computed: a lane
        goes on as it would have."""

    def split(self, state: State, counts: Sequence[int]) -> list[State]:
        """A state's lanes, in their order, as states of so many lanes each."""


PRECISIONS = ("fp32", "bf16", "int8")
MAX_COST = 0.01  # nats a sample; training noise between two seeds is 0.003

_CLASSES = {
    "native": ("vconv.engines.native", "NativeEngine"),
    "torchscript": ("vconv.engines.torchscript", "TorchScriptEngine"),
    "cudagraphs": ("vconv.engines.cudagraphs", "CudaGraphsEngine"),
    "triton": ("vconv.engines.triton", "TritonEngine"),
}
_REDUCED = {"native": ("bf16", "int8"), "triton": ("bf16",)}


def create_engine(
    name: str,
    weights: Mapping[str, NDArray[np.float32]],
    *,
    blocks: int,
    layers: int,
    kernel_size: int,
    hop: int,
    device: str = "cpu",
    precision: str = "fp32",
    costs: Mapping[str, float] | None = None,
) -> Engine:
    """The engine of that name, or for `auto` the best of those that need no proof: `triton` is
    taken by name, by those who hold its output against a golden.

    weights: the WaveNet's tensors under their eager names, without `decoder.wavenet.`; its
    `condition` tensors are needed with hop 1 and otherwise not looked at. precision: `fp32`,
    `bf16`, `int8`, or `auto`, the fastest that may be taken. costs: what the reduced ones cost the
    model, in nats a sample of held-out speech, as far as that was measured; with them, only what
    costs less than MAX_COST may be taken, and without (None) anything may.
    Raises UsageError for an unknown name, SetupError where the engine cannot run here, ModelError
    where the weights do not fit.
    """
    if name == "auto":
        name = _choose(device)
    if name not in _CLASSES:
        known = ", ".join(["auto", *_CLASSES])
        raise UsageError(f"there is no engine {name!r}; choose one of {known}.")
    options: dict[str, Any] = {}
    precision = _precision(precision, costs, engine=name)
    if name == "native":
        if device != "cpu":
            raise UsageError(
                f"the native engine runs on the CPU only, not on {device!r}; "
                "use --engine torchscript or --device cpu."
            )
    else:
        for package in ("torch", "triton") if name == "triton" else ("torch",):
            if importlib.util.find_spec(package) is None:
                raise SetupError(_missing(name, package))
        if name == "cudagraphs" and device == "cpu":
            raise UsageError(
                "the cudagraphs engine runs on CUDA only; use --device cuda or another --engine."
            )
        options["device"] = device
    if name in _REDUCED:
        options["precision"] = precision
    module, class_name = _CLASSES[name]
    engine: Engine = getattr(importlib.import_module(module), class_name)(
        weights, blocks=blocks, layers=layers, kernel_size=kernel_size, hop=hop, **options
    )
    return engine


def _missing(engine: str, package: str) -> str:
    if package == "triton":
        return (
            f"--engine {engine} needs triton, which comes with torch for NVIDIA GPUs on Linux; "
            "install that torch, or use --engine torchscript."
        )
    return (
        f"--engine {engine} needs {package}; run `pip install 'vconv[export]'`, "
        "or use --engine native."
    )


def _precision(wanted: str, costs: Mapping[str, float] | None, *, engine: str) -> str:
    def cheap(precision: str) -> bool:
        return costs is not None and costs.get(precision, MAX_COST) < MAX_COST

    if wanted == "auto":
        # A GPU multiplies bf16 many times as fast.
        if engine == "triton":
            return "bf16" if costs is None or cheap("bf16") else "fp32"
        # Where it has been measured to be faster: not on processors without AVX2.
        if engine == "native" and cheap("int8") and _best_cpu().startswith("avx"):
            return "int8"
        return "fp32"
    if wanted not in PRECISIONS:
        raise UsageError(f"there is no precision {wanted!r}; choose one of auto, fp32, bf16, int8.")
    if wanted == "fp32":
        return wanted
    if wanted not in _REDUCED.get(engine, ()):
        able = " and ".join(name for name, reduced in _REDUCED.items() if wanted in reduced)
        engines = f"the {able} engine" + ("s" if " and " in able else "")
        raise UsageError(f"{wanted} is a precision of {engines}; use --precision fp32.")
    if costs is not None and not cheap(wanted):
        why = (
            f"costs this model {costs[wanted]:.3f} nats a sample, {MAX_COST:g} are allowed"
            if wanted in costs
            else "was not judged when this model was exported"
        )
        raise UsageError(f"{wanted} {why}; use --precision fp32.")
    return wanted


def _best_cpu() -> str:
    from vconv.native import load

    name: bytes = load().vconv_sampler_best_cpu()
    return name.decode()


def _choose(device: str) -> str:
    if device != "cpu":
        return "torchscript"
    if importlib.util.find_spec("vconv.native._sampler") is not None:
        return "native"
    if importlib.util.find_spec("torch") is not None:
        return "torchscript"
    raise SetupError(
        "no engine can run here: the compiled sampler is missing and torch is not installed; "
        "install a C++ compiler and run `pip install --force-reinstall vconv`, or "
        "`pip install 'vconv[export]'`."
    )
