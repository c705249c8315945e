"""``vconv doctor`` with faults planted around it: each becomes a line that says what to do."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest

from command_line import vconv_process
from tiny_model import exported
from vconv import doctor

ROOT = Path(__file__).parents[1]


@pytest.fixture
def planted(tmp_path: Path) -> Path:
    """A folder that is searched for packages before all others."""
    (tmp_path / "planted").mkdir()
    (tmp_path / "planted" / "torchaudio.py").write_text("")  # the real one takes seconds
    return tmp_path / "planted"


def examined(
    planted: Path, *arguments: object, **environment: str
) -> tuple[int, dict[str, dict[str, str]]]:
    """The exit code, and what is said of everything by its name."""
    env = {**os.environ, "PYTHONPATH": str(planted), "VCONV_HOME": "", **environment}
    process = vconv_process("doctor", "--json", *arguments, cwd=planted.parent, env=env)
    out, err = process.communicate(timeout=120)
    assert err == b"", err.decode()
    diagnosis = json.loads(out)
    assert diagnosis["works"] == (diagnosis["exit_code"] == process.returncode == 0)
    findings = {each["name"]: each for each in diagnosis["findings"]}
    for each in diagnosis["findings"]:
        assert "\n" not in each["text"] + each["fix"]
        assert "Traceback" not in each["text"]
    return process.returncode, findings


def test_a_whole_installation_is_ok_and_the_text_says_so() -> None:
    diagnosis = doctor.examine(str(exported()))
    wrong = [each for each in diagnosis.findings if each.status == "wrong"]
    assert (diagnosis.exit_code, wrong) == (0, [])
    lines = doctor.describe(diagnosis).splitlines()
    assert lines[-1].startswith("ok       converting")
    assert "works, with the model 'tiny', the native engine in fp32" in lines[-1]
    for name in ("numpy", "soxr"):
        assert any(line.split()[:3] == ["ok", name, metadata.version(name)] for line in lines), (
            lines
        )
    assert any(line.startswith("missing") for line in lines) == any(
        line.lstrip().startswith("-> ") for line in lines
    )


def test_what_the_doctor_imports_cannot_be_broken() -> None:
    code = "import sys, vconv.cli, vconv.doctor; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    loaded = done.stdout.split()
    heavy = {"numpy", "onnxruntime", "soundfile", "soxr", "pydantic", "yaml", "torch"}
    assert "vconv.doctor" in loaded
    assert heavy.isdisjoint(loaded)


def test_a_package_that_raises_at_its_import_is_a_line(planted: Path) -> None:
    (planted / "soundfile.py").write_text("raise OSError('sndfile library not found')")
    (planted / "torchaudio.py").write_text("raise ImportError('libc10_cuda.so')")
    code, found = examined(planted)
    assert code == 5
    assert found["soundfile"]["status"] == found["converting"]["status"] == "wrong"
    assert "OSError: sndfile library not found" in found["soundfile"]["text"]
    assert "pip install --force-reinstall soundfile" in found["soundfile"]["fix"]
    assert found["numpy"]["status"] == found["onnxruntime"]["status"] == "ok"
    if metadata.packages_distributions().get("torch"):
        assert "ImportError: libc10_cuda.so" in found["torchaudio"]["text"]
        assert "belongs to your torch" in found["torchaudio"]["fix"]


def test_a_package_that_ends_the_process_and_two_onnxruntimes(planted: Path) -> None:
    """The second distribution writes over the first one's files, whatever either says."""
    (planted / "onnxruntime.py").write_text(
        "import os, signal; os.kill(os.getpid(), signal.SIGILL)"
    )
    for name in ("onnxruntime", "onnxruntime_gpu"):
        info = planted / f"{name}-1.20.0.dist-info"
        info.mkdir()
        plain = name.replace("_", "-")
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {plain}\nVersion: 1.20.0\n")
    code, found = examined(planted)
    assert code == 5
    runtime = found["onnxruntime"]
    assert runtime["status"] == "wrong"
    assert "onnxruntime 1.20.0, onnxruntime-gpu 1.20.0: each overwrites" in (
        "onnxruntime " + runtime["text"]
    )
    assert "Illegal instruction" in runtime["text"]
    assert runtime["fix"].startswith("pip uninstall -y onnxruntime onnxruntime-gpu && pip install ")
    assert "Illegal instruction" in found["converting"]["text"]


def test_a_machine_with_a_gpu_that_cannot_be_used_without_ffmpeg_and_with_bad_models(
    planted: Path, tmp_path: Path
) -> None:
    programs = tmp_path / "bin"
    programs.mkdir()
    smi = programs / "nvidia-smi"
    smi.write_text("#!/bin/sh\necho 'NVIDIA H200, 570.86.15'\n")
    smi.chmod(0o755)
    home = tmp_path / "home" / "models"
    (home / "rubbish").mkdir(parents=True)
    (home / "rubbish" / "manifest.json").write_text("{")
    (home / "stray").mkdir()
    (home / "good").symlink_to(exported())
    code, found = examined(
        planted, "-m", "good", PATH=str(programs), VCONV_HOME=str(home.parent),
        CUDA_VISIBLE_DEVICES="",
    )  # fmt: skip
    assert code == 0  # converting works all the same
    assert found["ffmpeg"]["status"] == "missing"
    assert "m4a" in found["ffmpeg"]["text"]
    assert found["devices"]["status"] == "wrong"
    assert "NVIDIA H200, driver 570.86.15; onnxruntime lists" in found["devices"]["text"]
    assert "asked for cpu it runs on CPU" in found["devices"]["text"]
    assert "vconv[cuda]" in found["devices"]["fix"]
    assert found["model rubbish"]["status"] == "wrong"
    assert "not valid JSON" in found["model rubbish"]["text"]
    assert found["model good"]["status"] == found["model demo"]["status"] == "ok"
    assert "stray: no model" in found["models"]["text"]


def test_a_home_without_models_is_named(planted: Path, tmp_path: Path) -> None:
    (tmp_path / "home").write_text("a file")
    code, found = examined(planted, "-m", "nowhere", VCONV_HOME=str(tmp_path / "home"))
    assert code == 4
    assert found["models"]["status"] == "wrong"
    assert f"$VCONV_HOME is {tmp_path}/home" in found["models"]["text"]
    assert "There is no model 'nowhere'" in found["converting"]["text"]


@pytest.fixture
def copied(planted: Path) -> Path:
    """vconv's own package, to be damaged."""
    left_behind = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "vconv", planted / "vconv", ignore=left_behind)
    return planted / "vconv"


def test_a_missing_sampler_names_the_compiler(planted: Path, copied: Path) -> None:
    for library in (copied / "native").glob("_sampler*"):
        library.unlink()
    (planted / "torch.py").write_text("raise ImportError('no torch here')")
    code, found = examined(planted, PATH="/nowhere", CXX="")
    assert code == 5
    assert found["vconv"]["text"].endswith(f"in {copied}")
    assert found["sampler"]["status"] == "missing"
    assert found["sampler"]["fix"].startswith("install a C++ compiler (g++ or clang++), then pip")
    assert found["converting"]["status"] == "wrong"
    assert "torch" in found["converting"]["text"]


def test_a_damaged_bundled_model_is_exit_4(planted: Path, copied: Path) -> None:
    weights = copied / "models" / "demo" / "weights.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    (library,) = (copied / "native").glob("_sampler*")
    library.write_bytes(b"no library")
    code, found = examined(planted)
    assert code == 4
    for name in ("model demo", "converting"):
        assert found[name]["status"] == "wrong"
        assert f"{weights}: damaged" in found[name]["text"]
    assert "pip install --force-reinstall" in found["model demo"]["fix"]
    assert found["sampler"]["status"] == "wrong"
    assert "cannot be loaded" in found["sampler"]["text"]


CUDA = ["CUDAExecutionProvider", "CPUExecutionProvider"]
LISTED = {"providers": CUDA}


@pytest.mark.parametrize(
    ("gpu", "runtime", "bound", "status", "says", "fix"),
    [
        ("G", LISTED, {"cpu": CUDA[1:], "cuda": CUDA}, "ok", "cuda it runs on CUDA, CPU", ""),
        ("G", LISTED, {"cpu": CUDA[1:], "cuda": "no lib"}, "wrong", "no lib", "'vconv[cuda]'"),
        ("G", {"providers": CUDA[1:]}, {"cpu": CUDA[1:]}, "wrong", "without CUDA", "uninstall -y"),
        (None, LISTED, {"cpu": CUDA[1:], "cuda": "no lib"}, "ok", "no NVIDIA GPU", ""),
        (None, {"error": "broken"}, {"error": "broken"}, "missing", "lists nothing", ""),
    ],
)
def test_a_gpu_is_ok_only_if_a_session_runs_on_it(
    gpu: str | None,
    runtime: dict[str, Any],
    bound: dict[str, Any],
    status: str,
    says: str,
    fix: str,
) -> None:
    found = doctor._graphics(gpu, runtime, bound)
    assert found.status == status
    assert says in found.text
    assert fix in found.fix
    assert bool(fix) == bool(found.fix)


def test_a_package_that_never_returns_is_waited_for_so_long_and_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "slow_package.py").write_text("import time; time.sleep(100)")
    monkeypatch.syspath_prepend(tmp_path)
    probes = {"slow": ("package", "slow_package"), "quick": ("package", "json")}
    with doctor._probing(probes) as children:
        found = doctor._answer(children["slow"], time.monotonic() + 0.5)
        assert "did not come to an end" in found["error"]
        assert "error" not in doctor._answer(children["quick"], time.monotonic() + 60)
        assert children["slow"].poll() is None
    assert children["slow"].poll() is not None


def test_a_version_that_does_not_fit_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    real = metadata.version
    monkeypatch.setattr(
        metadata, "version", lambda name: "0.1" if name in ("soxr", "torch") else real(name)
    )
    found = doctor._package("soxr", "soxr", {"version": "0.1", "file": ""})
    assert (found.status, found.fix) == ("wrong", "pip install --upgrade soxr")
    assert found.text == "soxr 0.1, where >=0.5 is needed"
    torch = next(doctor._torch(None))
    assert torch.status == "wrong"
    assert "where <2.12,>=2.10 is needed" in torch.text
