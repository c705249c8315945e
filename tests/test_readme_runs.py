"""What the documents show is run as it stands: the shell's lines and the Python of converting.

Commands that other tests run whole, or that take long, are left out by name.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from test_readme import FENCE, ROOT, text

SHELL = shutil.which("sh")
ELSEWHERE = ("pip ", "vconv bench", "vconv demo", "vconv doctor", "vconv verify")


def blocks(document: str, language: str, beginning: str) -> list[str]:
    """The document's fenced blocks of this language in which a line begins so."""
    return [
        block
        for found, block in FENCE.findall(text(document))
        if found == language and any(line.startswith(beginning) for line in block.splitlines())
    ]


def lay_out(folder: Path) -> None:
    """The recordings that the examples speak of."""
    wav, rate = soundfile.read(ROOT / "examples" / "hello.wav", dtype="float32")
    for name in ("in.wav", "hello.wav", "talks/a.wav", "talks/deep/b.wav", "recordings/c.wav"):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(path, wav[: rate // 2], rate)
    shutil.copytree(folder / "talks", folder / "corpus")


@pytest.mark.skipif(SHELL is None, reason="no sh")
@pytest.mark.parametrize(
    ("document", "language", "beginning", "made"),
    [
        (
            "README.md",
            "sh",
            "vconv convert",
            ["out.wav", "converted/deep/b.flac", "out/deep/b.wav", "in.units", "in.slt.wav"],
        ),
        (
            "docs/usage.md",
            "",
            "vconv convert hello.wav",
            ["hello.slt.wav", "out/hello-12.wav", "out/c.wav", "out.wav", "hello.units"],
        ),
        ("docs/usage.md", "", "vconv encode talks/", ["out/deep/b.wav", "in.units", "out.wav"]),
        ("docs/usage.md", "", "vconv convert corpus/", ["out/deep/b.wav", "out.jsonl"]),
    ],
)
def test_the_commands_do_what_they_say(
    document: str, language: str, beginning: str, made: list[str], tmp_path: Path
) -> None:
    lay_out(tmp_path)
    block = blocks(document, language, beginning)[0]
    # `vconv` is what runs in this interpreter, wherever it is installed.
    programs = tmp_path / "bin"
    programs.mkdir()
    (programs / "vconv").write_text(f'#!/bin/sh\nexec "{sys.executable}" -m vconv "$@"\n')
    (programs / "vconv").chmod(0o755)
    environment = os.environ | {"PATH": f"{programs}{os.pathsep}{os.environ['PATH']}"}
    for line in block.splitlines():
        command = line.partition("  #")[0].strip()
        if not command.startswith("vconv ") or command.startswith(ELSEWHERE):
            continue
        if command.endswith("-j 1"):  # instead of the line before
            shutil.rmtree(tmp_path / "out")
        ran = subprocess.run(
            [str(SHELL), "-c", command],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert ran.returncode == 0, (line, ran.stderr)
    for name in made:
        path = tmp_path / name
        assert path.stat().st_size > 0, name
        if path.suffix in (".wav", ".flac"):
            wav, _ = soundfile.read(path)
            assert np.abs(wav).max() > 0.001, name


@pytest.mark.parametrize("document", ["README.md", "docs/usage.md"])
def test_the_python_examples_run(
    document: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lay_out(tmp_path)
    monkeypatch.chdir(tmp_path)
    rate = 48_000
    sound = (0.1 * np.random.default_rng(0).standard_normal(rate)).astype(np.float32)
    played: list[Any] = []
    names: dict[str, Any] = {
        "blocks": np.split(sound, 10),
        "microphone": lambda: np.split(sound, 10),
        "play": played.append,
    }
    found = blocks(document, "python", "import vconv") + blocks(document, "python", "for ")
    for block in dict.fromkeys(found):
        if "vc." in block and "vconv.load" not in block:
            block = "import vconv\nvc = vconv.load('demo')\n" + block
        exec(compile(block, document, "exec"), names)
    assert (tmp_path / "out.flac").is_file()
    assert document == "README.md" or sum(map(len, played)) > 0
