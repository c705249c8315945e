"""How long a batch takes with one file at a time, with two and with four: `vconv convert --jobs`.

Prints seconds and, because the machine may be busy, seconds of processor time; then the ratio to
one file at a time. The runs take turns; of each the fastest counts.

    python benchmarks/jobs.py [--model demo] [--repeats 3]
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

import vconv
from vconv.attempt import Options, Task
from vconv.audio import read, write_atomic
from vconv.converter import Converter
from vconv.pool import Threads

HELLO = Path(__file__).parents[1] / "examples" / "hello.wav"
BATCHES = ((200, 0.2), (60, 2.0), (8, 20.0), (3, 60.0), (1, 120.0))  # files, seconds each
JOBS = (1, 2, 4)


def options(model: str) -> Options:
    return Options(
        model=model, device="auto", engine="auto", precision="auto", speaker="0", seed=0,
        temperature=1.0, pitch=0.0, lanes="auto", level="keep", format_name=None, sample_rate=None,
        channel=None, allow_truncated=False, max_duration=None, recursive=False, overwrite=True,
        skip_existing=False, as_json=False, quiet=True, verbose=False,
    )  # fmt: skip


def convert(converter: Converter, chosen: Options, files: list[Path], jobs: int) -> list[float]:
    """Seconds, and seconds of processor time."""
    begun = time.perf_counter(), time.process_time()
    waiting, done = list(enumerate(files)), 0
    with Threads(converter, chosen, jobs) as pool:
        while done < len(files):
            while waiting and pool.wanted > 0:
                number, path = waiting.pop(0)
                pool.submit(Task(number, str(path), str(path.with_suffix(".flac"))))
            for outcome in pool.wait(1.0):
                assert outcome.made is not None, outcome.error
                outcome.made.path.unlink()
                done += 1
    return [time.perf_counter() - begun[0], time.process_time() - begun[1]]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="demo")
    parser.add_argument("--repeats", type=int, default=3)
    asked = parser.parse_args()
    hello = read(HELLO)
    print("files  seconds each  jobs  seconds  processor  times as fast as one at a time")
    with vconv.load(asked.model) as converter, tempfile.TemporaryDirectory() as folder:
        for count, seconds in BATCHES:
            files = [Path(folder) / f"{count}-{index}.wav" for index in range(count)]
            for path in files:
                with write_atomic(path) as writer:
                    writer.write(np.resize(hello, round(16_000 * seconds)))
            best: dict[int, list[float]] = {}
            for _ in range(asked.repeats):
                for jobs in JOBS:
                    took = convert(converter, options(asked.model), files, jobs)
                    best[jobs] = min(best.get(jobs, took), took)
            for jobs, (wall, processor) in best.items():
                ratio = best[1][0] / wall
                print(f"{count:5}{seconds:14}{jobs:6}{wall:9.2f}{processor:11.2f}{ratio:8.2f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
