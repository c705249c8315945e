"""How far every exported part is from the eager network, for the whole family and the presets.

    python benchmarks/parity.py [--members vq,fsq] [--presets base] [--cases 100] [--seed 0]

Each model has random weights of about a trained network's size: the tiny ones of the tests
(`tests/tiny_model.py`), and `demo`, `base` and `paper` in the shapes of configs/. Each is exported
by `vconv export`, which compares every part with the eager network at golden's fixed input, and
then run at as many random lengths and batch sizes as there are cases. With `--speed` the exported
decoder.ts of the presets draws beside the eager network called sample by sample, one lane, one
thread, both in turns. The last thing printed are the tables; docs/parity.md gets them between its
markers when all models were asked for.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

os.environ |= {"OMP_NUM_THREADS": "1", "VECLIB_MAXIMUM_THREADS": "1"}

import numpy as np
import torch
from sampler import LEAST_FOR, LEAST_TORCHSCRIPT, eager_row

# The tests' random models and inputs.
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

from random_cases import random_recordings, random_units
from tiny_model import MEMBERS, config_of, tensors_of, write_checkpoint_of
from vconv.audio import SAMPLE_RATE
from vconv.bench import Decoder
from vconv.bundle import CONDITIONER, DECODER, ENCODER, GOLDEN, Bundle
from vconv.config import Config, load_config
from vconv.engine_choice import nats_lost
from vconv.engines import create_engine
from vconv.engines.base import PRECISIONS
from vconv.export.bundle import export_run
from vconv.export.comparison import Comparison, difference, worst
from vconv.export.golden import joined
from vconv.export.torchscript import load_decoder
from vconv.export.verify import forced_logits
from vconv.export.verify_torch import conditioner_gap, encoder_gaps, load_network
from vconv.golden import LOGIT_STEPS, Floats, Golden
from vconv.timing import Trial, take_turns

ROOT = Path(__file__).resolve().parents[1]
PRESETS = ("demo", "base", "paper")
DOCUMENT = ROOT / "docs" / "parity.md"
TURN_SAMPLES = 320


@dataclass(frozen=True)
class Parity:
    """Of one model: figures for the tables, in the order of their columns."""

    name: str
    graphs: list[str]
    engines: list[str]
    failed: list[str]


def main() -> None:
    arguments = _parser().parse_args()
    everything = arguments.members is None and arguments.presets is None
    members = _chosen(arguments.members, MEMBERS, everything)
    presets = _chosen(arguments.presets, PRESETS, everything)
    torch.set_num_threads(1)
    rows, speeds = [], []
    with tempfile.TemporaryDirectory() as folder:
        for name, preset in (*((m, False) for m in members), *((p, True) for p in presets)):
            config = load_config(ROOT / "configs" / f"{name}.yaml") if preset else config_of(name)
            title = f"`{name}`" if preset else name
            path = Path(folder) / ("preset" if preset else "member") / name
            made = exported(config, path)
            rows.append(compare(title, Bundle.open(path), made, arguments.cases, arguments.seed))
            print(f"{title}: {rows[-1].graphs + rows[-1].engines}", file=sys.stderr, flush=True)
            if arguments.speed and preset:
                figures, slow = speed(Bundle.open(path), arguments.seconds)
                speeds.append([title, *figures])
                rows[-1].failed.extend(slow)
    text = tables(rows, speeds)
    print(text)
    if everything and arguments.speed:
        document = DOCUMENT.read_text("utf-8")
        between = re.compile(r"(?<=<!-- tables -->\n).*?(?=<!-- /tables -->)", re.DOTALL)
        DOCUMENT.write_text(between.sub(lambda _: text, document), "utf-8")
    failed = [f"{row.name}: {each}" for row in rows for each in row.failed]
    if failed:
        sys.exit("\n".join(["Beyond the bounds:", *failed]))


def exported(config: Config, path: Path) -> list[Comparison]:
    """Write the bundle of a random model; what the export itself compared, all of which passed."""
    path.parent.mkdir(exist_ok=True)
    checkpoint = path.parent / f"{path.name}-run" / "step-000000020"
    write_checkpoint_of(checkpoint, config, tensors_of(config.model))
    return export_run(checkpoint, path, name=path.name)


def compare(title: str, bundle: Bundle, made: list[Comparison], cases: int, seed: int) -> Parity:
    network, geometry = load_network(bundle), bundle.geometry
    golden = Golden.from_bytes(bundle.read(GOLDEN), GOLDEN)
    with torch.inference_mode():
        recordings = random_recordings(geometry, cases, seed)
        gaps = encoder_gaps(network, bundle.encoder(), bundle.codebook, recordings)
        units = joined(golden.latents, golden.pitch, bundle.pitch_prior)
        pairs = random_units(geometry, units, bundle.speaker_vectors, cases, seed)
        conditioning = conditioner_gap(network, bundle.conditioner(), pairs)
    random = [
        *gaps.comparisons("at random lengths"),
        Comparison(f"{CONDITIONER} at random lengths", conditioning, 1e-4),
    ]
    graphs = [
        f"{cases}",
        f"{gaps.codes:.0f} of {gaps.decided.sum():,}" if bundle.codebook is not None else "-",
        f"{gaps.latents:.1e}",
        "-" if gaps.pitch is None else f"{gaps.pitch:.1e}",
        f"{conditioning:.1e}",
        figure(made, f"{ENCODER}: latents in chunks"),
        figure(made, f"{CONDITIONER}: in chunks"),
        figure(made, f"eager logits against {GOLDEN}"),
    ]
    engines = [
        figure(made, f"{DECODER}: logits against"),
        figure(made, f"{DECODER}: logits in chunks"),
        figure(made, "torchscript engine: logits against"),
        *(reduced(bundle, golden, precision) for precision in PRECISIONS),
        figure(made, "native engine: in chunks"),
    ]
    return Parity(title, graphs, engines, [str(each) for each in random if not each.passed])


def reduced(bundle: Bundle, golden: Golden, precision: str) -> str:
    """The largest and the mean difference of the native engine's logits, and the nats a sample that
    its distributions lose."""
    weights = bundle.weights("decoder.wavenet.")
    engine = create_engine("native", weights, precision=precision, **bundle.engine_options())
    found = forced_logits(bundle, golden, engine)[:LOGIT_STEPS]
    mean = float(np.abs(found - golden.logits).mean())
    said = f"{difference(found, golden.logits):.1e}, {mean:.1e}"
    lost = nats_lost(golden.logits, found)
    return said if precision == "fp32" else f"{said}, {lost:.4f}"


def figure(made: Iterable[Comparison], name: str) -> str:
    """The worst figure of the comparisons whose names begin so."""
    found = [each.figure for each in made if each.name.startswith(name) and each.figure is not None]
    return f"{worst(*found):.1e}" if any(found) else "0" if found else "-"


def speed(bundle: Bundle, seconds: float) -> tuple[list[str], list[str]]:
    """decoder.ts and the eager network drawing one lane, in samples a second; and what is too slow
    of a network that is no larger than `base`: for that, not for `paper`, a bound is promised."""
    decoder = Decoder(bundle.weights("decoder.wavenet."), **bundle.engine_options())
    eager = eager_row(bundle.config.decoder, decoder).trial
    scripted = drawing(bundle)
    take_turns([scripted, eager], seconds, 9)
    ours, theirs = scripted.rate, eager.rate
    work, least = decoder.multiply_adds, max(LEAST_TORCHSCRIPT, 2 * theirs.median)
    slow = f"decoder.ts draws {ours.median:,.0f} samples/s, {least:,.0f} are needed"
    figures = [
        f"{work:,}",
        f"{ours.median:,.0f} ({ours.low:,.0f} to {ours.high:,.0f})",
        f"{theirs.median:,.0f} ({theirs.low:,.0f} to {theirs.high:,.0f})",
        f"{ours.median / theirs.median:.1f}",
        f"{ours.median / SAMPLE_RATE:.2f}",
    ]
    return figures, [slow] if work <= LEAST_FOR and ours.median < least else []


def drawing(bundle: Bundle) -> Trial:
    """The exported file at work: units to codes, its conditioner included."""
    scripted = load_decoder(bundle.path / DECODER)
    count = bundle.geometry.plan(TURN_SAMPLES).units
    latents = torch.randn(1, count, bundle.config.conditions)
    speaker: Floats = bundle.speaker_vectors[:1]
    voice = torch.from_numpy(np.array(speaker))
    uniforms = torch.rand(1, TURN_SAMPLES)
    with torch.inference_mode():
        state = scripted.initial_state(1)
        for _ in range(3):  # TorchScript optimises what it has seen
            _, state = scripted(latents, voice, uniforms, 1.0, state)

    def step() -> None:
        nonlocal state
        with torch.inference_mode():
            _, state = scripted(latents, voice, uniforms, 1.0, state)

    return Trial(TURN_SAMPLES, [step])


def tables(rows: list[Parity], speeds: list[list[str]]) -> str:
    """Markdown."""
    graphs = _table(
        "model | cases | codes that differ | latents | pitch | conditioning | encoder in chunks "
        "| conditioner in chunks | eager against golden",
        ([row.name, *row.graphs] for row in rows),
    )
    engines = _table(
        "model | decoder.ts | decoder.ts in chunks | torchscript | native fp32: largest, mean "
        "| native bf16: largest, mean, nats | native int8: largest, mean, nats | native in chunks",
        ([row.name, *row.engines] for row in rows),
    )
    parts = ["### Graphs", graphs, "### Generating", engines]
    if speeds:
        columns = "model | multiply-adds | decoder.ts | eager network | ratio | x real time"
        parts += ["### Speed of decoder.ts, samples a second", _table(columns, speeds)]
    return "\n\n".join(parts) + "\n"


def _table(head: str, rows: Iterable[list[str]]) -> str:
    lines = [head, " | ".join(["---"] * len(head.split("|"))), *map(" | ".join, rows)]
    return "\n".join(f"| {line} |" for line in lines)


def _chosen(names: str | None, known: Iterable[str], everything: bool) -> list[str]:
    if names is None:
        return list(known) if everything else []
    unknown = sorted(set(names.split(",")) - set(known))
    if unknown:
        sys.exit(f"There is no {', '.join(unknown)}; known are {', '.join(known)}.")
    return names.split(",")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--members", help="some of them, by name; the document then stays")
    parser.add_argument("--presets", help="some of them, by name; the document then stays")
    parser.add_argument("--cases", type=int, default=100, help="random lengths and batch sizes")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--speed", action="store_true", help="measure decoder.ts as well")
    parser.add_argument("--seconds", type=float, default=1.0, help="for all turns of a speed row")
    return parser


if __name__ == "__main__":
    main()
