"""``vconv bench``: how fast a model draws samples and converts on this machine.

Every engine, precision and number of lanes is a trial of `timing`, and so are two probes of the
machine, by numpy since a user's machine need not have a compiler: they say about how much it could
do, a little less than it could, and where it was slow for a while they were slow too. Shares of
them compare machines and engines; `benchmarks/sampler.py` has a sharper probe. `bench_conversion`
measures the rest of a conversion.

Legend: B lanes, T samples, F conditioning steps.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .audio import SAMPLE_RATE
from .bench_conversion import Conversion, convert, starts
from .bundle import Bundle
from .engines import Engine, create_engine
from .engines.base import MAX_COST, PRECISIONS, conditioning_steps
from .errors import SetupError, UsageError
from .model import Model
from .timing import (
    Spread,
    Trial,
    multiplying,
    products_take_one_thread,
    reading,
    take_turns,
    waiting,
)
from .weights import Tensors

ENGINES = ("native", "torchscript")  # those of the CPU, on which it measures

_BYTES = {"fp32": 4, "bf16": 2, "int8": 1}
_MAX_LANES = 1024
_NOISY = 0.1  # of waiting, and of the distance of quartiles


@dataclass(frozen=True)
class Decoder:
    """A WaveNet's tensors under the names that engines know, and what else they need to know."""

    weights: Tensors
    blocks: int
    layers: int
    kernel_size: int
    hop: int

    @property
    def multiply_adds(self) -> int:
        """Those of the matrix products of one sample: every weight once, but for the embedding and,
        where the exported conditioner projects, the projections."""
        return sum(
            tensor.size
            for name, tensor in self.weights.items()
            if tensor.ndim == 2
            and "embedding" not in name
            and (self.hop == 1 or ".condition." not in name)
        )

    @property
    def width(self) -> int:
        """Numbers in a step of conditioning."""
        if self.hop == 1:
            return int(self.weights["layers.0.condition.weight"].shape[1])
        return self.blocks * self.layers * len(self.weights["layers.0.dilated.weight"])

    def engine(self, name: str, precision: str = "fp32") -> Engine:
        return create_engine(
            name,
            self.weights,
            blocks=self.blocks,
            layers=self.layers,
            kernel_size=self.kernel_size,
            hop=self.hop,
            precision=precision,
        )


def generating(engine: Engine, width: int, lanes: int, samples: int, threads: int = 1) -> Trial:
    """Drawing so many samples of every lane, all lanes counted, from conditioning of this width."""
    random = np.random.default_rng(1)
    steps = conditioning_steps(samples, engine.hop)
    conditioning = random.standard_normal((lanes, steps, width), np.float32)
    uniforms = random.random((lanes, samples), np.float32)

    def stream() -> Callable[[], None]:
        state = engine.initial_state(lanes)

        def step() -> None:
            nonlocal state
            _, state = engine.generate(conditioning, uniforms, 1.0, state)

        return step

    return Trial(lanes * samples, [stream() for _ in range(threads)])


@dataclass(frozen=True)
class Row:
    """An engine at work. ``of_peak``: its multiply-adds against numpy's. ``of_reading``: what it
    would read if it read each weight once for a sample of all lanes, against numpy's reading; the
    native engine reads a part of them more rarely and may pass 1. ``offered``: whether `vconv
    convert` would take this precision for the model."""

    engine: str
    precision: str
    offered: bool
    lanes: int
    samples_per_second: Spread
    real_time: float
    of_peak: float | None
    of_reading: float


@dataclass(frozen=True)
class Report:
    """What `vconv bench` measured. ``waiting``: the share of their time in which threads
    waited for a processor."""

    vconv: str
    model: str
    processor: str
    processors: int
    code_path: str | None
    threads: int
    multiply_adds: int
    peak: Spread | None
    reading: dict[str, Spread]
    engines: list[Row]
    conversion: Conversion
    import_seconds: Spread
    load_seconds: Spread
    waiting: float
    notes: list[str]

    def json(self) -> dict[str, Any]:
        return asdict(self)


def checked_lanes(text: str) -> tuple[int, ...]:
    """ "1,4,16" as numbers; UsageError for what is none, or no number of lanes."""
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isascii() and part.isdigit() and len(part) < 5 for part in parts) or not all(
        1 <= int(part) <= _MAX_LANES for part in parts
    ):
        raise UsageError(
            f"--lanes: numbers of lanes from 1 to {_MAX_LANES}, separated by commas, such as "
            f"1,4,16, found {text!r}."
        )
    return tuple(dict.fromkeys(int(part) for part in parts))


def bench(
    model: str,
    *,
    seconds: float,
    lanes: Sequence[int],
    engine: str,
    threads: int,
) -> Report:
    """Measure a model, every row for about so many seconds.

    engine: one by name, or auto for all that can run here. threads: how many draw at the same
    time, each its own lanes. Raises UsageError for an option that cannot be, ModelError for a
    bundle that cannot be used, SetupError where no engine, or not the one asked for, can run.
    """
    if not 0 < seconds <= 60:
        raise UsageError(f"--seconds: more than 0 and at most 60, found {seconds:g}.")
    processors = os.cpu_count() or 1
    if not 1 <= threads <= processors:
        raise UsageError(f"--threads: 1 to the machine's {processors}, found {threads}.")
    if engine not in ("auto", *ENGINES):
        raise UsageError(f"--engine: auto, {' or '.join(ENGINES)}, found {engine!r}.")
    bundle = Bundle.find(model)
    decoder = Decoder(bundle.weights("decoder.wavenet."), **bundle.engine_options())
    engines, notes = _engines(decoder, engine)
    work = decoder.multiply_adds

    trials = {
        (*key, count): generating(
            made, decoder.width, count, _samples(key[0], decoder.hop), threads
        )
        for key, made in engines.items()
        for count in lanes
    }
    reads = {
        precision: reading(_BYTES[precision] * work, threads)
        for precision in PRECISIONS
        if any(key[1] == precision for key in engines)
    }
    multiplies = multiplying(threads) if products_take_one_thread() else None
    if multiplies is None:
        notes.append(
            "the peak is left out: numpy's products take several threads here; "
            "OPENBLAS_NUM_THREADS=1 or MKL_NUM_THREADS=1 may change that"
        )
    everything = [*trials.values(), *reads.values(), *([multiplies] if multiplies else [])]
    take_turns(everything, seconds)

    peak = None if multiplies is None else multiplies.rate
    rows = []
    for (name, precision, count), trial in trials.items():
        rate = trial.rate
        passes = rate.median / count * _BYTES[precision] * work
        cost = bundle.manifest.precisions.get(precision, MAX_COST)  # type: ignore[call-overload]
        rows.append(
            Row(
                engine=name,
                precision=precision,
                offered=precision == "fp32" or cost < MAX_COST,
                lanes=count,
                samples_per_second=rate,
                real_time=rate.median / SAMPLE_RATE,
                of_peak=None if peak is None else rate.median * work / peak.median,
                of_reading=passes / reads[precision].rate.median,
            )
        )
    single = Model(bundle, device="cpu", engine=engine, precision="auto")
    fastest = max(row.real_time / row.lanes / threads for row in rows)
    conversion, converted = convert(bundle, single, clip=min(30.0, max(0.5, seconds * fastest)))
    imports, loads = starts(bundle.path, single.engine.name)
    waited = waiting([*everything, converted])
    notes += _noise(waited, rows)
    if conversion.shares["conditioner"] > conversion.shares["sampler"]:
        notes.append("conditioning takes longer than the drawing of samples, which it must not")
    from . import __version__

    return Report(
        vconv=__version__,
        model=bundle.manifest.name,
        processor=_processor(),
        processors=processors,
        code_path=next((e.cpu for e in engines.values() if hasattr(e, "cpu")), None),
        threads=threads,
        multiply_adds=work,
        peak=peak,
        reading={precision: trial.rate for precision, trial in reads.items()},
        engines=rows,
        conversion=conversion,
        import_seconds=imports,
        load_seconds=loads,
        waiting=waited,
        notes=notes,
    )


def describe(report: Report) -> str:
    """The report as a table for people."""
    work, conversion = report.multiply_adds, report.conversion
    path = f", sampler's code path {report.code_path}" if report.code_path else ""
    at_once = f", {report.threads} threads at once" if report.threads > 1 else ""
    reads = ", ".join(
        f"{_BYTES[precision] * work / 1e6:.2f} MB at {rate.median / 1e9:.0f} GB/s ({precision})"
        for precision, rate in report.reading.items()
    )
    peak = "" if report.peak is None else f"{report.peak.median / 1e9:.1f} G multiply-adds/s, "
    lines = [
        f"model      {report.model}, {work:,} multiply-adds a sample",
        f"machine    {report.processor}, {report.processors} processors{path}{at_once}",
        f"numpy      {peak}reads {reads}",
        "",
        f"{'engine':<12} {'lanes':>5} {'samples/s':>10} {'quartiles':>21} {'x real time':>11} "
        f"{'of peak':>8} {'of reading':>10}  offered",
    ]
    for row in report.engines:
        rate = row.samples_per_second
        name = f"{row.engine} {row.precision}" if row.engine == "native" else row.engine
        share = "" if row.of_peak is None else f"{row.of_peak:.0%}"
        lines.append(
            f"{name:<12} {row.lanes:>5} {rate.median:>10,.0f} "
            f"{f'{rate.low:,.0f} to {rate.high:,.0f}':>21} {row.real_time:>11.2f} "
            f"{share:>8} {row.of_reading:>10.0%}  {'yes' if row.offered else 'no'}"
        )
    spread = conversion.real_time
    lines += [
        "",
        f"conversion {conversion.seconds:.1f} s at {conversion.sample_rate:,} Hz, "
        f"{spread.median:.2f} times real time ({spread.low:.2f} to {spread.high:.2f}), "
        f"{conversion.engine} {conversion.precision}, one lane",
        *(f"  {part:<12} {share:>6.1%}" for part, share in conversion.shares.items()),
        f"start      import {report.import_seconds.median:.2f} s, "
        f"load {report.load_seconds.median:.2f} s",
    ]
    return "\n".join(lines)


def _engines(decoder: Decoder, wanted: str) -> tuple[dict[tuple[str, str], Any], list[str]]:
    """The engines that run here by name and precision, and why others do not."""
    engines: dict[tuple[str, str], Any] = {}
    notes = []
    for name in ENGINES if wanted == "auto" else (wanted,):
        for precision in PRECISIONS if name == "native" else PRECISIONS[:1]:
            try:
                engines[name, precision] = decoder.engine(name, precision)
            except SetupError as missing:
                if wanted != "auto":
                    raise
                notes.append(f"{name} is left out: {missing}")
                break
    if not engines:
        raise SetupError("no engine can run here: " + " ".join(notes))
    return engines, notes


def _samples(engine: str, hop: int) -> int:
    """How many samples of a lane one call draws: enough that calling does not count, and with hop 1
    not more, for a network of that kind is a large one."""
    if hop == 1:
        return 64
    return 5 * hop if engine == "native" else hop


def _noise(waited: float, rows: Sequence[Row]) -> list[str]:
    wide = sum(row.samples_per_second.width > _NOISY for row in rows)
    if waited <= _NOISY and wide * 4 <= len(rows):
        return []
    return [
        f"a noisy machine: threads waited {waited:.0%} of the time for a processor, and the "
        f"quartiles of {wide} of {len(rows)} rows lie more than {_NOISY:.0%} apart; compare "
        "figures of one run only"
    ]


def _processor() -> str:
    """The processor's name, as far as the system tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8", "replace").splitlines()
    except OSError:
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, "") or platform.processor() or platform.machine()
