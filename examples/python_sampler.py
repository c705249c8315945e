"""The compiled sampler in ctypes, without vconv: vconv/native/sampler.h said again for Python.

T samples, F conditioning steps, W conditioning width, Q levels, L layers.
"""

from __future__ import annotations

import ctypes
import importlib.util
from ctypes import POINTER, byref, c_char_p, c_float, c_int, c_size_t, c_uint32, c_void_p
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]
Array = npt.NDArray[Any]


class Refused(Exception):
    """What is wrong with the bundle, the recording or the call, in one sentence."""


class Shape(ctypes.Structure):
    """`vconv_wavenet_shape`."""

    _fields_ = [
        (name, c_uint32)
        for name in "levels residual gate skip blocks layers kernel_size hop conditioning".split()
    ]


class Weights(ctypes.Structure):
    """`vconv_wavenet_weights`: pointers to numbers, per layer pointers to pointers."""

    _fields_ = [
        (name, c_void_p)
        for name in """embedding dilated residual_weight residual_bias skip_weight skip_bias
                       hidden_weight hidden_bias logits_weight logits_bias condition_weight
                       condition_bias""".split()
    ]


class Sampler:
    """The WaveNet of one stream, with its state."""

    def __init__(self, library: Path, manifest: dict[str, Any], tensors: dict[str, Array]) -> None:
        decoder = manifest["model"]["decoder"]
        blocks, layers = decoder["blocks"], decoder["layers"]
        self.levels = manifest["model"]["audio"]["levels"]
        self.hop = manifest["geometry"]["conditioning_hop"]
        shape = Shape(
            self.levels,
            decoder["residual_channels"],
            decoder["gate_channels"],
            decoder["skip_channels"],
            blocks,
            layers,
            decoder["kernel_size"],
            self.hop,
            decoder["conditioning_channels"],
        )
        kept: list[Any] = []  # what the pointers lead to

        def numbers(name: str) -> int:
            kept.append(np.ascontiguousarray(tensors["decoder.wavenet." + name]))
            return int(kept[-1].ctypes.data)

        def per_layer(name: str, count: int) -> int:
            rows = (numbers(f"layers.{layer}.{name}") for layer in range(count))
            kept.append((c_void_p * (blocks * layers))(*rows))
            return ctypes.addressof(kept[-1])

        # With hop 160 conditioner.onnx has done the projections.
        projections = blocks * layers if self.hop == 1 else 0
        weights = Weights(
            numbers("embedding.weight"),
            per_layer("dilated.weight", blocks * layers),
            per_layer("residual.weight", blocks * layers - 1),
            per_layer("residual.bias", blocks * layers - 1),
            numbers("skip.weight"),
            numbers("skip.bias"),
            numbers("hidden.weight"),
            numbers("hidden.bias"),
            numbers("logits.weight"),
            numbers("logits.bias"),
            per_layer("condition.weight", projections),
            per_layer("condition.bias", projections),
        )
        try:
            self._library = typed(ctypes.CDLL(str(library)))
        except (OSError, AttributeError) as error:
            raise Refused(f"{library}: is not the compiled sampler ({error}).") from None
        if (version := self._library.vconv_sampler_version()) != 3:
            raise Refused(f"{library}: has interface {version}; this program knows 3.")
        self._handle, message = c_void_p(), ctypes.create_string_buffer(256)
        if self._library.vconv_sampler_create(
            byref(shape), byref(weights), None, 0, byref(self._handle), message, len(message)
        ):
            raise Refused(f"The sampler cannot use the model: {message.value.decode()}.")
        size = self._library.vconv_sampler_state_size(self._handle, 1)
        self._state = np.zeros((size + 7) // 8, np.uint64)
        self.begin()

    def begin(self) -> None:
        """Silence."""
        self._library.vconv_sampler_state_init(self._handle, self._state.ctypes.data, 1)

    def draw(self, conditioning: Floats, uniforms: Floats) -> Array:
        """conditioning [F, W], uniforms [T] -> codes [T]."""
        codes = np.empty(len(uniforms), np.int16)
        self._run(conditioning, len(codes), uniforms=uniforms, codes=codes)
        return codes

    def follow(self, conditioning: Floats, codes: Array) -> Floats:
        """conditioning [F, W], the codes to be taken [T] -> what predicted them: logits [T, Q]."""
        logits = np.empty((len(codes), self.levels), np.float32)
        self._run(conditioning, len(codes), forced=codes.astype(np.int16), logits=logits)
        return logits

    def _run(self, conditioning: Floats, count: int, **arrays: Array) -> None:
        def pointer(name: str) -> int | None:
            return arrays[name].ctypes.data if name in arrays else None

        steps = np.ascontiguousarray(conditioning)
        status = self._library.vconv_sampler_run(
            self._handle,
            self._state.ctypes.data,
            1,
            count,
            steps.ctypes.data,
            pointer("uniforms"),
            1.0,
            pointer("forced"),
            pointer("codes"),
            pointer("logits"),
        )
        if status:
            raise Refused(f"The sampler failed with status {status} of sampler.h.")


def typed(library: ctypes.CDLL) -> ctypes.CDLL:
    """The library with the parameters of its functions."""
    library.vconv_sampler_version.restype = c_uint32
    library.vconv_sampler_create.argtypes = [
        *(POINTER(Shape), POINTER(Weights), c_char_p, c_int),
        *(POINTER(c_void_p), c_char_p, c_size_t),
    ]
    library.vconv_sampler_state_size.restype = c_size_t
    library.vconv_sampler_state_size.argtypes = [c_void_p, c_size_t]
    library.vconv_sampler_state_init.argtypes = [c_void_p, c_void_p, c_size_t]
    library.vconv_sampler_run.argtypes = [
        *(c_void_p, c_void_p, c_size_t, c_size_t),
        *(c_void_p, c_void_p, c_float, c_void_p, c_void_p, c_void_p),
    ]
    return library


def find_sampler() -> Path:
    """The library inside the vconv that is installed here; it is not imported."""
    spec = importlib.util.find_spec("vconv")
    for folder in spec.submodule_search_locations or () if spec else ():
        for path in (*Path(folder).glob("native/_sampler*.so"), *Path(folder).glob("native/*.pyd")):
            return path
    raise Refused("The compiled sampler was not found; name it with --library.")
