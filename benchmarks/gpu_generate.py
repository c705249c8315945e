"""How fast the engines generate on a GPU, and how fast it converts a folder: one run, two tables.

    python benchmarks/gpu_generate.py [--json PATH] [--seconds N] [--device cuda:N]

Networks: the shapes of configs/base.yaml and configs/paper.yaml with random weights of a fixed
seed, scaled so that each layer passes on about the variance that it gets. Engines: `triton` in bf16
and fp32, `cudagraphs`, `torchscript`, and `torchscript-eager`, its step without TorchScript. One
that cannot be had is a row that says why.

Before anything of an engine is timed it is given codes to follow, and its logits are compared with
those of `torchscript` in fp32 on the same device, in 3 lanes over many samples and in 200 lanes
over a few: fp32 must lie within 1e-4 everywhere (or of the logits' standard deviation, if that is
more than 1), bf16 within 5 % of the standard deviation in the mean (RMS). An engine that does not
is not timed. `torchscript` itself is compared with the native engine on the CPU.

A cell is one engine drawing so many lanes: warmed up, then calls of `generate` until about a second
has passed, the median of their times by the clock. A call takes and returns arrays of the host and
waits for the device, so carrying them to and fro is in the figure, as it is in a conversion. One
call has as many samples (whole hops of 160, at most a chunk of 3,200; with conditioning at the
sample rate blocks of 64) as take a fifth of that second. `-`: one hop takes longer than 3 s, or
there is not memory enough.

The floor is the time to read the weights from the L2 cache once for every sample. With W the bytes
of the weights that are multiplied in the engine's precision, and R the L2's rate, probed in the
same run (benchmarks/l2_probe.py; without Triton the share is left out):

    products spread over all multiprocessors, each weight read once for all lanes:  W / R
    p programs that stay on a multiprocessor each, of M:                   W * max(p, M) / R

since a multiprocessor has an M-th of R, and more programs than M share it. The share is the floor
over the time that a sample takes. An engine of the second kind has a method `programs`: how
many it uses for so many lanes.

The run ends after --seconds (450) at the latest: rows come in the order of their importance, and
what does not fit is said to be not measured. --smoke is a run of the script itself, with tiny
networks, on any device: its figures mean nothing.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import importlib.util
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import cached_property
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

ROOT = Path(__file__).parents[1]
# torch sees the GPU; only products on the CPU are held to a thread, by sampler.py.
from sampler import decoder_of, random_weights  # noqa: E402

from vconv.audio import SAMPLE_RATE, read  # noqa: E402
from vconv.bench import Decoder  # noqa: E402
from vconv.bundle import Bundle  # noqa: E402
from vconv.config import DecoderConfig, load_config  # noqa: E402
from vconv.converter import load  # noqa: E402
from vconv.engines import Engine, create_engine  # noqa: E402
from vconv.engines.base import conditioning_steps  # noqa: E402
from vconv.engines.shared import SharedEngine  # noqa: E402
from vconv.errors import VconvError  # noqa: E402

Floats = npt.NDArray[np.float32]

LANES = (64, 1024, 1, 16, 256, 4096)  # in the order of importance
ENGINES = (  # name, precision
    ("triton", "bf16"),
    ("cudagraphs", "fp32"),
    ("torchscript", "fp32"),
    ("triton", "fp32"),
    ("torchscript-eager", "fp32"),
)
FIRST = 3  # engines of both networks before the others of any
BYTES = {"fp32": 4, "bf16": 2}
MOST_CALL_SECONDS = 3.0
MOST_CONDITIONING = 1 << 30  # bytes
SMOKE = DecoderConfig(residual_channels=8, gate_channels=6, skip_channels=10, blocks=2, layers=4)


@dataclass(frozen=True)
class Scale:
    """How much of everything."""

    lanes: tuple[int, ...]
    cell_seconds: float
    verified: tuple[tuple[int, int], ...]  # lanes, and blocks of samples
    files: int
    file_seconds: float


FULL = Scale(LANES, 1.0, ((3, 10), (200, 1)), 32, 10.0)
TINY = Scale((1, 3), 0.02, ((3, 1),), 2, 0.3)


@dataclass(frozen=True)
class Cell:
    """A row of the first table; figures are None where ``remark`` says why."""

    network: str
    engine: str
    precision: str
    lanes: int | None  # None for all
    remark: str = ""
    difference: float | None = None  # the logits' largest
    samples_a_call: int | None = None
    calls: int | None = None
    samples_per_second_a_lane: float | None = None
    samples_per_second: float | None = None
    real_time: float | None = None
    of_floor: float | None = None


@dataclass(frozen=True)
class Conversion:
    """A row of the second table."""

    engine: str
    networks: str  # where encoder and conditioner ran
    files: int
    seconds: float  # of audio
    took: float | None = None
    real_time: float | None = None
    remark: str = ""


@dataclass(frozen=True)
class Network:
    name: str
    decoder: Decoder

    @property
    def block(self) -> int:
        """The samples of the shortest call that is timed."""
        return self.decoder.hop if self.decoder.hop > 1 else 64

    def work(self, lanes: int, samples: int) -> tuple[Floats, Floats]:
        """Conditioning and uniforms."""
        random = np.random.default_rng(lanes)
        steps = conditioning_steps(samples, self.decoder.hop)
        conditioning = random.standard_normal((lanes, steps, self.decoder.width), np.float32)
        return conditioning, random.random((lanes, samples), np.float32)

    def engine(self, name: str, precision: str, device: str) -> Engine:
        """Raises VconvError for an engine that cannot be had."""
        made = self.decoder
        shape: dict[str, Any] = {
            "blocks": made.blocks,
            "layers": made.layers,
            "kernel_size": made.kernel_size,
            "hop": made.hop,
        }
        if name == "torchscript-eager":
            from vconv.engines.torchscript import IncrementalEngine

            return IncrementalEngine(made.weights, **shape, device=device)
        if name == "cudagraphs":  # create_engine has it on CUDA only
            from vconv.engines.cudagraphs import CudaGraphsEngine

            return CudaGraphsEngine(made.weights, **shape, device=device)
        return create_engine(name, made.weights, **shape, device=device, precision=precision)


class Deadline:
    def __init__(self, seconds: float) -> None:
        self._end = time.monotonic() + seconds

    @property
    def left(self) -> float:
        return self._end - time.monotonic()


class Run:
    """All cells of a run, and what they share."""

    def __init__(self, device: str, scale: Scale, deadline: Deadline) -> None:
        self.device = device
        self.scale = scale
        self.deadline = deadline
        self._references: dict[str, list[tuple[Floats, npt.NDArray[np.uint8], Floats]]] = {}

    def rows(self, network: Network, name: str, precision: str) -> list[Cell]:
        """An engine with every number of lanes."""
        scale = self.scale

        def all_say(remark: str, difference: float | None = None) -> list[Cell]:
            return [Cell(network.name, name, precision, None, remark, difference)]

        late = "not measured: no time was left"
        if self.deadline.left <= 0:
            return all_say(late)
        try:
            engine = network.engine(name, precision, self.device)
        except VconvError as error:
            return all_say(f"not there: {error}")
        try:
            difference, fault = self.differs(network, engine, precision)
        except Exception as error:  # whatever an engine does, the others are measured
            return all_say(f"fails, not timed: {first_line(error)}")
        said = f"{network.name}, {name} {precision}: logits differ by {difference:.2g} at most"
        print(said, file=sys.stderr, flush=True)
        if fault:
            return all_say(f"wrong, not timed: {fault}", difference)
        cells = []
        slowest: dict[int, float] = {}  # seconds of a block, by lanes
        for lanes in scale.lanes:
            cell = Cell(network.name, name, precision, lanes, late, difference)
            fewer = [seconds for count, seconds in slowest.items() if count <= lanes]
            if fewer and max(fewer) > MOST_CALL_SECONDS:
                cell = Cell(network.name, name, precision, lanes, "-", difference)
            elif self.deadline.left > 0:
                cell = self.cell(network, engine, cell, slowest)
            cells.append(cell)
        return sorted(cells, key=lambda cell: cell.lanes or 0)

    def reference(self, network: Network) -> list[tuple[Floats, npt.NDArray[np.uint8], Floats]]:
        """Conditioning, codes to follow, and the logits of `torchscript`."""
        if network.name not in self._references:
            engine = network.engine("torchscript", "fp32", self.device)
            found = []
            for lanes, blocks in self.scale.verified:
                conditioning, _ = network.work(lanes, blocks * network.block)
                shape = (lanes, blocks * network.block)
                codes = np.random.default_rng(7).integers(0, 256, shape).astype(np.uint8)
                logits, _ = engine.score(conditioning, codes, engine.initial_state(lanes))
                found.append((conditioning, codes, logits))
            self._references[network.name] = found
        return self._references[network.name]

    def differs(self, network: Network, engine: Engine, precision: str) -> tuple[float, str]:
        """The largest difference of the logits, and what is wrong with them, if anything is."""
        largest, fault = 0.0, ""
        for conditioning, codes, wanted in self.reference(network):
            logits, _ = engine.score(conditioning, codes, engine.initial_state(len(codes)))
            largest = max(largest, float(np.abs(logits - wanted).max()))
            spread = float(wanted.std())
            rms = float(np.sqrt(np.square(logits - wanted, dtype=np.float64).mean()))
            if not np.isfinite(logits).all() or logits.shape != wanted.shape:
                fault = "logits that are not finite, or too few"
            elif precision == "fp32" and largest > 1e-4 * max(1.0, spread):
                fault = f"its logits differ by {largest:.2g}"
            elif rms > 0.05 * spread:
                fault = f"its logits differ by {rms / spread:.1%} of their standard deviation (RMS)"
        if engine.name == "torchscript":  # the one that all are compared with
            with contextlib.suppress(VconvError):
                native = network.decoder.engine("native")
                conditioning, codes, wanted = self.reference(network)[0]
                logits, _ = native.score(conditioning, codes, native.initial_state(len(codes)))
                largest = float(np.abs(logits - wanted).max())
                if largest > 1e-4 * max(1.0, float(wanted.std())):
                    fault = f"its logits differ from the native engine's by {largest:.2g}"
        return largest, fault

    def cell(
        self, network: Network, engine: Engine, plain: Cell, slowest: dict[int, float]
    ) -> Cell:
        lanes, block, total = plain.lanes, network.block, self.scale.cell_seconds
        assert lanes is not None

        def calls(samples: int) -> Callable[[], float]:
            conditioning, uniforms = network.work(lanes, samples)
            state = engine.initial_state(lanes)

            def call() -> float:
                nonlocal state
                begun = time.perf_counter()
                codes, state = engine.generate(conditioning, uniforms, 1.0, state)
                if self.device != "cpu":
                    torch.cuda.synchronize(self.device)
                assert codes.shape == (lanes, samples)
                return time.perf_counter() - begun

            return call

        plain = Cell(**{**asdict(plain), "remark": "-"})
        try:
            call = calls(block)
            first = call()  # compiles, records, takes memory
            if first > 4 * MOST_CALL_SECONDS:
                slowest[lanes] = first
                return plain
            call()
            slowest[lanes] = min(call(), call())
            if slowest[lanes] > MOST_CALL_SECONDS:
                return plain
            step_bytes = 4 * lanes * network.decoder.width * block / network.decoder.hop
            most = max(1, min(3200 // block, int(MOST_CONDITIONING / step_bytes)))
            blocks = max(1, min(most, round(total / 5 / slowest[lanes])))
            call = calls(blocks * block)
            call()
            call()
            times: list[float] = []
            while len(times) < 3 or (sum(times) < total and len(times) < 50):
                times.append(call())
        except torch.OutOfMemoryError:
            return Cell(**{**asdict(plain), "remark": "- (memory)"})
        except Exception as error:  # as above
            return Cell(**{**asdict(plain), "remark": f"fails: {first_line(error)}"})
        finally:
            if self.device != "cpu":
                torch.cuda.empty_cache()
        rate = blocks * block / statistics.median(times)
        floor = self.floor(network, engine, lanes)
        return Cell(
            plain.network,
            plain.engine,
            plain.precision,
            lanes,
            difference=plain.difference,
            samples_a_call=blocks * block,
            calls=len(times),
            samples_per_second_a_lane=rate,
            samples_per_second=rate * lanes,
            real_time=rate * lanes / SAMPLE_RATE,
            of_floor=None if floor is None else floor * rate,
        )

    def floor(self, network: Network, engine: Engine, lanes: int) -> float | None:
        """Seconds a sample; see above."""
        if self.l2_rate is None:
            return None
        seconds = BYTES[engine.precision] * network.decoder.multiply_adds / self.l2_rate
        programs = getattr(engine, "programs", None)
        if programs is None:
            return seconds
        processors = torch.cuda.get_device_properties(self.device).multi_processor_count
        return seconds * max(int(programs(lanes)), processors)

    @cached_property
    def l2_rate(self) -> float | None:
        """Bytes a second, all multiprocessors together."""
        if self.device == "cpu" or importlib.util.find_spec("triton") is None:
            return None
        from l2_probe import bytes_per_second

        try:
            return bytes_per_second(self.device)
        except Exception as error:  # no figure is worth more than all others
            print(f"the L2's rate is not known: {first_line(error)}", file=sys.stderr)
            return None


# -- whole conversions -----------------------------------------------------------------------------


def recordings(folder: Path, scale: Scale) -> float:
    """Files of speech, no two alike; the seconds of all."""
    import soundfile

    hello = read(ROOT / "examples" / "hello.wav")
    length = round(scale.file_seconds * SAMPLE_RATE)
    for index in range(scale.files):
        begun = np.roll(hello, -index * 977)
        wav = np.tile(begun, length // len(hello) + 1)[:length]
        soundfile.write(folder / f"{index:03d}.wav", wav, SAMPLE_RATE)
    return scale.files * length / SAMPLE_RATE


def conversion(engine: str, run: Run) -> Conversion:
    """``vconv convert`` of a folder with the bundled model, from Enter to the end."""
    device, scale = run.device, run.scale
    if run.deadline.left <= 0:
        remark = "not measured: no time was left"
        return Conversion(engine, device, scale.files, 0.0, remark=remark)
    with tempfile.TemporaryDirectory() as place:
        source, out = Path(place, "in"), Path(place, "out")
        source.mkdir()
        seconds = recordings(source, scale)
        speaker = Bundle.find("demo").speakers.names[0]
        command = [sys.executable, "-m", "vconv", "convert", str(source), "-s", speaker]
        command += ["-o", str(out), "--device", device, "--engine", engine, "-q"]
        begun = time.perf_counter()
        try:
            done = subprocess.run(
                command, capture_output=True, text=True, timeout=max(1.0, run.deadline.left)
            )
        except subprocess.TimeoutExpired:
            remark = "not measured: it did not end in the time that was left"
            return Conversion(engine, device, scale.files, seconds, remark=remark)
        took = time.perf_counter() - begun
        error = done.stderr.strip().partition("\n")[0]
        if done.returncode == 5 and "onnxruntime" in error:
            return beside_the_processor(engine, run, source, out, seconds)
        if done.returncode:
            return Conversion(engine, device, scale.files, seconds, remark=error)
    return Conversion(engine, device, scale.files, seconds, took, seconds / took)


def beside_the_processor(
    engine: str, run: Run, source: Path, out: Path, seconds: float
) -> Conversion:
    """The same without onnxruntime's CUDA: encoder and conditioner on the CPU, as the table says,
    and 16 files at a time with the engine on the device. Without the start of the program."""
    bundle = Bundle.find("demo")
    shape = bundle.engine_options()
    out.mkdir(exist_ok=True)
    row = Conversion(engine, "cpu", run.scale.files, seconds)
    with load("demo", device="cpu") as converter:
        weights = bundle.weights("decoder.wavenet.")
        demo = Network("demo", Decoder(weights, **shape))
        try:
            made: Any = demo.engine(engine, "bf16" if engine == "triton" else "fp32", run.device)
        except VconvError as error:
            return Conversion(**{**asdict(row), "remark": f"not there: {error}"})
        converter._model.engine = SharedEngine(made)
        ended = False

        def convert(path: Path) -> None:
            converter.convert_to_file(
                path,
                out / path.name,
                speaker=0,
                progress=lambda *_: not ended and run.deadline.left > 0,
            )

        begun = time.perf_counter()
        with ThreadPoolExecutor(16) as pool:
            try:
                for _ in pool.map(convert, sorted(source.iterdir())):
                    pass
            except VconvError as error:
                ended = True
                return Conversion(**{**asdict(row), "remark": f"not measured: {error}"})
    took = time.perf_counter() - begun
    return Conversion(**{**asdict(row), "took": took, "real_time": seconds / took})


# -- what is printed -------------------------------------------------------------------------------


def machine(device: str, run: Run) -> dict[str, Any]:
    found: dict[str, Any] = {
        "date": datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
        "python": platform.python_version(),
        "processors": os.cpu_count(),
    }
    for package in ("vconv", "torch", "triton", "onnxruntime-gpu", "onnxruntime", "numpy"):
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[package] = metadata.version(package)
    if device == "cpu":
        return {"device": "cpu", **found}
    properties = torch.cuda.get_device_properties(device)
    driver = None
    if program := shutil.which("nvidia-smi"):
        query = [program, "--query-gpu=driver_version", "--format=csv,noheader"]
        done = subprocess.run(query, capture_output=True, text=True, timeout=30)
        driver = done.stdout.strip().partition("\n")[0] or None
    return {
        "device": properties.name,
        "multiprocessors": properties.multi_processor_count,
        "memory_gib": round(properties.total_memory / 2**30, 1),
        "driver": driver,
        "cuda": torch.version.cuda,
        "l2_bytes_per_second": run.l2_rate,
        **found,
    }


def first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]


def figure(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)


def table(about: dict[str, Any], cells: list[Cell], conversions: list[Conversion]) -> str:
    lines = [", ".join(f"{name} {value}" for name, value in about.items()), ""]
    columns = "network | engine | lanes | samples/s a lane | samples/s | x real time | of the floor"
    lines += [f"| {columns} | samples a call | logits differ by | |", "|---" * 10 + "|"]
    for c in cells:
        lines.append(
            f"| {c.network} | {c.engine} {c.precision} | {figure(c.lanes, ',') or 'all'} "
            f"| {figure(c.samples_per_second_a_lane, ',.0f')} "
            f"| {figure(c.samples_per_second, ',.0f')} | {figure(c.real_time, ',.2f')} "
            f"| {figure(c.of_floor, '.1%')} | {figure(c.samples_a_call, ',')} "
            f"| {figure(c.difference, '.2g')} | {c.remark} |"
        )
    lines += [
        "",
        "| a folder, the bundled model: engine | encoder, conditioner | files | s of audio | s "
        "| x real time | |",
        "|---" * 7 + "|",
    ]
    for row in conversions:
        lines.append(
            f"| {row.engine} | {row.networks} | {row.files} | {row.seconds:.0f} "
            f"| {figure(row.took, '.1f')} | {figure(row.real_time, ',.1f')} | {row.remark} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--seconds", type=float, default=450.0, help="of the whole run, at most")
    parser.add_argument("--json", type=Path, help="the same figures, into this file")
    parser.add_argument("--smoke", action="store_true", help="try the script, measure nothing")
    options = parser.parse_args()
    if options.device != "cpu" and not torch.cuda.is_available():
        sys.exit(f"--device {options.device}: torch finds no CUDA device.")
    scale = TINY if options.smoke else FULL
    run = Run(options.device, scale, Deadline(options.seconds))
    shapes = {
        "tiny": SMOKE,
        "tiny, every sample": SMOKE.model_copy(update={"upsampling": "transposed"}),
    }
    if not options.smoke:
        presets = ("base", "paper")
        shapes = {x: load_config(ROOT / f"configs/{x}.yaml").model.decoder for x in presets}
    networks = [Network(n, decoder_of(shape, random_weights(shape))) for n, shape in shapes.items()]

    rows: dict[tuple[str, str, str], list[Cell]] = {}
    for part in (ENGINES[:FIRST], ENGINES[FIRST:]):
        for network in networks:
            for name, precision in part:
                rows[network.name, name, precision] = run.rows(network, name, precision)
        if part == ENGINES[:FIRST]:
            on_cpu = options.device == "cpu"
            engines = ("torchscript",) if on_cpu else ("triton", "cudagraphs")
            conversions = [conversion(engine, run) for engine in engines]
            if options.smoke:  # the way for onnxruntime without CUDA
                with tempfile.TemporaryDirectory() as place:
                    source = Path(place, "in")
                    source.mkdir()
                    seconds = recordings(source, scale)
                    other = beside_the_processor(
                        "cudagraphs", run, source, Path(place, "out"), seconds
                    )
                    conversions.append(other)
    cells = [
        cell
        for network in networks
        for name, precision in ENGINES
        for cell in rows[network.name, name, precision]
    ]
    about = machine(options.device, run)
    if options.json is not None:
        whole = {
            "machine": about,
            "cells": [asdict(cell) for cell in cells],
            "conversions": [asdict(row) for row in conversions],
        }
        options.json.write_text(json.dumps(whole, indent=1) + "\n", "utf-8")
    print(table(about, cells, conversions))


if __name__ == "__main__":
    main()
