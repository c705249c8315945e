"""``vconv doctor``: whether vconv works here, and what to do where it does not.

Nothing is imported here that could be broken: what packages are like is asked of their metadata,
and whether they work of ``doctor_probes``, in other processes.
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from .errors import ModelError, SetupError
from .installed import RUNTIMES, extras, runtime, unmet_of, version_of

Status = Literal["ok", "missing", "wrong"]

# What converting imports, and the distributions that bring it.
PACKAGES = {
    "numpy": "numpy",
    "onnxruntime": "",  # one of several, below
    "soundfile": "soundfile",
    "soxr": "soxr",
    "pydantic": "pydantic",
    "yaml": "pyyaml",
    "safetensors": "safetensors",
    "rich": "rich",
}
_PATIENCE_SECONDS = 120.0
_FEATURES = "avx2 fma avx_vnni avx512f avx512bw avx512_vnni avx512_bf16 amx_int8 asimd asimddp bf16"
_UNLISTED = ("all", "dev")  # extras that are sums of others, or for vconv's own developers

# The parent's path, so that the child finds what vconv itself would: without the current folder,
# which -c puts first, unless that is on it.
_CHILD = (
    "import sys; del sys.path[0]; import json; sys.path[:] = json.loads(sys.argv[1]); "
    "from vconv.doctor_probes import main; main(sys.argv[2:])"
)


@dataclass(frozen=True)
class Finding:
    """One line: what was looked at, how it is, and for what is wrong the way to mend it."""

    name: str
    status: Status
    text: str
    fix: str = ""


@dataclass(frozen=True)
class Diagnosis:
    """All findings, and what the command leaves with: 0 where converting works."""

    findings: list[Finding]
    exit_code: int

    def json(self) -> dict[str, Any]:
        return {"works": self.exit_code == 0, **asdict(self)}


def examine(model: str = "demo") -> Diagnosis:
    """Look at everything that converting with a model, and the rest of vconv, needs here."""
    both = all(map(version_of, ("torch", "torchaudio")))
    tried = [*PACKAGES, *(["torchaudio"] if both else [])]
    probes: dict[str, tuple[str, ...]] = {name: ("package", name) for name in tried}
    probes |= {
        "sampler": ("sampler",),
        "models": ("models",),
        "conversion": ("conversion", model),
        "providers": ("providers", model),
    }
    with _probing(probes) as children:
        deadline = time.monotonic() + _PATIENCE_SECONDS
        gpu = _gpu()
        found = {name: _answer(child, deadline) for name, child in children.items()}
    conversion = found["conversion"]
    findings = [
        _ourselves(),
        Finding("python", "ok", f"{platform.python_version()}, {sys.executable}"),
        Finding("platform", "ok", platform.platform()),
        *(_package(name, distribution, found[name]) for name, distribution in PACKAGES.items()),
        _processor(),
        _sampler(found["sampler"]),
        _graphics(gpu, found["onnxruntime"], found["providers"]),
        *_models(found["models"]),
        _ffmpeg(),
        *_torch(found.get("torchaudio")),
        *_extras(),
        _conversion(model, conversion),
    ]
    return Diagnosis(findings, _exit_code(conversion))


def describe(diagnosis: Diagnosis) -> str:
    """The findings as lines of text, what converting needs least last."""
    width = max(len(finding.name) for finding in diagnosis.findings)
    lines = []
    for finding in diagnosis.findings:
        lines.append(f"{finding.status:<8} {finding.name:<{width}}  {finding.text}")
        if finding.fix:
            lines.append(f"{'':<8} {'':<{width}}  -> {finding.fix}")
    return "\n".join(lines)


def _exit_code(conversion: dict[str, Any]) -> int:
    if "error" not in conversion:
        return 0
    models = conversion["exit_code"] == ModelError.exit_code
    return ModelError.exit_code if models else SetupError.exit_code


# -- what the other processes found ----------------------------------------------------------------


@contextmanager
def _probing(
    probes: dict[str, tuple[str, ...]],
) -> Iterator[dict[str, subprocess.Popen[str]]]:
    """All probes at work at the same time; none outlives the block."""
    children: dict[str, subprocess.Popen[str]] = {}
    try:
        for name, arguments in probes.items():
            children[name] = subprocess.Popen(
                [sys.executable, "-c", _CHILD, json.dumps(sys.path), *arguments],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                encoding="utf-8",
                errors="replace",
            )
        yield children
    finally:
        for child in children.values():
            if child.poll() is None:
                child.kill()
            child.communicate()


def _answer(child: subprocess.Popen[str], deadline: float) -> dict[str, Any]:
    """What a probe printed, or how it ended without."""
    try:
        out, err = child.communicate(timeout=max(0.1, deadline - time.monotonic()))
    except subprocess.TimeoutExpired:
        return _failure(f"did not come to an end within {_PATIENCE_SECONDS:g} s")
    try:
        found: dict[str, Any] = json.loads(out.splitlines()[-1])
    except (IndexError, ValueError):
        code = child.returncode
        if code < 0:
            return _failure(f"ends the process: {signal.strsignal(-code)}")
        last = (err.strip().splitlines() or ["without a word"])[-1]
        return _failure(f"ends the process with code {code} ({last[:200]})")
    return found


def _failure(error: str) -> dict[str, Any]:
    return {"error": error, "exit_code": SetupError.exit_code}


# -- findings --------------------------------------------------------------------------------------


def _ourselves() -> Finding:
    where = f"in {Path(__file__).parent}"
    version = version_of("vconv")
    if version:
        return Finding("vconv", "ok", f"{version} {where}")
    return Finding("vconv", "wrong", f"{where}, but not installed", "pip install vconv")


def _package(name: str, distribution: str, found: dict[str, Any]) -> Finding:
    installed = [
        each for each in ([distribution] if distribution else RUNTIMES) if version_of(each)
    ]
    told = ", ".join(f"{each} {version_of(each)}" for each in installed).removeprefix(f"{name} ")
    wanted = installed[0] if installed else distribution or runtime()
    if len(installed) > 1:
        others = " ".join(installed)
        fix = f"pip uninstall -y {others} && pip install {runtime()}"
        text = f"{told}: each overwrites the other's files, and CUDA may be gone"
        if "error" in found:
            text += f"; its import fails ({found['error']})"
        return Finding(name, "wrong", text, fix)
    if "error" in found:
        if not installed:
            return Finding(name, "missing", "not installed", f"pip install {wanted}")
        fix = f"pip install --force-reinstall {wanted}"
        if name == "soundfile":
            fix += ", or install your system's libsndfile"
        return Finding(name, "wrong", f"{told}, but its import fails ({found['error']})", fix)
    if not installed:
        return Finding(name, "ok", f"{found['version']}, from {found['file']}, which pip knows not")
    unmet = [each for each in unmet_of("vconv") if each.split()[0] == wanted]
    if unmet:
        return Finding(name, "wrong", unmet[0], f"pip install --upgrade {wanted}")
    if "libsndfile" in found:
        told += f" with libsndfile {found['libsndfile']}"
    return Finding(name, "ok", told)


def _processor() -> Finding:
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8", "replace").splitlines()
    except OSError:
        lines = []
    fields = {key.strip(): value.split() for key, _, value in (x.partition(":") for x in lines)}
    has = {*fields.get("flags", []), *fields.get("Features", [])}
    features = " ".join(each for each in _FEATURES.split() if each in has)
    name = " ".join(fields.get("model name", [])) or platform.processor() or platform.machine()
    text = ", ".join(filter(None, (name, f"{os.cpu_count()} processors", features)))
    return Finding("processor", "ok", text)


def _sampler(found: dict[str, Any]) -> Finding:
    if "error" not in found:
        return Finding("sampler", "ok", f"compiled, takes its {found['path']} path here")
    compilers = [os.environ.get("CXX", ""), "c++", "g++", "clang++"]
    compiler = next((each for each in compilers if each and shutil.which(each)), None)
    reinstall = "pip install --force-reinstall vconv"
    if compiler is None:
        fix = f"install a C++ compiler (g++ or clang++), then {reinstall}"
    else:
        fix = f"{reinstall} ({compiler} is there to compile it with)"
    text = str(found["error"])
    return Finding("sampler", "missing" if "is missing" in text else "wrong", _short(text), fix)


def _gpu() -> str | None:
    """The first NVIDIA GPU and its driver; None where there is none."""
    program = shutil.which("nvidia-smi")
    if program is not None:
        query = [program, "--query-gpu=name,driver_version", "--format=csv,noheader"]
        try:
            done = subprocess.run(query, capture_output=True, text=True, timeout=20)
        except (OSError, subprocess.SubprocessError):
            done = None
        if done is not None and done.returncode == 0 and done.stdout.strip():
            name, _, driver = done.stdout.strip().splitlines()[0].partition(", ")
            return f"{name}, driver {driver}"
    try:
        names = sorted(Path("/proc/driver/nvidia/gpus").iterdir())
    except OSError:
        return None
    return f"{len(names)} of NVIDIA's, without a working nvidia-smi" if names else None


def _graphics(gpu: str | None, runtime: dict[str, Any], bound: dict[str, Any]) -> Finding:
    """Where the networks can run. onnxruntime lists what it was built with, and falls back to the
    CPU without a word where that cannot be loaded."""
    listed = [each.removesuffix("ExecutionProvider") for each in runtime.get("providers", [])]
    shown = f"onnxruntime lists {', '.join(listed) or 'nothing'}"
    cuda = bound.get("cuda")
    works = isinstance(cuda, list)
    ran = [
        f"asked for {device} it runs on {_providers(names)}"
        for device, names in bound.items()
        if isinstance(names, list)
    ]
    text = "; ".join([gpu or "no NVIDIA GPU", shown, *ran])
    if works or gpu is None:
        status: Status = "ok" if works or "CPU" in listed else "missing"
        return Finding("devices", status, text)
    if "error" in bound:  # neither works; the line on converting says why
        return Finding("devices", "wrong", text)
    if "CUDA" in listed:
        return Finding("devices", "wrong", f"{text}; {cuda}", "pip install 'vconv[cuda]'")
    others = " ".join(each for each in RUNTIMES if version_of(each))
    fix = f"pip uninstall -y {others} && pip install 'vconv[cuda]'"
    return Finding("devices", "wrong", f"{text}; it was built without CUDA", fix)


def _providers(names: Iterable[str]) -> str:
    return ", ".join(name.removesuffix("ExecutionProvider") for name in names)


def _models(found: dict[str, Any]) -> Iterator[Finding]:
    if "error" in found:
        yield Finding("models", "wrong", f"cannot be looked for: {found['error']}")
        return
    home = os.environ.get("VCONV_HOME")
    if found["home_exists"]:
        yield Finding("models", "ok", f"bundled, and those in {found['home']}")
    elif home:
        yield Finding(
            "models",
            "wrong",
            f"bundled only: $VCONV_HOME is {home}, and {found['home']} is no folder",
            f"put bundles into {found['home']}/NAME, or unset VCONV_HOME",
        )
    else:
        yield Finding("models", "ok", f"bundled; there is no {found['home']}")
    for row in found["models"]:
        name = f"model {row['name']}"
        if row["error"]:
            bundled = Path(row["path"]).parent == Path(__file__).parent / "models"
            again = "pip install --force-reinstall --no-deps vconv" if bundled else "copy it again"
            yield Finding(name, "wrong", row["error"], again)
        else:
            yield Finding(name, "ok", row["path"])
    for path in found["strays"]:
        yield Finding("models", "wrong", f"{path}: no model, it has no manifest.json", "remove it")


def _ffmpeg() -> Finding:
    program = shutil.which("ffmpeg")
    if program is not None:
        return Finding("ffmpeg", "ok", program)
    text = "not installed; it reads what libsndfile cannot, such as m4a and webm"
    return Finding("ffmpeg", "missing", text, "install ffmpeg with your system's packages")


def _torch(audio: dict[str, Any] | None) -> Iterator[Finding]:
    for name in ("torch", "torchaudio"):
        version = version_of(name)
        unmet = [each for each in unmet_of("vconv", "train") if each.split()[0] == name]
        if not version:
            text = "not installed; converting needs none, training and export do"
            yield Finding(name, "missing", text, "pip install 'vconv[train,export]'")
        elif unmet:
            yield Finding(name, "wrong", unmet[0], "pip install 'vconv[train,export]'")
        elif name == "torchaudio" and audio is not None and "error" in audio:
            fix = "install the torchaudio that belongs to your torch, from the same index"
            yield Finding(name, "wrong", f"{version}, but its import fails ({audio['error']})", fix)
        else:
            yield Finding(name, "ok", version)


def _extras() -> Iterator[Finding]:
    for name in extras("vconv"):
        if name in _UNLISTED:
            continue
        unmet = unmet_of("vconv", name)
        if unmet:
            fix = f"pip install 'vconv[{name}]'"
            yield Finding(f"extra {name}", "missing", f"without {', '.join(unmet)}", fix)
        else:
            yield Finding(f"extra {name}", "ok", "installed")


def _conversion(model: str, found: dict[str, Any]) -> Finding:
    if "error" not in found:
        text = (
            f"works, with the model {found['model']!r}, the {found['engine']} engine in "
            f"{found['precision']}"
        )
        return Finding("converting", "ok", text)
    fix = ""
    if found["exit_code"] == ModelError.exit_code:
        fix = f"vconv info -m {model} says the same; see the models above"
    else:
        fix = "mend what is wrong above, from the top"
    return Finding("converting", "wrong", f"fails: {_short(str(found['error']))}", fix)


def _short(text: str) -> str:
    return text.strip().rstrip(".").splitlines()[0][:300] if text.strip() else "for no reason told"
