"""How long a user waits: whole commands by the clock, from Enter to the end, in one table.

    python benchmarks/conversion.py [--speaker NAME] [--turns N]

Each row is a command in a new process: the interpreter, imports, the model, reading, converting,
writing. `one core` is held to one (where the system can); lanes of long files use the others
elsewhere. The rows take turns; a figure is the median, with the quartiles. By the clock, other
programs count: the load of the machine before and after is printed.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import soundfile

from vconv.bundle import Bundle

EXAMPLE = Path(__file__).parents[1] / "examples" / "hello.wav"


@dataclass
class Row:
    """A command, and how many seconds of sound it converts."""

    name: str
    words: list[str]
    seconds: float = 0.0
    one_core: bool = False
    times: list[float] = field(default_factory=list)

    def turn(self) -> None:
        begun = time.perf_counter()
        subprocess.run(
            [sys.executable, "-m", "vconv", *self.words],
            check=True,
            capture_output=True,
            preexec_fn=to_one_core if self.one_core else None,
        )
        self.times.append(time.perf_counter() - begun)


def to_one_core() -> None:
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})


def clip(folder: Path, seconds: float) -> Path:
    """The example, repeated and cut to so many seconds."""
    wav, rate = soundfile.read(EXAMPLE, dtype="float32")
    count = int(seconds * rate)
    path = folder / f"{seconds:g}.wav"
    soundfile.write(path, np.tile(wav, count // len(wav) + 1)[:count], rate)
    return path


def rows_of(folder: Path, speaker: str) -> list[Row]:
    can_hold = hasattr(os, "sched_setaffinity")

    def convert(name: str, seconds: float, *options: str, one_core: bool = False) -> Row:
        source, made = clip(folder, seconds), folder / f"{name.replace(' ', '-')}.wav"
        words = ["convert", str(source), "-s", speaker, "-o", str(made), "--overwrite", *options]
        return Row(name, words, seconds, one_core)

    rows = [Row("vconv --help", ["--help"]), convert("3 s", 3)]
    if can_hold:
        rows += [
            convert("10 s, one core", 10, one_core=True),
            convert("10 s, one core, fp32", 10, "--precision", "fp32", one_core=True),
        ]
    return [
        *rows,
        convert("10 s", 10),
        convert("60 s", 60),
        convert("60 s, one lane", 60, "--lanes", "1"),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--speaker", help="by default the bundled model's first")
    parser.add_argument("--turns", type=int, default=5)
    options = parser.parse_args()
    speaker = options.speaker or Bundle.find("demo").speakers.names[0]
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else float("nan")
    with tempfile.TemporaryDirectory() as folder:
        rows = rows_of(Path(folder), speaker)
        for row in rows:  # compiled modules, files in the system's memory
            row.turn()
            row.times.clear()
        for _ in range(options.turns):
            for row in rows:
                row.turn()
    print("| command | seconds | quartiles | x real time |")
    print("|---|---|---|---|")
    for row in rows:
        low, median, high = statistics.quantiles(row.times, method="inclusive")
        speed = f"{row.seconds / median:.1f}" if row.seconds else ""
        print(f"| {row.name} | {median:.2f} | {low:.2f} to {high:.2f} | {speed} |")
    after = os.getloadavg()[0] if hasattr(os, "getloadavg") else float("nan")
    print(f"{os.cpu_count()} processors, load {load:.1f} before and {after:.1f} after.")


if __name__ == "__main__":
    main()
