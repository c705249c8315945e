"""The C++ sources themselves: memory and undefined behaviour under sanitizers, the header as C."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from vconv import native

SOURCES = Path(native.__file__).parent
DRIVER = Path(__file__).parent / "driver.cpp"
COMPILER = shutil.which(os.environ.get("CXX", "c++"))

pytestmark = pytest.mark.skipif(COMPILER is None, reason="no C++ compiler")


def compiled(*words: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(COMPILER), *map(str, words)], capture_output=True, text=True, check=False
    )


def test_the_header_is_plain_c(tmp_path: Path) -> None:
    program = tmp_path / "program.c"
    program.write_text(f'#include "{SOURCES / "sampler.h"}"\nvconv_status status = VCONV_OK;\n')
    done = compiled(
        "-x", "c", "-std=c99", "-Wall", "-Wpedantic", "-Werror", "-fsyntax-only", program
    )
    assert done.returncode == 0, done.stderr


def built(program: Path, *options: str) -> None:
    """The driver with all sources; skips where the compiler cannot do what the options ask."""
    words = ["-std=c++17", "-g", "-Wall", "-Wextra", "-Werror", "-Wno-psabi", "-ffp-contract=fast"]
    done = compiled(*words, *options, "-o", program, DRIVER, *sorted(SOURCES.glob("*.cpp")))
    if "-fsanitize" in done.stderr or "lasan" in done.stderr:
        pytest.skip("this compiler has no sanitizers")
    assert done.returncode == 0, done.stderr


def sound(*words: str | Path) -> None:
    ran = subprocess.run([str(w) for w in words], capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert ran.stdout == "0 failures\n"


SANITIZED = ["-fsanitize=address,undefined,float-cast-overflow", "-fno-sanitize-recover=all"]


@pytest.mark.slow
@pytest.mark.parametrize("options", [["-O1"], ["-O3"], ["-O1", "-DVCONV_PORTABLE"]])
def test_no_stray_access_and_no_undefined_behaviour(options: list[str], tmp_path: Path) -> None:
    """Every precision on every code path, then shapes and weights at random."""
    program = tmp_path / "driver"
    built(program, *options, *SANITIZED)
    sound(program)
    for seed in range(4):
        sound(program, "fuzz", str(seed), "400")
