"""What ``vconv doctor`` tries, each in a process of its own.

A package may be missing, raise at its import, never return from it, or end the process (compiled
for another processor); so may a conversion. None of that reaches the doctor. A probe prints one
line of JSON: what it found, or the ``error`` and its ``exit_code``.
"""

from __future__ import annotations

import importlib
import json
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from .errors import VconvError

_CLIP_SECONDS = 0.4


def package(name: str) -> dict[str, Any]:
    """Import a package and ask for what its metadata does not tell."""
    module = importlib.import_module(name)
    found: dict[str, Any] = {
        "version": str(getattr(module, "__version__", "of no version")),
        "file": str(module.__file__),
    }
    if name == "onnxruntime":
        found["providers"] = list(module.get_available_providers())
    if name == "soundfile":
        found["libsndfile"] = str(module.__libsndfile_version__)
    return found


def sampler() -> dict[str, Any]:
    """Load the compiled sampler."""
    from .native import load

    return {"path": load().vconv_sampler_best_cpu().decode()}


def models() -> dict[str, Any]:
    """Open every model that has a name, and say where they are looked for."""
    from .bundle import Bundle, known_models, models_home
    from .manifest import MANIFEST

    home = models_home()
    found = []
    for name, path in known_models().items():
        row = {"name": name, "path": str(path), "error": ""}
        try:
            Bundle.open(path)
        except VconvError as error:
            row["error"] = str(error)
        found.append(row)
    folders = sorted(each for each in home.iterdir() if each.is_dir()) if home.is_dir() else []
    strays = [str(each) for each in folders if not (each / MANIFEST).is_file()]
    return {"home": str(home), "home_exists": home.is_dir(), "models": found, "strays": strays}


def conversion(model: str) -> dict[str, Any]:
    """Convert a short file, as ``vconv convert`` would; say what it ran on."""
    import numpy as np

    from .audio import SAMPLE_RATE, write_atomic
    from .bundle import Bundle
    from .converter import load

    noise = 0.1 * np.random.default_rng(0).standard_normal(int(_CLIP_SECONDS * SAMPLE_RATE))
    with load(model) as converter, tempfile.TemporaryDirectory(prefix="vconv-") as folder:
        source = Path(folder) / "in.wav"
        with write_atomic(source) as writer:
            writer.write(noise.astype(np.float32))
        made = converter.convert_to_file(source, Path(folder) / "out.wav", speaker=0)
        found = {
            "engine": converter.engine,
            "precision": converter.precision,
            "real_time_factor": made.real_time_factor,
        }
    bundle = Bundle.find(model)
    return {**found, "model": bundle.manifest.name, "path": str(bundle.path)}


def providers(model: str) -> dict[str, Any]:
    """What onnxruntime really runs a model's encoder on, when it is asked for each device."""
    from .bundle import Bundle

    bundle = Bundle.find(model)
    bound: dict[str, Any] = {}
    for device in ("cpu", "cuda"):
        try:
            bound[device] = bundle.encoder(device).graph.providers
        except VconvError as error:
            bound[device] = str(error)
    return bound


def main(arguments: list[str]) -> None:
    """Run the probe of that name with the other arguments, and print what it found."""
    probes: dict[str, Callable[..., dict[str, Any]]] = {
        probe.__name__: probe for probe in (package, sampler, models, conversion, providers)
    }
    try:
        found = probes[arguments[0]](*arguments[1:])
    except VconvError as error:
        found = {"error": str(error), "exit_code": error.exit_code}
    except Exception as error:
        lines = str(error).strip().splitlines()
        found = {"error": ": ".join([type(error).__name__, *lines[:1]])[:300], "exit_code": 5}
    # What a package printed on stdout stands on lines before.
    sys.stdout.write("\n" + json.dumps(found) + "\n")
