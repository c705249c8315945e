"""Bundles with correct hashes that mean harm: nothing of them runs, whatever they are given to.

A table of bundles, of the commands that must refuse each (4, one sentence) and of those that never
look at what was spoilt. Elsewhere, and not repeated: damage, traversal by names and links, other
inputs and outputs of graphs (`test_bundle.py`); pickles, bombs and code found by `vconv verify`
(`export/test_verify.py`); checkpoints (`train/test_bad_training_inputs.py`).
"""

from __future__ import annotations

import pickle
import re
import time
import zipfile
from dataclasses import dataclass
from pathlib import Path

import pytest
from onnx import helper

import vconv
from command_line import Done, Run, one_error
from malicious import (
    Spoil,
    acting,
    array,
    before_all,
    bomb,
    branches,
    chain,
    constant,
    deep_type,
    encrypted,
    external,
    function,
    golden,
    graph,
    honest_copy,
    huge,
    loop,
    lying_bomb,
    manifest,
    marker,
    named,
    object_arrays,
    operator,
    payload,
    pickled,
    replaced,
    rezipped,
    safetensors,
    samples_elsewhere,
    saved_by_torch,
    settings,
    tensor,
    written,
)
from tiny_model import reseal
from vconv.cli_shared import report_error
from vconv.errors import VconvError

SECONDS = 20  # of a busy machine; what hangs takes for ever
MEMORY_KB = 700_000

WAYS: dict[str, tuple[object, ...]] = {
    "convert": ("convert", "in.wav", "-s", "bea", "-o", "out.wav", "--overwrite"),
    "torchscript": (
        *("convert", "in.wav", "-s", "bea", "-o", "out.wav", "--overwrite"),
        *("--engine", "torchscript"),
    ),
    "encode": ("encode", "in.wav", "-o", "out.units", "--overwrite"),
    "info": ("info",),
    "speakers": ("speakers",),
    "bench": ("bench", "--seconds", "0.01", "--lanes", "1", "--engine", "native"),
}
ALL = "load convert torchscript encode info speakers bench verify"
KEPT = "info speakers"  # these look at the manifest only


@dataclass(frozen=True)
class Attack:
    """``refused``: ways in that must end with 4 and say this; ``harmless``: those that must not
    notice."""

    spoil: Spoil
    says: str
    refused: str = ""
    harmless: str = ""
    sealed: bool = True  # sizes, hashes and digest are made right after it


def unread(spoil: Spoil, says: str) -> Attack:
    """Of a file that only `vconv verify` reads."""
    return Attack(spoil, says, refused="verify", harmless="load")


def used(spoil: Spoil, says: str, refused: str) -> Attack:
    return Attack(spoil, says, refused=refused, harmless=KEPT)


def opened(spoil: Spoil, says: str) -> Attack:
    """What is refused before anything else."""
    return Attack(spoil, says, refused="load info verify", sealed=False)


WEIGHTS = "load torchscript bench verify"
ENCODER = "load verify"
DEEP = b"{'descr': '<f4', 'fortran_order': False, 'shape': (" + b"-" * 9_000 + b"1,), }\n"
WIDE = b"{'descr': '|V0', 'fortran_order': False, 'shape': (1000000000000000000,), }\n"
NEGATIVE = b"{'descr': '<f4', 'fortran_order': False, 'shape': (-1, -4), }\n"

ATTACKS: dict[str, Attack] = {
    # Pickles
    "weights: pickle": used(pickled("weights.safetensors"), "weights.*not a whole", WEIGHTS),
    "weights: torch.save": used(
        saved_by_torch("weights.safetensors"), "not a whole", "load verify"
    ),
    "speakers: pickle": used(
        pickled("speakers.safetensors"), "speakers.*not a whole", "convert torchscript verify"
    ),
    "encoder: pickle": used(
        pickled("encoder.onnx"), "encoder.onnx: ", "load convert encode verify"
    ),
    "conditioner: pickle": used(pickled("conditioner.onnx"), "conditioner.onnx: ", "load verify"),
    "manifest: pickle": Attack(
        pickled("manifest.json"), "manifest.json: not valid JSON", ALL, sealed=False
    ),
    "golden: pickle": unread(pickled("golden.npz"), "golden.npz: not a whole"),
    "golden: torch.save": unread(saved_by_torch("golden.npz"), "golden.npz: not a whole"),
    "golden: objects in a structure": unread(object_arrays, "codes is damaged"),
    "decoder.ts: pickle": unread(pickled("decoder.ts"), "decoder.ts: not a whole"),
    "decoder.ts: torch.save": unread(saved_by_torch("decoder.ts"), "1 of .* decoder.ts: tensors"),
    "decoder.ts: __setstate__": Attack(
        acting, "1 of .* decoder.ts: tensors", "verify", harmless="load convert torchscript bench"
    ),
    **{
        f"decoder.ts: a payload as {name}": Attack(
            rezipped("decoder.ts", replaced(name, lambda b: pickle.dumps(payload(b)))),
            "",
            harmless="verify",
        )
        for name in ("data.pkl", "constants.pkl", "extra/evil.pkl")
    },
    "samples: pickle": Attack(pickled("samples/000-ada.ogg"), "", harmless="load info verify"),
    # Archives
    "golden: bomb": unread(
        bomb("golden.npz", "logits.npy", zipfile.ZIP_DEFLATED, 210_000_000), "are too large"
    ),
    "golden: bz2 bomb": unread(
        lying_bomb("golden.npz", "logits.npy", 30_000_000), "is not deflated"
    ),
    "golden: lzma": unread(
        rezipped("golden.npz", lambda *_: None, zipfile.ZIP_LZMA), "is not deflated"
    ),
    "golden: encrypted": unread(encrypted("golden.npz"), "golden.npz: not a whole.*encrypted"),
    "golden: nested header": unread(golden(codes=array(DEEP)), "codes is nested too deeply"),
    "golden: 1e18 of nothing": unread(golden(codes=array(WIDE)), "codes"),
    "golden: negative shape": unread(golden(codes=array(NEGATIVE, bytes(16))), "golden.npz: "),
    "golden: NUL in a name": unread(
        rezipped("golden.npz", lambda _, held: held.update({"evil\0.npy": b"x"})), "it holds"
    ),
    "decoder.ts: bomb": unread(
        bomb("decoder.ts", "data/9", zipfile.ZIP_DEFLATED, 210_000_000), "larger than the file"
    ),
    "decoder.ts: bz2 bomb": unread(
        lying_bomb("decoder.ts", "data/9", 30_000_000), "tensors are packed"
    ),
    # Tensors
    "weights: 20 MB of header": used(
        written("weights.safetensors", safetensors(b"{" + b" " * 20_000_000 + b"}")),
        "header has 20,000,002 bytes",
        "load verify",
    ),
    "weights: 1e9 numbers": used(
        written(
            "weights.safetensors",
            safetensors(f"{{{tensor('a', [10**9], 0, 4 * 10**9)}}}".encode(), bytes(8)),
        ),
        "not a whole",
        "load verify",
    ),
    "weights: a million axes": used(
        written(
            "weights.safetensors",
            safetensors(f"{{{tensor('a', [1] * 10**6, 0, 4)}}}".encode(), bytes(4)),
        ),
        "weights.safetensors: ",
        "load verify",
    ),
    "weights: a product that wraps": used(
        written(
            "weights.safetensors",
            safetensors(f"{{{tensor('a', [2**32, 2**32], 0, 0)}}}".encode()),
        ),
        "not a whole",
        "load verify",
    ),
    "weights: overlapping": used(
        written(
            "weights.safetensors",
            safetensors(
                f"{{{tensor('a', [2], 0, 8)},{tensor('b', [2], 4, 12)}}}".encode(), bytes(12)
            ),
        ),
        "not a whole",
        "load verify",
    ),
    "weights: nested header": used(
        written("weights.safetensors", safetensors(b'{"a":' * 100_000 + b"}" * 100_000)),
        "not a whole",
        "load verify",
    ),
    **{
        f"weights: of type {kind}": used(
            written(
                "weights.safetensors",
                safetensors(f"{{{tensor('a', [8], 0, size, kind)}}}".encode(), bytes(size)),
            ),
            "weights.safetensors: ",
            "load",
        )
        for kind, size in (("F8_E4M3", 8), ("F4", 4), ("BF16", 16), ("C64", 64))
    },
    # Graphs
    "onnx: external, by a longer key": used(external(b"\xea\x80\x80\x80\x10"), "field", ENCODER),
    "onnx: external, in a second graph": used(external(b"\x6a"), "in another file", ENCODER),
    "onnx: an operator of a stranger": used(graph(operator("evil", "Run")), "'evil::Run'", ENCODER),
    "onnx: a contributed operator": used(
        graph(operator("com.microsoft", "BeamSearch")), "'com.microsoft::BeamSearch'", ENCODER
    ),
    "onnx: a loop": used(graph(loop), "a graph inside of it", ENCODER),
    "onnx: a branch": used(graph(branches(1)), "a graph inside of it", ENCODER),
    "onnx: nested branches": used(graph(branches(30)), "a graph inside|nested too", ENCODER),
    "onnx: a function": used(graph(function), "holds functions", ENCODER),
    "onnx: a nested type": used(deep_type(3_000), "cannot load it", ENCODER),
    "onnx: a long chain": used(graph(chain), "20,113 nodes", ENCODER),
    "onnx: huge dims": used(
        graph(lambda m: m.graph.initializer[0].dims.__setitem__(0, 10**12)),
        r"shape .* says",
        ENCODER,
    ),
    "onnx: 1e15 numbers from nothing": used(
        graph(
            before_all(
                constant("shape", [10**15]),
                helper.make_node("ConstantOfShape", ["shape"], ["zeros"]),
                helper.make_node("ReduceSum", ["zeros"], ["sum"]),
                helper.make_node("Add", ["sum", "sum"], ["twice"]),
            )
        ),
        "cannot|of unknown origin",
        "verify",
    ),
    "onnx: session options": Attack(graph(settings), "", harmless="load verify"),
    # Manifests
    **{
        f"manifest: lists {name!r}": opened(named(name), "manifest.json: files")
        for name in (
            *("C:\\evil", "..\\..\\evil", "\\\\host\\share", "samples/../../x", "samples//x"),
            *("a\0b", "file:///etc/passwd", "%2e%2e/x", "samples/\u202egpj.x", "-o\nx", "x" * 999),
        )
    },
    "manifest: lists a device of Windows": opened(named("NUL"), "NUL: missing"),
    "manifest: samples elsewhere": opened(samples_elsewhere, "a.ogg: missing"),
    "manifest: deep": opened(written("manifest.json", b'{"a":' * 600_000), "not valid JSON"),
    "manifest: a long number": opened(
        written("manifest.json", b'{"format_version":' + b"9" * 3_000_000 + b"}"), "not valid JSON"
    ),
    "manifest: too large": opened(huge("manifest.json", 10**11), "100,000,000,000 bytes"),
    "manifest: infinite": opened(manifest(quality={"x": 1e308 * 10}), "not valid JSON"),
    "manifest: 1e9 blocks": opened(manifest(model__decoder__blocks=10**9), "decoder.blocks"),
    "manifest: layers of 2^60": opened(manifest(model__decoder__layers=60), "decoder.layers"),
    "manifest: wide": opened(manifest(model__encoder__width=10**12), "encoder.width"),
    "manifest: 1e30000 codes": opened(
        manifest(model__bottleneck__kind="fsq", model__bottleneck__levels=[1000] * 10_000), ""
    ),
    "manifest: surrogates": opened(manifest(speakers=["\ud800", "b", "c"]), "speakers.0"),
    "manifest: a file of 2 TB": opened(
        manifest(files={"golden.npz": {"size": 2**41, "sha256": "1" * 64}}), "golden.npz.size"
    ),
    "manifest: an object of YAML": opened(
        written("manifest.json", b"!!python/object/apply:os.mkdir [ran]"), "not valid JSON"
    ),
}


@pytest.fixture
def bundle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return honest_copy(tmp_path)


def enter(way: str, bundle: Path, run: Run, capfd: pytest.CaptureFixture[str]) -> Done:
    if way == "verify":
        return run("verify", bundle)
    if way != "load":
        return run(*WAYS[way], "-m", bundle)
    capfd.readouterr()
    code = 0
    try:
        vconv.load(bundle).close()
    except VconvError as error:
        code = report_error(error)
    return Done(code, *capfd.readouterr())


@pytest.mark.parametrize("name", ATTACKS)
def test_nothing_of_a_malicious_bundle_runs(
    name: str, bundle: Path, run: Run, capfd: pytest.CaptureFixture[str]
) -> None:
    attack = ATTACKS[name]
    attack.spoil(bundle)
    if attack.sealed:
        reseal(bundle)
    for way in attack.refused.split() + attack.harmless.split():
        begun, before = time.monotonic(), reset_peak()
        done = enter(way, bundle, run, capfd)
        assert time.monotonic() - begun < SECONDS, way
        assert peak() - before < MEMORY_KB, way
        assert not marker(bundle).exists(), way
        assert not (bundle.parent / "evil").exists()
        if way in attack.harmless.split():
            assert done.code == 0, (way, done.err)
            continue
        assert done.code == 4, (way, done.code, done.err)
        error = one_error(done) if way != "verify" or not done.out else done.err
        assert re.search(attack.says, error), (way, error)
        assert str(bundle) in error, way
        assert "fault of vconv" not in error


def test_with_trust_code_the_code_runs_so_these_tests_would_see_it(bundle: Path, run: Run) -> None:
    acting(bundle)
    reseal(bundle)
    assert run("verify", bundle, "--trust-code").code == 4  # it is no decoder
    assert marker(bundle).is_file()


def test_enough_different_attacks_are_tried() -> None:
    assert len(ATTACKS) >= 60


def reset_peak() -> int:
    """Begin to measure the most memory anew; what there is now in kB, 0 where it cannot be told."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return 0
    return peak()


def peak() -> int:
    try:
        status = Path("/proc/self/status").read_text()
    except OSError:
        return 0
    return int(re.search(r"VmHWM:\s+(\d+)", status)[1])  # type: ignore[index]
