"""The programs in examples/ are built and run as their README says, and reproduce golden.npz; what
they convert is what vconv converts."""

from __future__ import annotations

import json
import os
import re
import shutil
import struct
import subprocess
import sys
import tarfile
import wave
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from tiny_model import exported, reseal

ROOT = Path(__file__).parents[1]
EXAMPLES = ROOT / "examples"
HELLO = EXAMPLES / "hello.wav"
DEMO = ROOT / "vconv" / "models" / "demo"
FORMATS = Path(__file__).parent / "export"
EMBED = (sys.executable, str(EXAMPLES / "python_embed.py"))
WARNINGS = ("-Wall", "-Wextra", "-Werror")
SAMPLER = next(iter((ROOT / "vconv" / "native").glob("_sampler*.so")), None)

needs_sampler = pytest.mark.skipif(SAMPLER is None, reason="the compiled sampler is not built")


def run(*command: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(part) for part in command],
        capture_output=True,
        text=True,
        timeout=900,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "error"},
    )


def tool(*names: str) -> str:
    """The first of these programs that is installed; or skip."""
    found = next((path for name in names if (path := shutil.which(name))), None)
    if found is None:
        pytest.skip(f"there is no {' or '.join(names)}")
    return found


def golden_parts(done: subprocess.CompletedProcess[str]) -> list[str]:
    """The parts that a program compared with golden.npz, all of them within their bounds."""
    assert done.returncode == 0, done.stdout + done.stderr
    lines = re.findall(r"(.*): largest difference from golden (\S+) \(bound (\S+)\)", done.stdout)
    for name, gap, bound in lines:
        assert 0 <= float(gap) <= float(bound) <= 1e-3, name
    return [name for name, _, _ in lines]


def refusal(done: subprocess.CompletedProcess[str]) -> str:
    """The one sentence with which a program ended."""
    assert done.returncode == 1, done.stdout + done.stderr
    lines = done.stderr.splitlines()
    assert len(lines) == 1, done.stderr
    assert lines[0].endswith(".")
    return lines[0]


def pcm(path: Path) -> np.ndarray:
    with wave.open(str(path)) as file:
        assert file.getparams()[:3] == (1, 2, 16000)
        return np.frombuffer(file.readframes(file.getnframes()), "<i2").astype(np.int64)


def excerpt(path: Path, samples: slice, silent: slice = slice(0)) -> Path:
    """Some samples of the example recording, of these some silenced, as a WAV file."""
    kept = pcm(HELLO)[samples].copy()
    kept[silent] = 0
    with wave.open(str(path), "wb") as file:
        file.setparams((1, 2, 16000, 0, "NONE", ""))
        file.writeframes(kept.astype("<i2").tobytes())
    return path


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The bundled model, and one of each format that was ever released."""
    folder = tmp_path_factory.mktemp("bundles")
    with tarfile.open(FORMATS / "format-2.tar.xz") as archive:
        archive.extractall(folder, filter="data")
    return {
        "demo": DEMO,
        "format 1": FORMATS / "format-1",
        "format 2, with pitch": folder / "format-2",
    }


BUNDLES = ("demo", "format 1", "format 2, with pitch")


def with_another_weight(folder: Path, tensor: str = "decoder.wavenet.logits.bias") -> Path:
    """The bundled model with one float changed and all its hashes right."""
    shutil.copytree(DEMO, folder)
    path = folder / "weights.safetensors"
    data = bytearray(path.read_bytes())
    (length,) = struct.unpack_from("<Q", data)
    place = 8 + length + json.loads(data[8 : 8 + length])[tensor]["data_offsets"][0]
    struct.pack_into("<f", data, place, struct.unpack_from("<f", data, place)[0] + 0.01)
    path.write_bytes(data)
    return reseal(folder)


def of_another_format(folder: Path) -> Path:
    shutil.copytree(DEMO, folder)
    path = folder / "manifest.json"
    text = path.read_text("utf-8")
    path.write_text(text.replace('"format_version": 2', '"format_version": 3'), "utf-8")
    return folder


# ---- Python: onnxruntime and the sampler ----


@needs_sampler
@pytest.mark.parametrize("name", BUNDLES)
def test_python_reproduces_golden(name: str, bundles: dict[str, Path]) -> None:
    parts = golden_parts(run(*EMBED, bundles[name], "--check"))
    pitch = ["pitch", "voicing"] if "pitch" in name else []
    assert parts == ["codes", "latents", *pitch, "conditioning", "logits"]


@needs_sampler
@pytest.mark.parametrize(("name", "seed"), [("demo", 0), ("demo", 7), ("format 2, with pitch", 3)])
def test_python_converts_to_the_samples_of_vconv(
    name: str, seed: int, bundles: dict[str, Path], tmp_path: Path
) -> None:
    # Not of whole chunks, beginning in the middle of a word, and with digital silence in it.
    source = excerpt(tmp_path / "in.wav", slice(18_000, 47_777), silent=slice(9_000, 21_000))
    mine, theirs = tmp_path / "mine.wav", tmp_path / "theirs.wav"
    voice = ("--speaker", "1", "--seed", str(seed))
    done = run(*EMBED, bundles[name], source, mine, *voice)
    assert done.returncode == 0, done.stderr
    fixed = ("--lanes", "1", "--engine", "native", "--precision", "fp32", "--quiet")
    command = (sys.executable, "-m", "vconv", "convert", source, "-o", theirs)
    done = run(*command, "--model", bundles[name], *voice, *fixed)
    assert done.returncode == 0, done.stderr
    np.testing.assert_array_equal(pcm(mine), pcm(theirs))
    assert pcm(mine).std() > 0


@pytest.mark.slow
@needs_sampler
@pytest.mark.parametrize("member", ["ae", "kernel_3", "instance_norm", "paper", "inverter"])
def test_python_reads_the_whole_family(member: str, tmp_path: Path) -> None:
    pytest.importorskip("torch")
    bundle = exported(member)
    assert len(golden_parts(run(*EMBED, bundle, "--check"))) == 4
    source = excerpt(tmp_path / "in.wav", slice(20_000, 30_001))
    mine, theirs = tmp_path / "mine.wav", tmp_path / "theirs.wav"
    assert run(*EMBED, bundle, source, mine).returncode == 0
    fixed = ("--lanes", "1", "--engine", "native", "--precision", "fp32", "--quiet")
    command = (sys.executable, "-m", "vconv", "convert", source, "-o", theirs)
    assert run(*command, "--model", bundle, "--speaker", "0", *fixed).returncode == 0
    np.testing.assert_array_equal(pcm(mine), pcm(theirs))


@needs_sampler
def test_python_refuses_in_one_sentence(tmp_path: Path) -> None:
    assert "manifest.json: cannot be read" in refusal(run(*EMBED, tmp_path, "--check"))
    other = of_another_format(tmp_path / "other")
    assert "format version 3; this program reads 1 and 2" in refusal(run(*EMBED, other, "--check"))
    shutil.copytree(DEMO, whole := tmp_path / "whole")
    (whole / "encoder.onnx").unlink()
    assert "encoder.onnx" in refusal(run(*EMBED, whole, "--check"))
    missing = tmp_path / "missing.wav"
    assert "missing.wav: cannot be read" in refusal(run(*EMBED, DEMO, missing, missing))
    assert "no speaker 'nobody'" in refusal(
        run(*EMBED, DEMO, HELLO, tmp_path / "out.wav", "--speaker", "nobody")
    )
    library = ("--library", tmp_path / "none.so")
    assert "is not the compiled sampler" in refusal(run(*EMBED, DEMO, "--check", *library))


@needs_sampler
def test_python_notices_one_altered_weight(tmp_path: Path) -> None:
    changed = with_another_weight(tmp_path / "changed")
    assert "does not reproduce its golden.npz" in refusal(run(*EMBED, changed, "--check"))
    data = (changed / "weights.safetensors").read_bytes()
    (changed / "weights.safetensors").write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    assert "weights.safetensors: its sha256" in refusal(run(*EMBED, changed, "--check"))


# ---- C: the sampler through its header ----


@pytest.fixture(scope="module")
def native_sampler(tmp_path_factory: pytest.TempPathFactory) -> Path:
    assert SAMPLER is not None
    program = tmp_path_factory.mktemp("cpp") / "native_sampler"
    command = (tool("cc", "gcc", "clang"), "-std=c11", "-O2", *WARNINGS, "-I", SAMPLER.parent)
    done = run(*command, EXAMPLES / "cpp" / "native_sampler.c", SAMPLER, "-lm", "-o", program)
    assert done.returncode == 0, done.stderr
    return program


@needs_sampler
@pytest.mark.parametrize("name", BUNDLES)
def test_c_reproduces_golden(name: str, native_sampler: Path, bundles: dict[str, Path]) -> None:
    done = run(native_sampler, bundles[name])
    assert golden_parts(done) == ["logits of 1000 samples"]
    assert re.search(r"^drew 16000 samples in .* times real time", done.stdout, re.MULTILINE)


@needs_sampler
def test_c_refuses_in_one_sentence(native_sampler: Path, tmp_path: Path) -> None:
    assert "manifest.json: cannot be opened" in refusal(run(native_sampler, tmp_path))
    other = of_another_format(tmp_path / "other")
    assert "format version 3; this program reads 1 and 2" in refusal(run(native_sampler, other))
    shutil.copytree(DEMO, whole := tmp_path / "whole")
    golden = (whole / "golden.npz").read_bytes()
    (whole / "golden.npz").write_bytes(golden[: len(golden) // 2])
    assert "golden.npz: is no .npz file" in refusal(run(native_sampler, whole))
    (whole / "weights.safetensors").unlink()
    assert "weights.safetensors: cannot be opened" in refusal(run(native_sampler, whole))


@needs_sampler
def test_c_notices_one_altered_weight(native_sampler: Path, tmp_path: Path) -> None:
    changed = with_another_weight(tmp_path / "changed")
    assert "the logits are not the golden ones" in refusal(run(native_sampler, changed))


# ---- C++: decoder.ts in LibTorch ----


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Both programs, built by CMake."""
    pytest.importorskip("torch")
    tool("c++", "g++", "clang++")
    cmake, folder = tool("cmake"), tmp_path_factory.mktemp("build")
    done = run(cmake, "-S", EXAMPLES / "cpp", "-B", folder, f"-DPYTHON={sys.executable}")
    assert done.returncode == 0, done.stderr
    done = run(cmake, "--build", folder)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


@pytest.mark.slow
@needs_sampler
@pytest.mark.parametrize("name", BUNDLES)
def test_libtorch_reproduces_golden(name: str, built: Path, bundles: dict[str, Path]) -> None:
    done = run(built / "torch_decoder", bundles[name])
    assert golden_parts(done) == ["logits of 1000 samples"]
    assert "drew 1280 codes from given uniforms: 0 are not what the logits say" in done.stdout
    assert golden_parts(run(built / "native_sampler", bundles[name])) == ["logits of 1000 samples"]


@pytest.mark.slow
@needs_sampler
@pytest.mark.parametrize("member", ["paper", "inverter"])
def test_c_and_libtorch_read_other_members(member: str, built: Path) -> None:
    for program in ("torch_decoder", "native_sampler"):
        assert golden_parts(run(built / program, exported(member))) == ["logits of 1000 samples"]


@pytest.mark.slow
@needs_sampler
@pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")
def test_libtorch_refuses_in_one_sentence(built: Path, tmp_path: Path) -> None:
    import torch

    program = built / "torch_decoder"
    assert "manifest.json: cannot be opened" in refusal(run(program, tmp_path))
    other = of_another_format(tmp_path / "other")
    assert "format version 3; this program reads 1 and 2" in refusal(run(program, other))
    shutil.copytree(DEMO, changed := tmp_path / "changed")
    decoder = torch.jit.load(changed / "decoder.ts")
    with torch.no_grad():
        name, numbers = next(p for p in decoder.state_dict().items() if p[1].is_floating_point())
        numbers.view(-1)[0] += 1
    decoder.save(str(changed / "decoder.ts"))
    assert "the logits are not the golden ones" in refusal(run(program, changed)), name
    (changed / "decoder.ts").unlink()
    assert "LibTorch cannot run its decoder.ts" in refusal(run(program, changed))


# ---- JavaScript: onnxruntime-node ----


@pytest.fixture(scope="module")
def convert_mjs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path]]:
    node, npm = tool("node", "nodejs"), tool("npm")
    folder = tmp_path_factory.mktemp("node") / "node"
    shutil.copytree(EXAMPLES / "node", folder, ignore=shutil.ignore_patterns("node_modules"))
    quiet = ("--ignore-scripts", "--no-package-lock", "--no-audit", "--no-fund")
    done = run(npm, "install", "--prefix", folder, *quiet)
    if done.returncode:
        pytest.skip("npm cannot install onnxruntime-node here: there is no registry")
    yield node, folder / "convert.mjs"
    shutil.rmtree(folder)  # 300 MB


@pytest.mark.slow
@pytest.mark.parametrize("name", ["demo", "format 1"])
def test_node_reproduces_golden(
    name: str, convert_mjs: tuple[str, Path], bundles: dict[str, Path]
) -> None:
    parts = golden_parts(run(*convert_mjs, bundles[name]))
    assert parts == ["codes", "latents", "conditioning", "logits"]


@pytest.mark.slow
@needs_sampler
def test_node_converts_as_the_sampler_does(convert_mjs: tuple[str, Path], tmp_path: Path) -> None:
    source = excerpt(tmp_path / "in.wav", slice(18_000, 22_001))
    mine, theirs = tmp_path / "mine.wav", tmp_path / "theirs.wav"
    done = run(*convert_mjs, DEMO, source, mine, "12", "7")
    assert done.returncode == 0, done.stderr
    assert run(*EMBED, DEMO, source, theirs, "--speaker", "12", "--seed", "7").returncode == 0
    found, wanted = pcm(mine), pcm(theirs)
    assert found.shape == wanted.shape
    # Sums of another order and precision may one day turn a draw, and all that follows.
    np.testing.assert_allclose(found[:1000], wanted[:1000], atol=1)
    assert wanted[:1000].std() > 0


@pytest.mark.slow
def test_node_refuses_in_one_sentence(convert_mjs: tuple[str, Path], tmp_path: Path) -> None:
    assert "manifest.json: cannot be read" in refusal(run(*convert_mjs, tmp_path))
    other = of_another_format(tmp_path / "other")
    assert "format version 3; this program reads 1 and 2" in refusal(run(*convert_mjs, other))
    changed = with_another_weight(tmp_path / "changed")
    assert "does not reproduce its golden.npz" in refusal(run(*convert_mjs, changed))
    (changed / "decoder.ts").unlink()
    assert "decoder.ts: cannot be read" in refusal(run(*convert_mjs, changed))
