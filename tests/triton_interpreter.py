"""Triton's interpreter, which runs a kernel as numpy on the CPU, where Triton 3.6 needs help."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
from triton import knobs, language
from triton.runtime import interpreter

DEVICE = os.environ.get("VCONV_TRITON_DEVICE", "cpu")
"""On which the engine is tested in this process."""


def _scalar_index(tensor: Any) -> int:
    return int(tensor.handle.data.item())


def _float32(handle: Any) -> Any:
    if handle.dtype.scalar != language.bfloat16:
        return handle
    bits = handle.data.astype(np.uint32) << 16
    return interpreter.TensorHandle(bits.view(np.float32), language.float32)


def _repair() -> None:
    """Before a kernel runs.

    A number used as an index is an array of one element to the interpreter, which numpy deprecates
    (2.2) or refuses (2.4). bfloat16 is kept as its bits, of which a matrix product would be one of
    whole numbers.
    """
    patch, dot = interpreter._patch_lang_tensor, interpreter.InterpreterBuilder.create_dot

    def patched(tensor: Any, scope: Any) -> None:
        patch(tensor, scope)
        scope.set_attr(tensor, "__index__", _scalar_index)

    def product(self: Any, a: Any, b: Any, *rest: Any) -> Any:
        return dot(self, _float32(a), _float32(b), *rest)

    interpreter._patch_lang_tensor = patched
    interpreter.InterpreterBuilder.create_dot = product


if DEVICE == "cpu":
    # It is asked whenever a kernel is decorated, and some are triton's own.
    assert knobs.runtime.interpret, "TRITON_INTERPRET=1 must be set before triton is imported"
    _repair()
