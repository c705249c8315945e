"""How fast the engines draw samples: one core, one run, one table.

    python benchmarks/sampler.py [--preset NAME] [--bundle DIR] [--repetitions N]

Each row is a network (the shapes of the presets with random weights, or a bundle's own), an engine
and a number of lanes. With transposed upsampling (`paper`) the engine projects the conditioning of
every sample, which counts as part of its work. The rows of a network take turns, so that whatever
else the machine does meets all of them alike; a figure is the median of its turns, in seconds of
this thread's processor time. `of peak` is the share of the core's multiply-adds that a small probe
reaches in the same run. Two floors are printed for one lane: multiply-adds over that peak, and the
weights' bytes over the rate at which the core reads a buffer of their size.
"""

from __future__ import annotations

import os

os.environ["OMP_NUM_THREADS"] = "1"

import argparse
import ctypes
import importlib.util
import shutil
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from vconv.bundle import Bundle
from vconv.config import DecoderConfig
from vconv.engines import Engine, create_engine
from vconv.engines.base import conditioning_steps
from vconv.errors import SetupError
from vconv.geometry import FRAME_HOP

SAMPLE_RATE = 16_000
LEVELS = 256
CHUNK = 160

Weights = Mapping[str, npt.NDArray[np.float32]]

SHAPES = {
    "demo": DecoderConfig(
        residual_channels=32, gate_channels=32, skip_channels=96, blocks=2, layers=8
    ),
    "base": DecoderConfig(
        residual_channels=64, gate_channels=64, skip_channels=128, blocks=2, layers=10
    ),
    "paper": DecoderConfig(
        residual_channels=256,
        gate_channels=368,
        skip_channels=256,
        blocks=2,
        layers=10,
        conditioning_channels=128,
        upsampling="transposed",
    ),
}


@dataclass
class Row:
    """One engine at work: `step` draws `samples` samples, all lanes counted."""

    engine: str
    lanes: int
    samples: int
    step: Callable[[], None]
    seconds: list[float]

    @property
    def rate(self) -> float:
        """Samples per second."""
        return self.samples / statistics.median(self.seconds)


def hop_of(shape: DecoderConfig) -> int:
    return FRAME_HOP if shape.upsampling == "linear" else 1


def random_weights(shape: DecoderConfig) -> dict[str, npt.NDArray[np.float32]]:
    random = np.random.default_rng(0)
    residual, gate, skip = shape.residual_channels, shape.gate_channels, shape.skip_channels
    count = shape.blocks * shape.layers

    def matrix(outputs: int, inputs: int) -> npt.NDArray[np.float32]:
        return np.asarray(random.standard_normal((outputs, inputs)) / inputs**0.5, np.float32)

    weights = {"embedding.weight": matrix(LEVELS, residual)}
    for layer in range(count):
        weights[f"layers.{layer}.dilated.weight"] = matrix(2 * gate, shape.kernel_size * residual)
        if layer < count - 1:
            weights[f"layers.{layer}.residual.weight"] = matrix(residual, gate)
            weights[f"layers.{layer}.residual.bias"] = matrix(1, residual)[0]
        weights[f"layers.{layer}.condition.weight"] = matrix(2 * gate, shape.conditioning_channels)
        weights[f"layers.{layer}.condition.bias"] = matrix(1, 2 * gate)[0]
    for name, outputs, inputs in [
        ("skip", skip, count * gate),
        ("hidden", skip, skip),
        ("logits", LEVELS, skip),
    ]:
        weights[f"{name}.weight"] = matrix(outputs, inputs)
        weights[f"{name}.bias"] = matrix(1, outputs)[0]
    return weights


def multiply_adds(weights: Weights) -> int:
    """Those of the matrix products of one sample: every weight once, but for the embedding."""
    return sum(w.size for name, w in weights.items() if w.ndim == 2 and "embedding" not in name)


def drawing(shape: DecoderConfig, weights: Weights) -> Weights:
    """Those tensors that a sample's drawing reads."""
    projecting = hop_of(shape) == 1
    return {name: w for name, w in weights.items() if projecting or ".condition." not in name}


def engine_row(name: str, engine: Engine, width: int, lanes: int, samples: int) -> Row:
    random = np.random.default_rng(1)
    steps = conditioning_steps(samples, engine.hop)
    conditioning = random.standard_normal((lanes, steps, width), np.float32)
    uniforms = random.random((lanes, samples), np.float32)
    state = engine.initial_state(lanes)

    def step() -> None:
        nonlocal state
        _, state = engine.generate(conditioning, uniforms, 1.0, state)

    return Row(name, lanes, lanes * samples, step, [])


def eager_row(shape: DecoderConfig, weights: Weights) -> Row:
    """The network itself, called for one sample at a time."""
    import torch

    from vconv.nn.wavenet import WaveNet

    network = WaveNet(
        levels=LEVELS,
        residual_channels=shape.residual_channels,
        gate_channels=shape.gate_channels,
        skip_channels=shape.skip_channels,
        conditioning_channels=shape.conditioning_channels,
        blocks=shape.blocks,
        layers=shape.layers,
        kernel_size=shape.kernel_size,
        hop=1,  # conditioning comes sample by sample, not to be interpolated again each time
    ).eval()
    tensors = {name: torch.from_numpy(np.array(tensor)) for name, tensor in weights.items()}
    network.load_state_dict(tensors, strict=False)
    conditioning = torch.randn(1, 1, shape.conditioning_channels)
    samples = 16
    state = network.initial_state(1)
    code = torch.full((1, 1), network.silence)

    def step() -> None:
        nonlocal state, code
        with torch.inference_mode():
            for _ in range(samples):
                logits, state = network(code, conditioning, state)
                code = torch.multinomial(torch.softmax(logits[:, 0], dim=1), 1)

    return Row("eager network", 1, samples, step, [])


def rows_of(shape: DecoderConfig, weights: Weights) -> list[Row]:
    hop = hop_of(shape)
    projected = shape.blocks * shape.layers * 2 * shape.gate_channels
    width = shape.conditioning_channels if hop == 1 else projected
    options: dict[str, Any] = {
        "blocks": shape.blocks,
        "layers": shape.layers,
        "kernel_size": shape.kernel_size,
        "hop": hop,
    }
    # Long enough that the ends do not count: a tenth of a second or so.
    chunks = 1 if multiply_adds(weights) > 4_000_000 else 5
    rows = []
    try:
        native = create_engine("native", weights, **options)
        name = f"native ({native.cpu})" if hasattr(native, "cpu") else "native"
        rows += [engine_row(name, native, width, lanes, chunks * CHUNK) for lanes in (1, 4, 8)]
    except SetupError as missing:
        print(f"native is left out: {missing}")
    if importlib.util.find_spec("torch") is None:
        print("torchscript and eager are left out: torch is not installed.")
        return rows
    import torch

    torch.set_num_threads(1)
    scripted = create_engine("torchscript", weights, **options)
    rows += [engine_row("torchscript", scripted, width, lanes, CHUNK) for lanes in (1, 8)]
    rows.append(eager_row(shape, weights))
    return rows


def measure(rows: list[Row], repetitions: int) -> None:
    for row in rows:
        for _ in range(3):  # buffers touched, scripts optimised
            row.step()
    for _ in range(repetitions):
        for row in rows:
            start = time.thread_time()
            row.step()
            row.seconds.append(time.thread_time() - start)


def compile_probe(folder: str) -> ctypes.CDLL | None:
    """probe.cpp, compiled for this machine; None where there is no compiler."""
    compiler = shutil.which(os.environ.get("CXX", "c++"))
    if compiler is None:
        return None
    library = Path(folder) / "probe.so"
    options = ["-std=c++17", "-O3", "-march=native", "-shared", "-fPIC"]
    source = Path(__file__).with_name("probe.cpp")
    subprocess.run([compiler, *options, "-o", str(library), str(source)], check=True)
    probe = ctypes.CDLL(str(library))
    probe.multiply_adds_per_second.restype = ctypes.c_double
    probe.bytes_per_second.restype = ctypes.c_double
    probe.bytes_per_second.argtypes = [ctypes.c_size_t]
    return probe


def report(name: str, weights: Weights, rows: list[Row], probe: ctypes.CDLL | None) -> None:
    work = multiply_adds(weights)
    print(f"\n{name}: {work:,} multiply-adds a sample, {4 * work / 1e6:.2f} MB of weights")
    peak = None
    if probe is not None:
        peak = probe.multiply_adds_per_second()
        reading = probe.bytes_per_second(4 * work)
        print(
            f"this core: {peak / 1e9:.1f} G multiply-adds/s, reads that many bytes at "
            f"{reading / 1e9:.0f} GB/s; floors {1e6 * work / peak:.1f} us and "
            f"{4e6 * work / reading:.1f} us a sample"
        )
    slowest = next((row.rate for row in rows if row.engine == "torchscript"), None)
    print(
        f"{'engine':16} {'lanes':>5} {'samples/s':>10} {'x real time':>11} {'us/sample':>9} ",
        end="",
    )
    print(f"{'of peak':>7} {'x torchscript':>13}")
    for row in rows:
        share = "" if peak is None else f"{row.rate * work / peak:.0%}"
        ratio = "" if slowest is None else f"{row.rate / slowest:.2f}"
        print(
            f"{row.engine:16} {row.lanes:5} {row.rate:10,.0f} {row.rate / SAMPLE_RATE:11.2f} "
            f"{1e6 / row.rate:9.1f} {share:>7} {ratio:>13}"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--preset", choices=SHAPES, help="only this one")
    parser.add_argument("--bundle", type=Path, help="an exported model instead of the presets")
    parser.add_argument("--repetitions", type=int, default=30, help="turns of each row")
    options = parser.parse_args()
    networks: dict[str, tuple[DecoderConfig, Weights]]
    if options.bundle is None:
        names = list(SHAPES) if options.preset is None else [options.preset]
        networks = {name: (SHAPES[name], random_weights(SHAPES[name])) for name in names}
    else:
        bundle = Bundle.open(options.bundle)
        wavenet = bundle.weights("decoder.wavenet.")
        networks = {str(options.bundle): (bundle.config.decoder, wavenet)}
    with tempfile.TemporaryDirectory() as folder:
        probe = compile_probe(folder)
        for name, (shape, tensors) in networks.items():
            weights = drawing(shape, tensors)
            rows = rows_of(shape, weights)
            measure(rows, options.repetitions)
            report(name, weights, rows, probe)


if __name__ == "__main__":
    main()
