"""The page as people start it: ``vconv demo`` in a process of its own."""

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile

from speech import speechlike

ROOT = Path(__file__).parents[1]
HELLO = ROOT / "examples" / "hello.wav"


@dataclass
class Page:
    """A server that answers: its address, its process, what it printed, its temporary files."""

    url: str
    process: subprocess.Popen[bytes]
    log: Path
    temporary: Path
    started_seconds: float
    started_cpu_seconds: float

    def folder(self) -> Path:
        """Where the files of the people on it lie."""
        (found,) = self.temporary.glob("vconv-page-*")
        return found

    def memory_mb(self) -> float:
        """The most that the process has had resident."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(re.search(r"VmHWM:\s+(\d+)", status)[1]) / 1024


def free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return taken.getsockname()[1]


@contextmanager
def page(folder: Path, *options: object, port: int | None = None) -> Iterator[Page]:
    """Start it, wait until it answers, end it as Ctrl-C does."""
    port = port or free_port()
    temporary = folder / "tmp"
    temporary.mkdir(parents=True, exist_ok=True)
    log = folder / "log.txt"
    command = [sys.executable, "-m", "vconv", "demo", "--no-open", "--port", str(port)]
    begun = time.monotonic()
    with log.open("wb") as output:
        process = subprocess.Popen(
            [*command, *map(str, options)],
            stdout=output,
            stderr=subprocess.STDOUT,
            cwd=folder,
            env={**os.environ, "TMPDIR": str(temporary), "OMP_NUM_THREADS": "1"},
        )
    try:
        url = f"http://127.0.0.1:{port}"
        while True:
            try:
                urllib.request.urlopen(url, timeout=5).read()
                break
            except OSError:
                assert process.poll() is None, log.read_text()
                assert time.monotonic() - begun < 60, log.read_text()
                time.sleep(0.05)
        took = time.monotonic() - begun
        fields = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
        worked = (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
        yield Page(url, process, log, temporary, took, worked)
    finally:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def training_run(runs: Path, name: str = "first") -> Path:
    """A run as training leaves it: figures, a configuration, samples of two steps."""
    run = runs / name
    run.mkdir(parents=True)
    lines = []
    for step in range(50, 3001, 50):
        row = {"step": step, "nll": 3 + 2 * 0.998**step, "gradient_norm": 0.6, "perplexity": 60.0}
        row |= {"learning_rate": 1e-3, "times_real_time": 3.4, "restarts": 0.0}
        if step % 500 == 0:
            probe = step / 4000
            row |= {"heldout_nll": 3.1 + 2 * 0.998**step, "heldout_perplexity": 100 + step / 50}
            row |= {"heldout_codes_used": 0.9, "probe_latents": probe, "probe_speaker": probe / 2}
            for what, middle in (("latents", probe), ("speaker", probe / 2)):
                row |= {f"probe_{what}_low": middle - 0.05, f"probe_{what}_high": middle + 0.05}
        lines.append(json.dumps(row) + "\n")
    (run / "metrics.jsonl").write_text("".join(lines) + '{"step": 3050, "nl')
    (run / "config.yaml").write_text("name: first\ntrain: {steps: 4000}\n")
    (run / "checkpoints" / "step-000003000").mkdir(parents=True)
    for step in (1000, 2000):
        folder = run / "samples" / f"step-{step:09d}"
        folder.mkdir(parents=True)
        rows = []
        for number, (source, target) in enumerate([("ada", "ada"), ("ada", "bea")], 1):
            stem = f"{number}-{source}-to-{target}"
            files = {"source": f"{stem}.source.wav", "result": f"{stem}.wav"}
            for file in files.values():
                soundfile.write(folder / file, speechlike(24_000), 16_000)
            said = {"seconds": 1.5, "level_db": -20.0, "median_f0_hz": 120.0}
            row = {"utterance": "u1", "files": files}
            row |= {"source": {"speaker": source, **said}, "result": {"speaker": target, **said}}
            rows.append(row)
        facts = {"step": step, "seed": 0, "temperature": 1.0, "conversions": rows}
        (folder / "samples.json").write_text(json.dumps(facts))
    return run


def long_recording(path: Path, seconds: float) -> Path:
    """Something to interrupt."""
    soundfile.write(path, np.tile(speechlike(160_000), int(seconds / 10 + 1)), 16_000)
    return path


def chromium() -> str | None:
    """The browser that the tests drive."""
    for name in ("chromium", "chromium-browser", "google-chrome"):
        found = shutil.which(name)
        if found:
            return found
    return None
