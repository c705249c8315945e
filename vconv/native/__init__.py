"""The compiled WaveNet sampler (C++), loaded through ctypes.

`sampler.h` is the interface and its documentation; this module only repeats it for ctypes.
"""

from __future__ import annotations

import ctypes
import importlib.util
from ctypes import (
    POINTER,
    c_char_p,
    c_float,
    c_int,
    c_int16,
    c_size_t,
    c_uint32,
    c_uint64,
    c_void_p,
)
from typing import ClassVar

from vconv.errors import SetupError

__all__ = ["PRECISIONS", "Shape", "Weights", "load"]

_VERSION = 3  # VCONV_SAMPLER_VERSION of the sampler.h beside this file

PRECISIONS = {"fp32": 0, "bf16": 1, "int8": 2}  # vconv_precision

_FLOATS = POINTER(c_float)
_CODES = POINTER(c_int16)


class Shape(ctypes.Structure):
    """`vconv_wavenet_shape`."""

    _fields_: ClassVar = [
        (name, c_uint32)
        for name in "levels residual gate skip blocks layers kernel_size hop conditioning".split()
    ]


class Weights(ctypes.Structure):
    """`vconv_wavenet_weights`."""

    _fields_: ClassVar = [
        ("embedding", _FLOATS),
        ("dilated", POINTER(_FLOATS)),
        ("residual_weight", POINTER(_FLOATS)),
        ("residual_bias", POINTER(_FLOATS)),
        ("skip_weight", _FLOATS),
        ("skip_bias", _FLOATS),
        ("hidden_weight", _FLOATS),
        ("hidden_bias", _FLOATS),
        ("logits_weight", _FLOATS),
        ("logits_bias", _FLOATS),
        ("condition_weight", POINTER(_FLOATS)),
        ("condition_bias", POINTER(_FLOATS)),
    ]


def load() -> ctypes.CDLL:
    """The sampler's library with its functions typed.

    Calls release the interpreter's lock. Raises SetupError when it was not built here.
    """
    # Found as an extension module for its name's sake; it is none, and is never imported.
    spec = importlib.util.find_spec("vconv.native._sampler")
    if spec is None or spec.origin is None:
        raise SetupError(
            "the compiled sampler is missing; install a C++ compiler and run "
            "`pip install --force-reinstall vconv`, or use --engine torchscript."
        )
    try:
        library = ctypes.CDLL(spec.origin)
        version = library.vconv_sampler_version()
    except (OSError, AttributeError) as error:
        raise SetupError(
            f"the compiled sampler cannot be loaded ({error}); run "
            "`pip install --force-reinstall vconv`, or use --engine torchscript."
        ) from error
    if version != _VERSION:
        raise SetupError(
            f"the compiled sampler has interface {version}, this vconv needs {_VERSION}; run "
            "`pip install --force-reinstall vconv`, or use --engine torchscript."
        )
    library.vconv_sampler_best_cpu.restype = c_char_p
    library.vconv_sampler_best_cpu.argtypes = []
    library.vconv_sampler_create.restype = c_int
    library.vconv_sampler_create.argtypes = [
        POINTER(Shape),
        POINTER(Weights),
        c_char_p,
        c_int,
        POINTER(c_void_p),
        c_char_p,
        c_size_t,
    ]
    library.vconv_sampler_destroy.restype = None
    library.vconv_sampler_destroy.argtypes = [c_void_p]
    library.vconv_sampler_cpu.restype = c_char_p
    library.vconv_sampler_cpu.argtypes = [c_void_p]
    library.vconv_sampler_multiply_adds.restype = c_uint64
    library.vconv_sampler_multiply_adds.argtypes = [c_void_p]
    library.vconv_sampler_state_size.restype = c_size_t
    library.vconv_sampler_state_size.argtypes = [c_void_p, c_size_t]
    library.vconv_sampler_state_init.restype = c_int
    library.vconv_sampler_state_init.argtypes = [c_void_p, c_void_p, c_size_t]
    library.vconv_sampler_run.restype = c_int
    library.vconv_sampler_run.argtypes = [
        c_void_p,
        c_void_p,
        c_size_t,
        c_size_t,
        _FLOATS,
        _FLOATS,
        c_float,
        _CODES,
        _CODES,
        _FLOATS,
    ]
    return library
