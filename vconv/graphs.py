"""Running the exported ONNX graphs.

B batch, T samples, U units, D latent width, E speaker width, F conditioning steps, C conditioning
channels, L layers, G gate channels.
"""

from __future__ import annotations

import contextlib
import io
import logging
import re
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from .errors import ModelError, SetupError, UsageError
from .onnxfile import check_operations, graph_tensors

try:
    import onnxruntime
except ImportError as error:
    raise SetupError(
        f"onnxruntime cannot be imported ({error}); pip install --force-reinstall onnxruntime, "
        "or onnxruntime-gpu, may mend it, and vconv doctor says more."
    ) from None

Floats = npt.NDArray[np.float32]
Codes = npt.NDArray[np.int64]

log = logging.getLogger("vconv")

_DEVICE = re.compile(r"cpu|cuda(?::(\d{1,3}))?")

# What onnxruntime puts on the CPU on purpose, wherever the rest runs: the arithmetic of shapes. To
# forbid the CPU altogether (session.disable_cpu_ep_fallback) would refuse every graph of ours.
_OF_SHAPES = frozenset(
    "Shape Size Squeeze Unsqueeze Reshape Expand ConstantOfShape Concat Slice Gather Range Cast "
    "Identity Add Sub Mul Div Mod Neg Min Max Equal Less Greater Where Not ReduceProd".split()
)
_WORK = ("Conv", "MatMul", "Gemm")  # in the names of kinds, fused ones too, that take the time


class Encoder:
    """encoder.onnx: waveform [B, T] -> codes [B, U] (-1 where there is no codebook), latents
    [B, U, D], and of a model with ``pitch`` [B, U, 2]: log2 of F0 in Hz, and voicing 0 to 1."""

    def __init__(
        self, data: bytes, where: str, *, device: str = "cpu", latents: int, pitch: bool
    ) -> None:
        outputs: Signature = {
            "codes": ("tensor(int64)", (None, None)),
            "latents": ("tensor(float)", (None, None, latents)),
        }
        if pitch:
            outputs = {**outputs, "pitch": ("tensor(float)", (None, None, 2))}
        self.graph = Graph(
            data,
            where,
            device,
            inputs={"waveform": ("tensor(float)", (None, None))},
            outputs=outputs,
        )
        self._outputs = list(outputs)

    def __call__(self, waveform: Floats) -> tuple[Codes, Floats, Floats]:
        """codes, latents, and pitch, which is [B, U, 0] for a model without it.

        Thread-safe; T must give at least one unit (``GeometryInfo.encoder_window``).
        """
        codes, latents, *pitch = self.graph.run(self._outputs, {"waveform": waveform})
        return codes, latents, pitch[0] if pitch else latents[:, :, :0]


class Conditioner:
    """conditioner.onnx: latents [B, U, D or D + 2 with pitch], speaker [B, E] -> conditioning
    [B, F, L * 2G], or [B, F, C] where F is at the sample rate."""

    def __init__(
        self,
        data: bytes,
        where: str,
        *,
        device: str = "cpu",
        latents: int,
        speaker: int,
        width: int,
    ) -> None:
        self.graph = Graph(
            data,
            where,
            device,
            inputs={
                "latents": ("tensor(float)", (None, None, latents)),
                "speaker": ("tensor(float)", (None, speaker)),
            },
            outputs={"conditioning": ("tensor(float)", (None, None, width))},
        )

    def __call__(self, latents: Floats, speaker: Floats) -> Floats:
        """Thread-safe; U must give at least one conditioning step."""
        feed = {"latents": latents, "speaker": speaker}
        conditioning: Floats = self.graph.run(["conditioning"], feed)[0]
        return conditioning


Signature = Mapping[str, tuple[str, tuple[int | None, ...]]]


class Graph:
    """A session on the device that was asked for, and on no other.

    onnxruntime falls back to the CPU in three ways, all of them without an error: with the whole
    session where CUDA cannot be loaded; with a node that CUDA has no kernel for; and with a session
    whose run has failed. The first is an error here. So is the second for a product or convolution,
    and for anything else a warning, by onnxruntime 1.24 or later, which tells where it put its
    nodes. The third is switched off.
    """

    def __init__(
        self, data: bytes, where: str, device: str, *, inputs: Signature, outputs: Signature
    ) -> None:
        self._where = where
        check_operations(data, where)
        graph_tensors(data, where)  # refuses what lies outside of the file
        providers = _providers(device)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        options.inter_op_num_threads = 1
        options.log_severity_level = 4
        if device != "cpu":
            options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
        asked = providers[0] if isinstance(providers[0], str) else providers[0][0]
        quiet = contextlib.nullcontext() if device == "cpu" else _quiet()
        try:
            with quiet:
                session = onnxruntime.InferenceSession(
                    data, options, providers=providers, enable_fallback=0
                )
        except Exception as error:  # onnxruntime's exceptions share no base but this one
            raise ModelError(
                f"{where}: onnxruntime cannot load it ({_first_line(error)})."
            ) from None
        self._session = session
        # Where CUDA cannot be loaded, onnxruntime answers with a session on the CPU.
        if asked not in self.providers:
            raise SetupError(
                f"device {device} was asked for, but onnxruntime could not load its "
                f"{asked.removesuffix('ExecutionProvider')} support; install the CUDA libraries "
                "(pip install 'vconv[cuda]') or use --device cpu."
            )
        strays = [] if device == "cpu" else _strays(session)
        named = ", ".join(strays)
        if any(work in kind for kind in strays for work in _WORK):
            raise SetupError(
                f"device {device} was asked for, but onnxruntime would compute {named} of {where} "
                "on the CPU; install another onnxruntime-gpu or use --device cpu."
            )
        if strays:
            log.warning("%s: onnxruntime computes its %s on the CPU.", where, named)
        for kind, wanted, found in (
            ("input", inputs, session.get_inputs()),
            ("output", outputs, session.get_outputs()),
        ):
            _check_signature(
                where, kind, wanted, {arg.name: (arg.type, arg.shape) for arg in found}
            )

    @property
    def providers(self) -> list[str]:
        """onnxruntime's names of what the session runs on."""
        providers: list[str] = self._session.get_providers()
        return providers

    def run(self, outputs: list[str], feed: Mapping[str, npt.NDArray[Any]]) -> list[Any]:
        """The outputs of these names; any number of threads may ask."""
        try:
            results: list[Any] = self._session.run(outputs, dict(feed))
        except Exception as error:  # as above
            raise ModelError(
                f"{self._where}: onnxruntime cannot run it ({_first_line(error)})."
            ) from None
        return results


def _strays(session: Any) -> list[str]:
    """The kinds of nodes that were put on the CPU and are more than the arithmetic of shapes."""
    if not hasattr(session, "get_provider_graph_assignment_info"):  # before 1.24
        return []
    on_cpu = {
        node.op_type
        for part in session.get_provider_graph_assignment_info()
        if part.ep_name == "CPUExecutionProvider"
        for node in part.get_nodes()
    }
    return sorted(on_cpu - _OF_SHAPES)


def _providers(device: str) -> list[Any]:
    match = _DEVICE.fullmatch(device)
    if match is None:
        raise UsageError(f"There is no device {device!r}; allowed are cpu, cuda and cuda:N.")
    if device == "cpu":
        return ["CPUExecutionProvider"]
    if "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
        raise SetupError(
            f"device {device} was asked for, but the installed onnxruntime is for CPUs only; "
            "install onnxruntime-gpu (and nothing called onnxruntime beside it)."
        )
    if hasattr(onnxruntime, "preload_dlls"):
        with contextlib.redirect_stdout(io.StringIO()):  # it prints what it does not find
            onnxruntime.preload_dlls()
    # TensorFloat-32 keeps 10 bits of a product's factors: not the network that was trained.
    options = {"device_id": match[1] or "0", "use_tf32": "0"}
    return [("CUDAExecutionProvider", options), "CPUExecutionProvider"]


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """A CUDA that cannot be loaded is our error to report; onnxruntime writes a screenful."""
    onnxruntime.set_default_logger_severity(4)
    try:
        yield
    finally:
        onnxruntime.set_default_logger_severity(2)  # its default; it has no way to ask


def _check_signature(
    where: str, kind: str, wanted: Signature, found: Mapping[str, tuple[str, list[Any]]]
) -> None:
    if set(wanted) != set(found):
        raise ModelError(
            f"{where}: its {kind}s are {', '.join(sorted(found))}, expected "
            f"{', '.join(sorted(wanted))}."
        )
    for name, (element, shape) in wanted.items():
        its_element, its_shape = found[name]
        fits = len(shape) == len(its_shape) and all(
            isinstance(its, int) == (size is not None) and (size is None or its == size)
            for size, its in zip(shape, its_shape, strict=True)
        )
        if element != its_element or not fits:
            raise ModelError(
                f"{where}: its {kind} {name} is {its_element} {its_shape}, expected {element} "
                f"{[size if size is not None else 'any' for size in shape]}."
            )


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
