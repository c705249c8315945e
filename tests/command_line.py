"""Running the command line, and looking at what it says and leaves behind.

The fixture ``run`` of conftest.py runs it in the tests' own process.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import soundfile

from speech import speechlike
from vconv.attempt import Options


@dataclass
class Done:
    code: int
    out: str
    err: str


Run = Callable[..., Done]


def wav(path: Path, samples: int = 8000, rate: int = 16_000) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:  # soundfile cannot encode every name
        soundfile.write(file, speechlike(samples), rate, format=path.suffix[1:].upper())
    return path


def tree(folder: Path) -> list[str]:
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if not p.is_dir())


def one_error(done: Done) -> str:
    lines = done.err.splitlines()
    assert len(lines) == 1, done.err
    assert lines[0].startswith("vconv: error: ")
    assert done.out == ""
    return lines[0].removeprefix("vconv: error: ")


def vconv_process(*arguments: object, **options: object) -> subprocess.Popen[bytes]:
    return subprocess.Popen(  # type: ignore[call-overload,no-any-return]
        [sys.executable, "-m", "vconv", *map(str, arguments)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        **options,
    )


def plain_options(**changes: Any) -> Options:
    """What ``vconv convert`` is told where nothing is asked for."""
    plain: dict[str, Any] = {
        "model": "demo", "device": "auto", "engine": "auto", "precision": "auto", "speaker": "0",
        "seed": 0, "temperature": 1.0, "pitch": 0.0, "lanes": "auto", "level": "keep",
        "format_name": None, "sample_rate": None, "channel": None, "allow_truncated": False,
        "max_duration": None, "recursive": False, "overwrite": False, "skip_existing": False,
        "as_json": False, "quiet": True, "verbose": False,
    }  # fmt: skip
    return Options(**{**plain, **changes})
