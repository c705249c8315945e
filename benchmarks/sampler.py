"""How fast the engines draw samples: one run, a table for every network.

    python benchmarks/sampler.py [--preset NAME] [--bundle DIR] [--turns N] [--lanes 1,4,16,64]

Each row is a network (the shapes of the presets with random weights, or a bundle's own), an engine
and a number of lanes: the native engine in its precisions, TorchScript with ring buffers, the eager
network sample by sample, and a loop in numba where numba is installed. With transposed upsampling
(`paper`) the engine projects the conditioning of every sample, which counts as part of its work.
The rows of a network take turns, so that whatever else the machine does meets all of them alike; a
figure is the median of its turns, with the quartiles, in the processor time of the threads that
draw: one, but for the native rows on two cores, each of which has half of the lanes. `of peak` is
the share of the multiply-adds (fp32) that a small probe reaches in the same run. Two floors are
printed for one lane: multiply-adds over that peak, and the weights' bytes over the rate at which
the core reads a buffer of their size. A TorchScript that is slower than it should be would flatter
the others; the script then says that the comparison does not count.
"""

from __future__ import annotations

import argparse
import ctypes
import importlib.util
import os
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

# Before numpy is loaded, whose products would take all processors, and torch's too.
os.environ |= {"OMP_NUM_THREADS": "1", "VECLIB_MAXIMUM_THREADS": "1"}

import numpy as np
import numpy.typing as npt

from vconv.audio import SAMPLE_RATE
from vconv.bench import Decoder, checked_lanes, generating
from vconv.bundle import Bundle
from vconv.config import DecoderConfig
from vconv.engines.base import PRECISIONS
from vconv.errors import SetupError
from vconv.geometry import FRAME_HOP
from vconv.timing import Trial, multiplying, reading, take_turns, waiting

LEVELS = 256
BYTES = {"fp32": 4, "bf16": 2, "int8": 1}

# What TorchScript must reach for a comparison with it to count, in samples a second of a network of
# no more multiply-adds than `base`; of a larger one in proportion.
LEAST_TORCHSCRIPT, LEAST_FOR = 3000, 618_496

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


@dataclass(frozen=True)
class Row:
    """One engine at work."""

    engine: str
    lanes: int
    trial: Trial
    cores: int = 1


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


def decoder_of(shape: DecoderConfig, weights: dict[str, npt.NDArray[np.float32]]) -> Decoder:
    return Decoder(weights, shape.blocks, shape.layers, shape.kernel_size, hop_of(shape))


def eager_row(shape: DecoderConfig, decoder: Decoder) -> Row:
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
    tensors = {
        name: torch.from_numpy(np.array(tensor, np.float32))
        for name, tensor in decoder.weights.items()
    }
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

    return Row("eager network", 1, Trial(samples, [step]))


def rows_of(shape: DecoderConfig, decoder: Decoder, lanes: tuple[int, ...]) -> list[Row]:
    # Long enough that the ends do not count; a large network's turns are long as they are, and
    # TorchScript projects 64 samples at a time.
    large = decoder.multiply_adds > 4_000_000
    samples = 128 if large else 5 * FRAME_HOP

    def row(name: str, engine: object, count: int, cores: int = 1) -> Row:
        cut = samples // 2 if count > 16 and large else samples
        trial = generating(engine, decoder.width, count // cores, cut, cores)  # type: ignore[arg-type]
        return Row(name, count, trial, cores)

    rows = []
    try:
        for precision in PRECISIONS:
            native = decoder.engine("native", precision)
            name = f"native {precision}"
            rows += [row(name, native, count) for count in lanes]
            if (os.cpu_count() or 1) > 1:  # as a long file is converted: its lanes in two threads
                rows += [row(name, native, count, cores=2) for count in lanes if count >= 16]
            code_path = getattr(native, "cpu", "")
        print(f"native's code path: {code_path}")
    except SetupError as missing:
        print(f"native is left out: {missing}")
    if importlib.util.find_spec("numba") is None:
        print("numba is left out: it is not installed.")
    else:
        from numba_loop import NumbaEngine

        rows.append(row("numba loop", NumbaEngine(decoder), 1))
    if importlib.util.find_spec("torch") is None:
        print("torchscript and eager are left out: torch is not installed.")
        return rows
    scripted = decoder.engine("torchscript")
    rows += [row("torchscript", scripted, count) for count in lanes]
    rows.append(eager_row(shape, decoder))
    return rows


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


def numpys(probe: Trial) -> float:
    """What `vconv bench` takes for the machine's rate."""
    take_turns([probe], 0.2)
    return probe.rate.median


def report(name: str, decoder: Decoder, rows: list[Row], probe: ctypes.CDLL | None) -> None:
    work = decoder.multiply_adds
    print(f"\n{name}: {work:,} multiply-adds a sample, {4 * work / 1e6:.2f} MB of weights in fp32")
    peak = None
    if probe is not None:
        peak = probe.multiply_adds_per_second()
        print(
            f"this core: {peak / 1e9:.1f} G multiply-adds/s, a floor of {1e6 * work / peak:.1f} us "
            f"a sample; numpy reaches {numpys(multiplying()) / peak:.0%} of them"
        )
        for precision in PRECISIONS:
            count = BYTES[precision] * work
            bandwidth = probe.bytes_per_second(count)
            print(
                f"reads the {count / 1e6:.2f} MB of {precision} at {bandwidth / 1e9:.0f} GB/s, a "
                f"floor of {1e6 * count / bandwidth:.1f} us a sample of one lane; numpy reaches "
                f"{numpys(reading(count)) / bandwidth:.0%}"
            )
    torchscript = next((row.trial.rate.median for row in rows if row.engine == "torchscript"), None)
    columns = "engine | cores | lanes | samples/s | quartiles | x real time | of peak"
    print(f"| {columns} | x TorchScript |")
    print("|---" * 8 + "|")
    for row in rows:
        rate = row.trial.rate
        share = "" if peak is None else f"{rate.median * work / peak / row.cores:.0%}"
        ratio = "" if torchscript is None else f"{rate.median / torchscript:.2f}"
        print(
            f"| {row.engine} | {row.cores} | {row.lanes} | {rate.median:,.0f} | {rate.low:,.0f} to "
            f"{rate.high:,.0f} | {rate.median / SAMPLE_RATE:.2f} | {share} | {ratio} |"
        )
    least = LEAST_TORCHSCRIPT * min(1.0, LEAST_FOR / work)
    if torchscript is not None and torchscript < least:
        print(
            f"TorchScript draws {torchscript:,.0f} samples/s in one lane; it must reach "
            f"{least:,.0f}. The comparison with it does not count."
        )
    waited = waiting([row.trial for row in rows])
    print(f"The thread waited {waited:.0%} of its time for a processor.", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--preset", choices=SHAPES, help="only this one")
    parser.add_argument("--bundle", type=Path, help="an exported model instead of the presets")
    parser.add_argument("--lanes", type=checked_lanes, default=(1, 4, 16, 64))
    parser.add_argument("--turns", type=int, default=9, help="turns of each row")
    parser.add_argument("--seconds", type=float, default=1.0, help="for all turns of a row")
    options = parser.parse_args()
    networks: dict[str, tuple[DecoderConfig, Decoder]] = {}
    if options.bundle is None:
        for name in SHAPES if options.preset is None else [options.preset]:
            shape = SHAPES[name]
            networks[name] = shape, decoder_of(shape, random_weights(shape))
    else:
        bundle = Bundle.open(options.bundle)
        decoder = Decoder(bundle.weights("decoder.wavenet."), **bundle.engine_options())
        networks[str(options.bundle)] = bundle.config.decoder, decoder
    with tempfile.TemporaryDirectory() as folder:
        probe = compile_probe(folder)
        for name, (shape, decoder) in networks.items():
            rows = rows_of(shape, decoder, options.lanes)
            take_turns([row.trial for row in rows], options.seconds, options.turns)
            report(name, decoder, rows, probe)


if __name__ == "__main__":
    main()
