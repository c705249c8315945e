"""How much later than it was spoken each sample comes out of `vconv convert - -o - --raw`.

A process is given a recording in blocks of 20 ms, at the pace of a microphone, and what it gives
back is timed as it arrives. Printed: the delay of the samples (each counted from the moment when
its own 1/16,000 s had passed), and beside it what geometry asks for.

    python benchmarks/live.py [--seconds 30] [--model demo] [-- COMMAND...]
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np

import vconv
from vconv.audio import read

RATE = 16_000
BLOCK = 320
HELLO = Path(__file__).parents[1] / "examples" / "hello.wav"


def measure(command: list[str], seconds: float) -> np.ndarray:
    """The delay in seconds of every sample that came out while more went in, but for the first
    second (which the model takes to load)."""
    sound = np.resize(read(HELLO), int(seconds * RATE) // BLOCK * BLOCK)
    data = (sound * 32_767).astype("<i2").tobytes()
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0)
    assert process.stdin is not None
    assert process.stdout is not None
    arrivals: list[tuple[float, int]] = []

    def listen() -> None:
        while piece := process.stdout.read(1 << 16):  # type: ignore[union-attr]
            arrivals.append((time.perf_counter(), len(piece) // 2))

    listener = threading.Thread(target=listen)
    listener.start()
    # Loading is no delay of the stream's: the first second is pushed in and its answer awaited.
    head = 2 * RATE
    process.stdin.write(data[:head])
    while not arrivals:
        time.sleep(0.01)
    time.sleep(2.0)
    begun = time.perf_counter() - head / 2 / RATE  # when sample 0 would have been spoken
    for at in range(head, len(data), 2 * BLOCK):
        wanted = begun + (at // 2 + BLOCK) / RATE
        time.sleep(max(0.0, wanted - time.perf_counter()))
        process.stdin.write(data[at : at + 2 * BLOCK])
    ended = time.perf_counter()
    process.stdin.close()
    listener.join()
    process.wait()
    delays, number = [], 0
    for when, count in arrivals:
        spoken = begun + (np.arange(number, number + count) + 1) / RATE
        if when <= ended and number >= RATE:
            delays.append(when - spoken)
        number += count
    return np.concatenate(delays)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=30.0)
    parser.add_argument("--model", default="demo")
    parser.add_argument("--speaker", default="slt")
    parser.add_argument("command", nargs="*", help="instead of `vconv convert - -o -`")
    options = parser.parse_args()
    command = options.command or [sys.executable, "-m", "vconv", "convert", "-", "-o", "-"]
    command += ["-s", options.speaker, "-m", options.model, "--raw", "--sample-rate", str(RATE)]
    delays = 1000 * measure(command, options.seconds)
    with vconv.load(options.model) as converter:
        latency = 1000 * converter.latency_seconds
    figures = [f"{np.percentile(delays, q):.0f}" for q in (0, 50, 99, 100)]
    print("delay in ms: least {}, median {}, 99 % {}, most {}".format(*figures))
    print(f"of {len(delays):,} samples; latency_seconds {latency:.0f} ms, a block {BLOCK / 16:.0f}")


if __name__ == "__main__":
    main()
