"""Bundles of somebody who means harm, with every size, hash and digest as it should be.

A payload, if anything ran it, would make the file ``ran`` beside the bundle.
"""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import shutil
import struct
import warnings
import zipfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper

from command_line import wav

Spoil = Callable[[Path], object]
HONEST = Path(__file__).parent / "export" / "format-1"


def honest_copy(folder: Path) -> Path:
    """A bundle that may be spoilt, and beside it a recording to convert."""
    wav(folder / "in.wav", 6_000)
    return Path(shutil.copytree(HONEST, folder / "bundle"))


def marker(bundle: Path) -> Path:
    return bundle.parent / "ran"


@dataclass
class Payload:
    """Unpickled, it makes the marker."""

    at: str

    def __reduce__(self) -> tuple[object, ...]:
        return (os.mkdir, (self.at,))


def payload(bundle: Path) -> Payload:
    return Payload(str(marker(bundle)))


class Acting(torch.nn.Module):
    """TorchScript runs __setstate__ when it loads the file; this one writes the marker."""

    def __init__(self, at: str) -> None:
        super().__init__()
        self.at = at

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x

    @torch.jit.export
    def __getstate__(self) -> tuple[torch.Tensor, str, bool]:
        return torch.zeros(1), self.at, self.training

    @torch.jit.export
    def __setstate__(self, state: tuple[torch.Tensor, str, bool]) -> None:
        self.at = state[1]
        self.training = state[2]
        torch.save(state[0], state[1])


def acting(bundle: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.jit.script(Acting(str(marker(bundle)))).save(str(bundle / "decoder.ts"))


# Whole files


def written(name: str, content: bytes) -> Spoil:
    def spoil(bundle: Path) -> None:
        (bundle / name).parent.mkdir(exist_ok=True)
        (bundle / name).write_bytes(content)

    return spoil


def pickled(name: str) -> Spoil:
    return lambda bundle: written(name, pickle.dumps(payload(bundle)))(bundle)


def saved_by_torch(name: str) -> Spoil:
    return lambda bundle: torch.save({"weights": payload(bundle)}, bundle / name)


def huge(name: str, size: int) -> Spoil:
    return lambda bundle: os.truncate(bundle / name, size)


# Archives


def entries(path: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(path) as archive:
        return {entry.filename: archive.read(entry) for entry in archive.infolist()}


def rezipped(name: str, change: Callable[[Path, dict[str, bytes]], object], kind: int = 0) -> Spoil:
    """The archive with other entries, packed in another way."""

    def spoil(bundle: Path) -> None:
        held = entries(bundle / name)
        change(bundle, held)
        with zipfile.ZipFile(bundle / name, "w", kind) as archive:
            for entry, data in held.items():
                archive.writestr(entry, data)

    return spoil


def replaced(
    ending: str, make: Callable[[Path], bytes]
) -> Callable[[Path, dict[str, bytes]], None]:
    def change(bundle: Path, held: dict[str, bytes]) -> None:
        found = [name for name in held if name.endswith(ending)] or [f"decoder/{ending}"]
        held.update(dict.fromkeys(found, make(bundle)))

    return change


def array(header: bytes, data: bytes = b"") -> bytes:
    """A .npy with this header."""
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + data


def golden(**changed: bytes) -> Spoil:
    names = {f"{name}.npy": data for name, data in changed.items()}
    return rezipped("golden.npz", lambda _, held: held.update(names))


def object_arrays(bundle: Path) -> None:
    held = dict(np.load(bundle / "golden.npz"))
    inside = np.array([(1.0, payload(bundle))], [("x", "<f4"), ("y", "O")])
    np.savez(bundle / "golden.npz", **held | {"codes": inside})


def bomb(name: str, entry: str, kind: int, zeros: int) -> Spoil:
    """An archive of which an entry unpacks to so many zeros."""

    def spoil(bundle: Path) -> None:
        held = entries(bundle / name)
        whole = next((each for each in held if each.endswith(entry)), entry)
        with zipfile.ZipFile(bundle / name, "w", kind, compresslevel=1) as archive:
            for each, data in held.items():
                if each != whole:
                    archive.writestr(each, data, zipfile.ZIP_STORED)
            with archive.open(whole, "w", force_zip64=True) as file:
                for _ in range(zeros // 10_000_000):
                    file.write(bytes(10_000_000))

    return spoil


def lying_bomb(name: str, entry: str, zeros: int) -> Spoil:
    """bz2, of which the directory says that it unpacks to 100 bytes."""
    honest = bomb(name, entry, zipfile.ZIP_BZIP2, zeros)

    def spoil(bundle: Path) -> None:
        honest(bundle)
        with zipfile.ZipFile(bundle / name) as archive:
            at = archive.start_dir
        data = bytearray((bundle / name).read_bytes())
        while data[at : at + 4] == b"PK\x01\x02":
            lengths = struct.unpack_from("<HHH", data, at + 28)
            if data[at + 46 : at + 46 + lengths[0]].endswith(entry.encode()):
                struct.pack_into("<I", data, at + 24, 100)
            at += 46 + sum(lengths)
        (bundle / name).write_bytes(data)

    return spoil


def encrypted(name: str) -> Spoil:
    def spoil(bundle: Path) -> None:
        data = bytearray((bundle / name).read_bytes())
        at = -1
        while (at := data.find(b"PK\x01\x02", at + 1)) >= 0:
            data[at + 8] |= 1
        (bundle / name).write_bytes(data)

    return spoil


# safetensors


def safetensors(header: bytes, data: bytes = b"") -> bytes:
    return len(header).to_bytes(8, "little") + header + data


def tensor(name: str, shape: Iterable[int], begin: int, end: int, kind: str = "F32") -> str:
    offsets = f'"data_offsets":[{begin},{end}]'
    return f'"{name}":{{"dtype":"{kind}","shape":{json.dumps(list(shape))},{offsets}}}'


# ONNX


def graph(change: Callable[[onnx.ModelProto], object], file: str = "encoder.onnx") -> Spoil:
    def spoil(bundle: Path) -> None:
        model = onnx.load_from_string((bundle / file).read_bytes())
        change(model)
        (bundle / file).write_bytes(model.SerializeToString())

    return spoil


def before_all(*nodes: onnx.NodeProto) -> Callable[[onnx.ModelProto], None]:
    """Nodes whose outputs nothing reads."""

    def change(model: onnx.ModelProto) -> None:
        for node in reversed(nodes):
            model.graph.node.insert(0, node)

    return change


def operator(domain: str, kind: str) -> Callable[[onnx.ModelProto], None]:
    def change(model: onnx.ModelProto) -> None:
        before_all(helper.make_node(kind, ["waveform"], ["odd"], domain=domain))(model)
        model.opset_import.append(helper.make_opsetid(domain, 1))

    return change


def constant(name: str, value: object, kind: int = TensorProto.INT64) -> onnx.NodeProto:
    made = helper.make_tensor(name, kind, [len(value)], value)  # type: ignore[arg-type]
    return helper.make_node("Constant", [], [name], value=made)


def loop(model: onnx.ModelProto) -> None:
    body = helper.make_graph(
        [helper.make_node("Identity", ["going"], ["on"])],
        "body",
        [
            helper.make_tensor_value_info("turn", TensorProto.INT64, []),
            helper.make_tensor_value_info("going", TensorProto.BOOL, []),
        ],
        [helper.make_tensor_value_info("on", TensorProto.BOOL, [])],
    )
    turns = helper.make_tensor("turns", TensorProto.INT64, [], [10**15])
    made = helper.make_node("Constant", [], ["turns"], value=turns)
    before_all(made, helper.make_node("Loop", ["turns", ""], [], body=body))(model)


def branches(depth: int) -> Callable[[onnx.ModelProto], None]:
    """Branches within branches."""

    def change(model: onnx.ModelProto) -> None:
        inner = constant("leaf", [1.0], TensorProto.FLOAT)
        for _ in range(depth):
            name = inner.output[0]
            out = helper.make_tensor_value_info(name, TensorProto.FLOAT, [1])
            branch = helper.make_graph([inner], "branch", [], [out])
            inner = helper.make_node("If", ["c"], [f"{name}x"], then_branch=branch)
        before_all(inner)(model)

    return change


def function(model: onnx.ModelProto) -> None:
    node = helper.make_node("Identity", ["x"], ["y"])
    ids = [helper.make_opsetid("", 20)]
    model.functions.append(helper.make_function("own", "f", ["x"], ["y"], [node], ids))


def settings(model: onnx.ModelProto) -> None:
    """What onnxruntime can be told to take session options from, and it is not told to."""
    options = {"custom_ops_library": "/nowhere/evil.so", "session_options": {}}
    helper.set_model_props(model, {"ort_config": json.dumps(options)})


def chain(model: onnx.ModelProto) -> None:
    nodes = [helper.make_node("Relu", ["waveform"], ["x0"])]
    nodes += [helper.make_node("Relu", [f"x{n}"], [f"x{n + 1}"]) for n in range(20_000)]
    model.graph.node.extend(nodes)


def field(key: bytes, content: bytes) -> bytes:
    """A protobuf field of bytes, below 2 MB."""
    size = len(content)
    return key + bytes([size & 127 | 128, size >> 7 & 127 | 128, size >> 14]) + content


def second_graph(content: bytes) -> Spoil:
    """Readers merge it into the first."""

    def spoil(bundle: Path) -> None:
        with (bundle / "encoder.onnx").open("ab") as file:
            file.write(field(b"\x3a", content))

    return spoil


def external(key: bytes) -> Spoil:
    """An initializer whose data lies in /etc/passwd, the fact told by this key of the message."""
    told = field(b"\x0a", b"location") + field(b"\x12", b"/etc/passwd")
    made = b"\x08\x01\x10\x01" + field(b"\x42", b"hidden") + field(b"\x4a", bytes(4))
    return second_graph(field(b"\x2a", made + field(key, told)))


def deep_type(depth: int) -> Spoil:
    """A value that is a sequence of sequences of sequences."""
    kind = b""
    for _ in range(depth):
        kind = field(b"\x22", field(b"\x0a", kind))
    return second_graph(field(b"\x6a", field(b"\x0a", b"deep") + field(b"\x12", kind)))


# Manifests


def manifest(**changes: Any) -> Spoil:
    """Fields of other values, sealed as they are; ``a__b`` is the field b of the field a."""

    def spoil(bundle: Path) -> None:
        values = json.loads((bundle / "manifest.json").read_bytes())
        for key, value in changes.items():
            *inside, last = key.split("__")
            section = values
            for name in inside:
                section = section[name]
            section[last] = value
        forge(bundle, json.dumps(values))

    return spoil


def forge(bundle: Path, text: str) -> None:
    """Write manifest.json with the digest that belongs to it."""
    old = json.loads((bundle / "manifest.json").read_bytes())["digest"]
    blank = text.replace(old, "0" * 64).encode()
    digest = hashlib.sha256(blank).hexdigest().encode()
    (bundle / "manifest.json").write_bytes(blank.replace(b"0" * 64, digest))


def named(name: str) -> Spoil:
    """A file of this name is listed."""

    def spoil(bundle: Path) -> None:
        entry = {"size": 0, "sha256": hashlib.sha256(b"").hexdigest()}
        values = json.loads((bundle / "manifest.json").read_bytes())
        values["files"][name] = entry
        forge(bundle, json.dumps(values))

    return spoil


def samples_elsewhere(bundle: Path) -> None:
    outside = bundle.parent / "outside"
    outside.mkdir()
    (outside / "a.ogg").write_bytes(b"")
    (bundle / "samples").symlink_to(outside, target_is_directory=True)
    named("samples/a.ogg")(bundle)
