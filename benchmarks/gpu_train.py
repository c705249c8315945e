"""Training on one GPU: samples a second by what is switched on, against the floor.

    python benchmarks/gpu_train.py [--deadline 420] [--json PATH] [--profile PATH]
    python benchmarks/gpu_train.py --device cpu --smoke

Steps are those of `vconv train`: its Feed, its Stepper, its state, with the shapes of
configs/base.yaml and configs/paper.yaml and a corpus of noise made for the occasion. Before a
variant is timed its first losses are compared with eager float32's; one that differs by more than
`BOUND` nats is not timed. Rows come in the order of their importance, and what the deadline leaves
out is printed as not measured. The floor is `vconv.train.cost` over nominal rates.
"""

from __future__ import annotations

import argparse
import datetime
import gc
import json
import platform
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import soundfile
import torch

from vconv.config import Config, load_config
from vconv.errors import VconvError
from vconv.train import process
from vconv.train.batches import Excerpts, Noise, TrainingBatches
from vconv.train.corpus import Corpus
from vconv.train.cost import cost
from vconv.train.feed import Feed
from vconv.train.meter import Meter
from vconv.train.prepare import prepare
from vconv.train.state import build_state
from vconv.train.step import start_bottleneck
from vconv.train.stepper import Stepper

CONFIGS = Path(__file__).resolve().parents[1] / "configs"
# Nominal, of an H200: what large bf16 products reach, and the memory's.
TFLOPS, TB_PER_SECOND = 790.0, 4.8
BOUND = 0.05  # nats, of each of the first three losses
VERIFIED = 3
CHUNKS, CHUNK_SECONDS = 5, 2.0
# Eager operators keep so much for the backward pass that they decode a batch in parts.
OFF = {"compile": False, "cuda_graph": False, "decode_batch": None}
VARIANTS: dict[str, dict[str, object]] = {
    "eager fp32": {"precision": "fp32", "decode_batch": 16},
    "eager bf16": {"precision": "bf16", "decode_batch": 32},
    "compiled bf16": {"precision": "bf16", "compile": True},
    "final": {"precision": "bf16", "compile": True, "cuda_graph": True},
}


@dataclass
class Row:
    """A variant of a preset at a batch size, and what was found of it."""

    preset: str
    variant: str
    batch: int
    status: str = "not measured"
    samples_per_second: float = float("nan")
    times_real_time: float = float("nan")
    share_of_floor: float = float("nan")
    peak_memory_gb: float = float("nan")
    data_wait: float = float("nan")
    first_seconds: float = float("nan")  # until the first timed step: compiling, recording
    largest_difference: float = float("nan")  # nats, of the first losses, from eager fp32


def rows() -> list[Row]:
    """In the order of importance; eager fp32 of a preset costs little and is the reference."""
    both = ("base", "paper")
    found = [Row(p, v, 64) for p in both for v in ("final", "eager bf16", "eager fp32")]
    found += [Row("base", "final", 256), Row("paper", "final", 128), Row("base", "final", 128)]
    found += [Row(preset, "compiled bf16", 64) for preset in both]
    return [*found, Row("base", "final", 32), Row("paper", "final", 32)]


def main() -> None:
    options = _parser().parse_args()
    began = time.monotonic()
    try:
        device = process.device(options.device)
    except VconvError as error:
        sys.exit(str(error))
    process.full_precision(device)
    planned = [Row("tiny", variant, 4) for variant in VARIANTS] if options.smoke else rows()
    wanted = None if options.rows is None else {int(number) for number in options.rows.split(",")}
    print(_machine(device), flush=True)
    with tempfile.TemporaryDirectory() as folder:
        corpus = synthetic(Path(folder), speakers=3 if options.smoke else 20)
        print(f"corpus after {time.monotonic() - began:.0f} s", flush=True)
        references: dict[tuple[str, int], list[float]] = {}
        for number, row in enumerate(planned):
            if wanted is not None and number not in wanted:
                continue
            left = options.deadline - (time.monotonic() - began)
            # What is compiled takes its time first, and cannot be interrupted.
            if left < options.reserve * (2 if "compile" in VARIANTS[row.variant] else 1):
                continue
            try:
                measure(row, corpus, device, options, references)
            except Exception as error:
                row.status = f"failed: {(str(error).splitlines() or [repr(error)])[0][:120]}"
            _free(device)
            print(f"{time.monotonic() - began:4.0f} s  {row}", flush=True)
    if options.json:
        document = {"machine": _machine(device), "rows": [asdict(row) for row in planned]}
        options.json.write_text(json.dumps(document, indent=1) + "\n", "utf-8")
    print("\n" + _machine(device) + "\n\n" + table(planned))


def configuration(row: Row, corpus: Path, device: torch.device, workers: int) -> Config:
    """The preset with the row's choices; its codebook starts early, and nothing else is done."""
    config = load_config(CONFIGS / f"{row.preset}.yaml", [f"data.corpus={corpus}"])
    values = config.model_dump()
    values["train"] |= OFF | VARIANTS[row.variant] | {"batch": row.batch, "device": str(device)}
    values["train"] |= {"steps": 10**8, "warmup": 100}
    values["data"] |= {"workers": workers}
    values["model"]["bottleneck"]["warmup_steps"] = 2
    return Config.model_validate(values)


def first_losses(config: Config, corpus: Corpus, device: torch.device) -> list[float]:
    """Of the steps before the codebook quantises and the first after it."""
    run = Run(config, corpus, device)
    with run.feed:
        return [float(run.step()["nll"]) for _ in range(VERIFIED)]


class Run:
    """A training run without its diary: what `vconv.train.loop.fit` does between two log lines."""

    def __init__(self, config: Config, corpus: Corpus, device: torch.device) -> None:
        self.config, self.device = config, device
        self.state = build_state(config, corpus, device)
        if config.train.compile:
            self.state.compile()
        excerpts = Excerpts(
            corpus, config.model.audio, self.state.model.geometry, config.data.window
        )
        self.batches = TrainingBatches(
            excerpts,
            batch=config.train.batch,
            seed=0,
            noise=Noise.of(config),
            buffer_mb=None,
            buffer_fraction=1.0,
        )
        self.feed = Feed(
            self.batches,
            workers=config.data.workers,
            mine=range(1),
            parts=1,
            steps=config.train.steps,
            pin=device.type == "cuda",
        )
        self.stepper = Stepper(self.state, config, device)
        self.meter = Meter()

    def step(self) -> dict[str, torch.Tensor]:
        self.stepper.wait()
        with self.meter.waiting():
            made = self.feed.at(self.state.step)
        start_bottleneck(self.state, self.batches, self.config, self.device)
        figures = self.stepper(made)
        self.meter.add(figures)
        return figures

    def read(self) -> dict[str, float]:
        samples = self.config.train.batch * self.config.data.window
        return self.meter.read(samples, self.config.model.audio.sample_rate)


def measure(
    row: Row,
    folder: Path,
    device: torch.device,
    options: argparse.Namespace,
    references: dict[tuple[str, int], list[float]],
) -> None:
    """Verify, then time; fills the row in."""
    corpus = Corpus.open(folder)
    key = row.preset, row.batch
    if key not in references:
        plain = Row(row.preset, "eager fp32", row.batch)
        references[key] = first_losses(configuration(plain, folder, device, 0), corpus, device)
        _free(device)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    config = configuration(row, folder, device, 0 if options.smoke else options.workers)
    began = time.monotonic()
    run = Run(config, corpus, device)
    with run.feed, warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        losses = [float(run.step()["nll"]) for _ in range(VERIFIED)]
        pairs = zip(losses, references[key], strict=True)
        row.largest_difference = max(abs(found - expected) for found, expected in pairs)
        if not row.largest_difference <= BOUND:
            row.status = f"refused: the first losses differ by {row.largest_difference:.3f} nats"
            return
        for _ in range(5):  # the quantised phase compiled, recorded
            run.step()
        run.read()
        began_chunk = time.monotonic()
        row.first_seconds = began_chunk - began
        for _ in range(3):
            run.step()
        run.read()
        each = (time.monotonic() - began_chunk) / 3
        steps = max(2, int((0.1 if options.smoke else CHUNK_SECONDS) / each))
        chunks = []
        for _ in range(CHUNKS):
            for _ in range(steps):
                run.step()
            chunks.append(run.read())
        run.state.settle()
        if options.profile and row.variant == "final" and row.preset in ("base", "tiny"):
            profile(run, options.profile)
    row.samples_per_second = statistics.median(chunk["samples_per_second"] for chunk in chunks)
    row.times_real_time = row.samples_per_second / config.model.audio.sample_rate
    floor = cost(config).seconds(options.tflops * 1e12, options.tb_per_second * 1e12)
    row.share_of_floor = row.samples_per_second * floor
    row.data_wait = statistics.median(chunk["data_wait"] for chunk in chunks)
    if device.type == "cuda":
        row.peak_memory_gb = torch.cuda.max_memory_allocated(device) / 1e9
    refused = [str(w.message) for w in said if "could not be recorded" in str(w.message)]
    row.status = f"without a graph: {refused[0]}" if refused else "measured"


def profile(run: Run, path: Path) -> None:
    """Device time by kernel over a few steps, the largest first, into a file; once."""
    if path.exists():
        return
    on_gpu = run.device.type == "cuda"
    kinds = [
        torch.profiler.ProfilerActivity.CUDA if on_gpu else torch.profiler.ProfilerActivity.CPU
    ]
    with torch.profiler.profile(activities=kinds) as found:
        for _ in range(5):
            run.step()
        run.read()
    averages = found.key_averages()
    key = "self_device_time_total" if on_gpu else "self_cpu_time_total"
    total = sum(getattr(event, key) for event in averages)
    largest = sorted(averages, key=lambda event: -getattr(event, key))[:15]
    lines = [f"{total / 5e3:.2f} ms a step", "", "| ms a step | share | calls a step | kernel |"]
    lines.append("|---|---|---|---|")
    for event in largest:
        time_us = getattr(event, key)
        lines.append(
            f"| {time_us / 5e3:.3f} | {time_us / max(total, 1e-9):.1%} | {event.count / 5:.0f} "
            f"| {event.key[:100]} |"
        )
    path.write_text("\n".join(lines) + "\n", "utf-8")


def synthetic(folder: Path, speakers: int) -> Path:
    """A corpus of noise with a slow envelope, through `vconv prepare`'s own code."""
    random = np.random.default_rng(0)
    for speaker in range(speakers):
        (folder / "raw" / f"s{speaker}").mkdir(parents=True)
        for utterance in range(4):
            length = int(random.integers(5 * 16_000, 9 * 16_000))
            envelope = 0.2 * (1 + np.sin(np.arange(length) / 16_000 * 2 * np.pi * 3))
            wav = 0.3 * envelope * random.standard_normal(length)
            soundfile.write(folder / "raw" / f"s{speaker}" / f"{utterance}.wav", wav, 16_000)
    out = folder / "corpus"
    prepare(folder / "raw", out, heldout=0.1, jobs=1, pad_samples=8_000, progress=False)
    return out


def table(found: list[Row]) -> str:
    lines = [
        "| preset | variant | batch | samples/s | x real time | of the floor | peak GB | data wait "
        "| s to the first | status |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in found:
        figures = (
            f"{row.samples_per_second:,.0f} | {row.times_real_time:,.1f} | {row.share_of_floor:.1%}"
            f" | {row.peak_memory_gb:.1f} | {row.data_wait:.1%} | {row.first_seconds:.0f}"
        )
        figures = figures if row.samples_per_second > 0 else " | ".join(["-"] * 6)
        lines.append(f"| {row.preset} | {row.variant} | {row.batch} | {figures} | {row.status} |")
    return "\n".join(lines)


def _free(device: torch.device) -> None:
    torch._dynamo.reset()
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def _machine(device: torch.device) -> str:
    parts = [platform.processor() or platform.machine()]
    if device.type == "cuda":
        asked = ["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"]
        try:
            answer = subprocess.run(asked, capture_output=True, text=True, timeout=30).stdout
        except (OSError, subprocess.TimeoutExpired):
            answer = ""
        parts = [answer.strip() or torch.cuda.get_device_name(device)]
    parts += [f"torch {torch.__version__}", f"CUDA {torch.version.cuda}"]
    parts += [f"Python {platform.python_version()}", f"{datetime.date.today():%d %B %Y}"]
    return ", ".join(parts)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--smoke", action="store_true", help="the tiny preset, to see that it runs")
    parser.add_argument("--deadline", type=float, default=420.0, help="seconds for everything")
    parser.add_argument("--reserve", type=float, default=45.0, help="seconds a row is begun with")
    parser.add_argument("--rows", help="their numbers, from 0, by commas; all unless given")
    parser.add_argument("--workers", type=int, default=8)
    parser.add_argument("--tflops", type=float, default=TFLOPS)
    parser.add_argument("--tb-per-second", type=float, default=TB_PER_SECOND)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--profile", type=Path, help="a table of base/final by kernel goes there")
    return parser


if __name__ == "__main__":
    main()
