"""The whole of a conversion, for ``vconv bench``: which part takes how much of it, and how long it
takes until it can begin."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .audio import write_atomic
from .bundle import Bundle
from .converter import Converter
from .model import Model
from .timing import Spread, Trial, processor_clock

PARTS = ("encoder", "conditioner", "sampler", "audio")

_CLIP_HZ = 44_100
_TURNS = 5
_STARTS = 3

# Its path is this process's: `python -c` begins with the working directory, where any file may lie.
_START = """\
import sys
sys.path[:] = sys.argv[3:]
import time
begun = time.process_time()
from vconv.converter import load
imported = time.process_time()
load(sys.argv[1], device="cpu", engine=sys.argv[2])
print(imported - begun, time.process_time() - imported)
"""


@dataclass(frozen=True)
class Conversion:
    """A recording from file to file in one lane, as `vconv convert --lanes 1` does it. ``shares``
    has those of PARTS in the processor time; audio is reading, resampling, filters, mu-law and
    writing."""

    engine: str
    precision: str
    seconds: float
    sample_rate: int
    real_time: Spread
    shares: dict[str, float]


def convert(bundle: Bundle, model: Model, clip: float) -> tuple[Conversion, Trial]:
    """A clip of so many seconds from file to file, with a watch around each part."""
    spent = dict.fromkeys(PARTS, 0.0)

    def watched(part: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            begun = processor_clock()
            result = function(*arguments, **options)
            spent[part] += processor_clock() - begun
            return result

        return call

    for part, owner, method in (
        ("encoder", model, "encode"),
        ("conditioner", model, "condition"),
        ("sampler", model.engine, "generate"),
        ("sampler", model.engine, "score"),  # the silence that precedes the recording
    ):
        setattr(owner, method, watched(part, getattr(owner, method)))
    converter = Converter(bundle, model)
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder) / "in.wav", Path(folder) / "out.wav"
        # Noise will do: the same work is done whatever is said.
        samples = round(clip * _CLIP_HZ)
        with write_atomic(source, _CLIP_HZ) as writer:
            writer.write(0.1 * np.random.default_rng(0).standard_normal(samples))
        trial = Trial(
            samples / _CLIP_HZ,
            [lambda: converter.convert_to_file(source, target, speaker="index:0", lanes=1)],
        )
        trial.turn()  # the first is slower
        trial.processor.clear()
        trial.wall.clear()
        spent.update(dict.fromkeys(PARTS, 0.0))
        for _ in range(_TURNS):
            trial.turn()
    total = sum(trial.processor)
    spent["audio"] = total - sum(spent.values())
    return (
        Conversion(
            engine=model.engine.name,
            precision=getattr(model.engine, "precision", "fp32"),
            seconds=trial.amount,
            sample_rate=_CLIP_HZ,
            real_time=trial.rate,
            shares={part: seconds / total for part, seconds in spent.items()},
        ),
        trial,
    )


def starts(bundle: Path, engine: str) -> tuple[Spread, Spread]:
    """Seconds (processor) to import what converts, and to load the model, in new interpreters."""
    times = []
    for _ in range(_STARTS):
        done = subprocess.run(
            [sys.executable, "-c", _START, os.fspath(bundle.resolve()), engine, *sys.path],
            stdout=subprocess.PIPE,
            text=True,
            check=True,
        )
        times.append([float(word) for word in done.stdout.split()])
    imports, loads = zip(*times, strict=True)
    return Spread.of(imports), Spread.of(loads)
