"""What matters for the bundled model: one choice changed at a time, the same small budget.

    python benchmarks/recipe.py --corpus corpora/demo --voices voices/manifest.jsonl [--rows base]

Every row is `configs/demo.yaml` with the keys of `BASE` and its own, trained by `vconv train` on
the same windows in the same order, exported, and measured by `vconv evaluate` on the same held-out
sentences (needs the extra `eval`). What is there already (a run, a bundle, a report) is used again,
so an interrupted comparison goes on. The last thing printed is the table, and docs/recipe.md gets
it between its markers.
"""

from __future__ import annotations

import argparse
import json
import re
import shlex
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
CONFIG = ROOT / "configs" / "demo.yaml"
DOCUMENT = ROOT / "docs" / "recipe.md"
STEPS = 400
# A few voices far apart: a woman's, a man's, a diphone voice, three formant synthesisers.
TARGETS = "slt,awb,kal,es-david,es-pablo,es-scot-jacky"
PLAN = ("--sentences", "4", "--sources", "rms,es-steph2", "--targets", TARGETS)

BASE: Mapping[str, object] = {
    "model.encoder.width": 160,
    "model.encoder.instance_norm": 51,
    "model.decoder.residual_channels": 48,
    "model.decoder.gate_channels": 48,
    "model.decoder.skip_channels": 128,
    "model.decoder.layers": 9,
    "model.bottleneck.warmup_steps": STEPS // 4,
    "train.optimizer": "muon",
    "train.steps": STEPS,
    "train.final_decay": STEPS // 4,
    "train.warmup": 40,
    "train.average": 0.99,
    "train.validate_every": STEPS,
    "train.validate_windows": 250,
    "train.checkpoint_every": STEPS // 4,
    "train.keep_last": 1,
}


@dataclass(frozen=True)
class Row:
    """A choice: the group it belongs to, what is chosen, and the keys that choose it."""

    name: str
    group: str
    choice: str
    keys: Mapping[str, object] = field(default_factory=dict)


def _sizes(residual: int, skip: int) -> dict[str, object]:
    widths = {"residual_channels": residual, "gate_channels": residual, "skip_channels": skip}
    return {f"model.decoder.{key}": value for key, value in widths.items()}


ROWS = (
    Row("base", "", "the recipe"),
    Row("seed-1", "", "another seed", {"train.seed": 1}),
    Row("adamw-1e-3", "optimiser", "AdamW, 1e-3", {"train.optimizer": "adamw"}),
    Row(
        "adamw-2e-3",
        "optimiser",
        "AdamW, 2e-3",
        {"train.optimizer": "adamw", "train.learning_rate": 2e-3},
    ),
    Row("muon-2e-3", "optimiser", "Muon, 2e-3", {"train.learning_rate": 2e-3}),
    Row("width-32", "decoder", "32 / 96 channels", _sizes(32, 96)),
    Row("width-64", "decoder", "64 / 128 channels", _sizes(64, 128)),
    Row(
        "no-norm",
        "normalisation",
        "statistics of the corpus",
        {"model.encoder.instance_norm": None},
    ),
    Row("mfcc39", "features", "MFCC with deltas", {"model.features.kind": "mfcc39"}),
    Row("preemphasis-0", "pre-emphasis", "none", {"model.audio.preemphasis": 0.0}),
    Row("preemphasis-95", "pre-emphasis", "0.95", {"model.audio.preemphasis": 0.95}),
    Row("codes-512", "codebook", "512 codes", {"model.bottleneck.codebook_size": 512}),
    Row("start-0", "codebook", "quantised from step 0", {"model.bottleneck.warmup_steps": 0}),
    Row(
        "window-2560",
        "window",
        "8 windows of 2,560",
        {"data.window": 2560, "train.batch": 8},
    ),
    Row(
        "augmented",
        "augmentation",
        "gain, equaliser, noise, pitch, formants",
        {
            "data.augment.gain_db": 6,
            "data.augment.equaliser_db": 9,
            "data.augment.noise_snr_db": 20,
            "data.augment.pitch_semitones": 4,
            "data.augment.formant": 0.2,
        },
    ),
)


def main() -> None:
    arguments = _parser().parse_args()
    wanted = arguments.rows.split(",") if arguments.rows else [row.name for row in ROWS]
    rows = [row for row in ROWS if row.name in wanted]
    for row in rows:
        measure(row, arguments.corpus, arguments.voices)
    text = table([row for row in ROWS if _report(row).is_file()])
    print(text)
    document = DOCUMENT.read_text("utf-8")
    between = re.compile(r"(?<=<!-- table -->\n).*?(?=<!-- /table -->)", re.DOTALL)
    DOCUMENT.write_text(between.sub(lambda _: text, document), "utf-8")


def measure(row: Row, corpus: str, voices: str) -> None:
    """Train, export and evaluate one row, as far as that is not done yet."""
    if _report(row).is_file():
        return
    folder = _folder(row)
    bundle = folder / "bundle"
    keys = {"data.corpus": corpus, **BASE, **row.keys}
    settings = [
        part
        for key, value in keys.items()
        for part in ("--set", f"{key}={'null' if value is None else value}")
    ]
    if not bundle.exists():
        _vconv("train", CONFIG, "--run", folder.name, *settings)
        _vconv("export", folder, "-o", bundle, "--name", row.name)
    _vconv("evaluate", bundle, voices, "-o", folder / "report", *PLAN, "-q")


def table(rows: list[Row]) -> str:
    """The comparison as Markdown."""
    head = (
        "choice | changed to | held-out NLL | other latents | another speaker | codes in use "
        "| speaker by codes | cosine of copies | of conversions | MCD of copies, dB "
        "| of conversions | dropped frames of copies"
    )
    lines = [head, " | ".join(["---"] * len(head.split("|")))]
    for row in rows:
        report = json.loads(_report(row).read_text("utf-8"))
        quality, figures, model = report["bundle"]["quality"], report["figures"], report["model"]
        cells = [
            row.group or "-",
            row.choice,
            f"{quality['heldout_nll']:.3f}",
            f"{quality['probe_latents']:+.3f}",
            f"{quality['probe_speaker']:+.3f}",
            f"{quality['heldout_codes_used']:.0%}",
            f"{model['speaker_probe']:.0%}",
            _mean(figures, "cosine_target", "copy", ".3f"),
            _mean(figures, "cosine_target", "conversion", ".3f"),
            _mean(figures, "mcd", "copy", ".2f"),
            _mean(figures, "mcd", "conversion", ".2f"),
            _mean(figures, "dropped", "copy", ".0%"),
        ]
        lines.append(" | ".join(cells))
    return "\n".join(f"| {line} |" for line in lines) + "\n"


def _mean(figures: Mapping[str, Any], name: str, of: str, form: str) -> str:
    found = figures[name][of]
    return "-" if found is None else format(found["mean"], form)


def _folder(row: Row) -> Path:
    return Path(f"runs/recipe-{row.name}")


def _report(row: Row) -> Path:
    return _folder(row) / "report" / "report.json"


def _vconv(*arguments: object) -> None:
    """Run the command, its messages passed on."""
    command = [sys.executable, "-m", "vconv", *map(str, arguments)]
    print("$ " + shlex.join(command[1:]), file=sys.stderr, flush=True)
    subprocess.run(command, check=True)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--corpus", required=True, help="prepared as docs/demo-model.md says")
    parser.add_argument("--voices", required=True, help="the manifest it was prepared from")
    parser.add_argument("--rows", help="some of them, by name")
    return parser


if __name__ == "__main__":
    main()
