"""The numbers inside an ONNX file, read without the ``onnx`` package.

The base install has none, and both the refusal of external data and ``vconv verify`` belong to
it. So the protobuf encoding is walked here, as far as constants need it. Field numbers are those
of onnx/onnx.proto, which never change.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from .errors import ModelError

# Which fields of which message hold messages that may hold tensors.
_INSIDE: dict[str, dict[int, str]] = {
    "Model": {7: "Graph", 20: "Training", 25: "Function"},
    "Training": {1: "Graph", 2: "Graph"},
    "Function": {7: "Node", 11: "Attribute"},
    "Graph": {1: "Node", 5: "Tensor", 15: "Sparse"},
    "Node": {5: "Attribute"},
    "Attribute": {5: "Tensor", 6: "Graph", 10: "Tensor", 11: "Graph", 22: "Sparse", 23: "Sparse"},
    "Sparse": {1: "Tensor", 2: "Tensor"},
}
_COMPUTING = (7, 25)  # of a Model: the graph, and functions that it may call
_MAX_DEPTH = 24
_MAX_NODES = 10_000  # the largest graph of the family has 183
_OWN_DOMAINS = (b"", b"ai.onnx")
_CALLED = (20, 25)  # of a Model: training and functions
_SUBGRAPHS = (6, 11)  # of an Attribute
_ATTRIBUTE_FLOATS = 7
_NUMPY = {
    1: np.float32, 2: np.uint8, 3: np.int8, 4: np.uint16, 5: np.int16, 6: np.int32, 7: np.int64,
    9: np.bool_, 10: np.float16, 11: np.float64, 12: np.uint32, 13: np.uint64,
}  # fmt: skip
# Where TensorProto keeps numbers that are not in raw_data: fixed-width lists only.
_FIXED_LISTS = {4: np.float32, 10: np.float64}
_VARINT_LISTS = {5: np.int64, 7: np.int64, 11: np.uint64}


@dataclass(frozen=True)
class GraphTensor:
    """A constant inside an ONNX file, wherever it stands; numbers as stored, flat."""

    name: str
    shape: tuple[int, ...]
    values: npt.NDArray[Any]

    @property
    def array(self) -> npt.NDArray[Any]:
        return self.values.reshape(self.shape)


def graph_tensors(data: bytes, where: str) -> list[GraphTensor]:
    """Every tensor in an ONNX file, subgraphs and attributes included.

    Raises ModelError for bytes that are no protobuf message, and for a tensor whose numbers lie
    in another file (external data).
    """
    try:
        return list(_tensors(memoryview(data), "Model", where, 0))
    except (IndexError, ValueError) as error:
        raise ModelError(f"{where}: not a whole ONNX file ({error}).") from None


def check_operations(data: bytes, where: str) -> None:
    """Refuse a graph that could do other things than compute, or without end: an operator that is
    not ONNX's own, one with graphs inside of it (a loop, a branch), a function, and more nodes than
    any model of ours has. Raises ModelError for these, and for bytes that are no message.
    """
    try:
        model = memoryview(data)
        if any(True for _ in _messages(model, *_CALLED)):
            raise ModelError(f"{where}: holds functions or training; only a graph is run.")
        nodes = [node for graph in _messages(model, 7) for node in _messages(graph, 1)]
        for node in nodes:
            domain = bytes([b"", *_messages(node, 7)][-1])  # of several the last counts
            if domain not in _OWN_DOMAINS:
                named = b"::".join((domain, *_messages(node, 4))).decode("utf-8", "replace")
                raise ModelError(f"{where}: the operator {named[:80]!r} is not one of ONNX's own.")
            attributes = _messages(node, 5)
            if any(True for each in attributes for _ in _messages(each, *_SUBGRAPHS)):
                raise ModelError(f"{where}: a node has a graph inside of it; that is not run.")
    except (IndexError, ValueError) as error:
        raise ModelError(f"{where}: not a whole ONNX file ({error}).") from None
    if len(nodes) > _MAX_NODES:
        raise ModelError(f"{where}: has {len(nodes):,} nodes; at most {_MAX_NODES:,} are run.")


def graph_bytes(data: bytes, where: str) -> bytes:
    """What an ONNX file computes: its graph and functions as they are stored, without what is
    said about them (producer, version, metadata). Raises ModelError for bytes that are no message.
    """
    try:
        parts = [
            bytes(value)
            for field, value in _fields(memoryview(data))
            if field in _COMPUTING and isinstance(value, memoryview)
        ]
    except (IndexError, ValueError) as error:
        raise ModelError(f"{where}: not a whole ONNX file ({error}).") from None
    return b"".join(parts)


def _tensors(message: memoryview, kind: str, where: str, depth: int) -> Iterator[GraphTensor]:
    if depth > _MAX_DEPTH:
        raise ValueError("graphs nested too deeply")
    if kind == "Tensor":
        yield _tensor(message, where)
        return
    inside = _INSIDE[kind]
    floats: list[npt.NDArray[Any]] = []
    for field, value in _fields(message):
        if field in inside and isinstance(value, memoryview):
            yield from _tensors(value, inside[field], where, depth + 1)
        elif kind == "Attribute" and field == _ATTRIBUTE_FLOATS and isinstance(value, memoryview):
            floats.append(np.frombuffer(value, "<f4"))
    if floats:
        values = np.concatenate(floats)
        yield GraphTensor("(attribute)", values.shape, values)


def _tensor(message: memoryview, where: str) -> GraphTensor:
    dims: list[int] = []
    kind, name = 0, ""
    raw: memoryview | None = None
    lists: list[npt.NDArray[Any]] = []
    for field, value in _fields(message):
        if field == 13 or (field == 14 and value == 1):
            raise ModelError(f"{where}: a tensor's data lies in another file; it must be inside.")
        if field == 1:
            dims += list(_varints(value)) if isinstance(value, memoryview) else [value]
        elif field == 2 and isinstance(value, int):
            kind = value
        elif field == 8 and isinstance(value, memoryview):
            name = bytes(value).decode("utf-8", "replace")
        elif field == 9 and isinstance(value, memoryview):
            raw = value
        elif field in _FIXED_LISTS and isinstance(value, memoryview):
            lists.append(np.frombuffer(value, np.dtype(_FIXED_LISTS[field]).newbyteorder("<")))
        elif field in _VARINT_LISTS:
            numbers = list(_varints(value)) if isinstance(value, memoryview) else [value]
            wide = np.array(numbers, np.uint64)
            lists.append(wide.view(np.int64).astype(_VARINT_LISTS[field]))
    if kind not in _NUMPY:
        raise ModelError(f"{where}: the tensor {name!r} is of ONNX type {kind}, not a number's.")
    dtype = np.dtype(_NUMPY[kind])
    if raw is not None:
        values = np.frombuffer(raw, dtype.newbyteorder("<"))
    else:
        values = np.concatenate(lists).astype(dtype) if lists else np.zeros(0, dtype)
    if math.prod(dims) != len(values):
        raise ModelError(
            f"{where}: the tensor {name!r} holds {len(values):,} numbers, its shape {dims} says "
            f"{math.prod(dims):,}."
        )
    return GraphTensor(name, tuple(dims), values)


def _messages(message: memoryview, *wanted: int) -> Iterator[memoryview]:
    """The values of these fields, as far as they are bytes."""
    for field, value in _fields(message):
        if field in wanted and isinstance(value, memoryview):
            yield value


def _fields(message: memoryview) -> Iterator[tuple[int, int | memoryview]]:
    """(field number, value) of each field of a protobuf message, in order."""
    at = 0
    while at < len(message):
        key, at = _varint(message, at)
        field, wire = key >> 3, key & 7
        if not 0 < key < 2**32:  # other readers keep 32 bits of it, and would see another field
            raise ValueError(f"field {field}")
        if wire == 0:
            number, at = _varint(message, at)
            yield field, number
            continue
        if wire == 2:
            size, at = _varint(message, at)
        elif wire in (1, 5):
            size = 8 if wire == 1 else 4
        else:
            raise ValueError(f"wire type {wire}")
        if at + size > len(message):
            raise ValueError("cut short")
        yield field, message[at : at + size]
        at += size


def _varint(message: memoryview, at: int) -> tuple[int, int]:
    number = 0
    for shift in range(0, 70, 7):
        byte = message[at]
        at += 1
        number |= (byte & 0x7F) << shift
        if byte < 0x80:
            return number & (2**64 - 1), at
    raise ValueError("a number too long")


def _varints(message: memoryview) -> Iterator[int]:
    at = 0
    while at < len(message):
        number, at = _varint(message, at)
        yield number
