"""Every member of the family under the same small budget: train, export, convert, compare.

    python benchmarks/family.py --corpus corpora/demo [--members vq,fsq] [--steps 400]

Each member is `configs/demo.yaml` with a few keys changed, trained by `vconv train` with the same
seed, windows and number of steps, exported by `vconv export`, and made to convert
examples/hello.wav by `vconv convert`. What is there already (a finished run, a bundle) is used
again, so an interrupted comparison goes on. The last thing printed are the tables, and
docs/family.md gets them between its markers.
"""

from __future__ import annotations

import argparse
import json
import math
import re
import shlex
import subprocess
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import repeat
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import soundfile

import vconv
from vconv.bundle import Bundle
from vconv.export.verify import Comparison, verify
from vconv.train.corpus import Corpus
from vconv.train.evaluation.model_figures import bits_per_second
from vconv.train.evaluation.probe import PROBE_SECONDS, accuracy, histograms, means

ROOT = Path(__file__).resolve().parents[1]
CONFIG = ROOT / "configs" / "demo.yaml"
DOCUMENT = ROOT / "docs" / "family.md"
EXAMPLE = ROOT / "examples" / "hello.wav"
SPEAKER = "12"
# What of an export is compared with the trained network's own numbers, by the comparisons' names.
PARITY = {
    "latents": "encoder.onnx: latents against golden",
    "conditioning": "conditioner.onnx: conditioning against golden",
    "native": "native engine: logits against golden",
    "torchscript": "torchscript engine: logits against golden",
    "decoder.ts": "decoder.ts: logits against golden",
}
PROBE_UTTERANCES = {"train": 16, "heldout": 8}  # of each speaker


@dataclass(frozen=True)
class Member:
    """One row: what it is called and the keys that make it."""

    name: str
    title: str
    keys: dict[str, object] = field(default_factory=dict)

    @property
    def changes(self) -> str:
        return ", ".join(f"`{key}: {value}`" for key, value in self.keys.items())


def _bottleneck(**keys: object) -> dict[str, object]:
    return {f"model.bottleneck.{key}": value for key, value in keys.items()}


MEMBERS = [
    Member("ae", "AE", _bottleneck(kind="ae")),
    Member("vae", "VAE", _bottleneck(kind="vae", kl_warmup=100)),
    Member("vq", "VQ by EMA", _bottleneck(kind="vq")),
    Member("vq-seed-1", "VQ by EMA, another seed", {"train.seed": 1}),
    Member("vq-gradient", "VQ by gradient", _bottleneck(kind="vq", update="gradient")),
    Member("fsq", "FSQ", _bottleneck(kind="fsq")),
    Member("inverter", "inverter", {"model.kind": "inverter"}),
    Member(
        "inverter-mfcc39",
        "inverter of MFCCs",
        {"model.kind": "inverter", "model.features.kind": "mfcc39"},
    ),
    Member("mfcc39", "VQ of MFCCs", {"model.features.kind": "mfcc39"}),
    Member("transposed", "VQ, transposed", {"model.decoder.upsampling": "transposed"}),
    Member("kernel-3", "VQ, kernel 3", {"model.decoder.kernel_size": 3}),
    Member("pitch", "VQ, told the pitch", {"model.decoder.pitch": "true"}),
    Member("instance-norm", "VQ, instance norm", {"model.encoder.instance_norm": 51}),
    Member(
        "augmented",
        "VQ, augmented",
        {
            "data.augment.gain_db": 6,
            "data.augment.equaliser_db": 9,
            "data.augment.noise_snr_db": 20,
            "data.augment.pitch_semitones": 4,
            "data.augment.formant": 0.2,
        },
    ),
]


def main() -> None:
    arguments = _parser().parse_args()
    wanted = arguments.members.split(",") if arguments.members else [m.name for m in MEMBERS]
    known = {member.name: member for member in MEMBERS}
    corpus = Corpus.open(arguments.corpus)
    rows = []
    for name in wanted:
        folder = Path(f"runs/family-{name}")
        result = folder / "family.json"
        if not result.is_file():
            figures = compare(known[name], folder, corpus, arguments.steps)
            result.write_text(json.dumps(figures, indent=1) + "\n", "utf-8")
        rows.append((known[name], json.loads(result.read_text("utf-8"))))
        print(f"{name}: {rows[-1][1]}", file=sys.stderr)
    text = tables(rows)
    print(text)
    if not arguments.members:
        document = DOCUMENT.read_text("utf-8")
        between = re.compile(r"(?<=<!-- tables -->\n).*?(?=<!-- /tables -->)", re.DOTALL)
        DOCUMENT.write_text(between.sub(lambda _: text, document), "utf-8")


def compare(member: Member, folder: Path, corpus: Corpus, steps: int) -> dict[str, object]:
    """Train, export, verify, convert and probe one member; its figures."""
    train(member, folder, corpus, steps)
    bundle = folder / "bundle"
    if not bundle.exists():
        _vconv("export", folder, "-o", bundle, "--name", member.name)
    made = verify(bundle, trust_code=True)
    converted = folder / "converted.wav"
    _vconv("convert", EXAMPLE, "-m", bundle, "-s", SPEAKER, "-o", converted, "--overwrite")
    manifest = Bundle.open(bundle).manifest
    by_codes, by_latents = name_speakers(bundle, corpus)
    return {
        "quality": manifest.quality,
        "bits_per_second": bits_per_second(manifest),
        "speaker_by_codes": by_codes,
        "speaker_by_latents": by_latents,
        "comparisons": len(made),
        "codes": _worst(made, "encoder.onnx: codes against golden"),
        **{name: _worst(made, begin) for name, begin in PARITY.items()},
        "level_db": _level_db(converted),
    }


def train(member: Member, folder: Path, corpus: Corpus, steps: int) -> None:
    """`vconv train`, resumed where it stands."""
    keys: dict[str, object] = {
        "data.corpus": corpus.path,
        "train.steps": steps,
        "train.final_decay": steps // 4,
        "train.warmup": 50,
        "train.average": 0.99,
        "train.validate_every": steps,
        "train.validate_windows": 250,
        "train.checkpoint_every": max(steps // 6, 1),
        "train.keep_last": 1,
        "model.bottleneck.warmup_steps": steps // 4,
        **member.keys,
    }
    settings = [part for key, value in keys.items() for part in ("--set", f"{key}={value}")]
    _vconv("train", CONFIG, "--run", folder.name, *settings)


def name_speakers(bundle: Path, corpus: Corpus) -> tuple[float | None, float]:
    """Held-out accuracy of a linear classifier that names the speaker from a second of units:
    from the histogram of their codes (None without codes), and from their latents' mean."""
    splits = {split: list(_seconds(bundle, corpus, split)) for split in PROBE_UTTERANCES}
    accuracies: list[float | None] = []
    for kind in (0, 1):
        train, heldout = (
            [(who, x) for who, *pooled in splits[split] if (x := pooled[kind]) is not None]
            for split in PROBE_UTTERANCES
        )
        accuracies.append(accuracy(train, heldout) if train else None)
    latents = accuracies[1]
    assert latents is not None
    return accuracies[0], latents


Pooled = tuple[int, "npt.NDArray[np.floating] | None", "npt.NDArray[np.floating]"]


def _seconds(bundle: Path, corpus: Corpus, split: str) -> Iterator[Pooled]:
    """(speaker, histogram of codes [K], mean latent [D]) of each whole second of some
    utterances, without the silence around them."""
    codebook = Bundle.open(bundle).codebook
    utterances, pad = corpus.utterances, corpus.pad_samples
    with vconv.load(bundle) as converter:
        length = round(PROBE_SECONDS * converter.info.unit_rate)
        for speaker in range(len(corpus.speakers)):
            held = utterances.heldout if split == "heldout" else ~utterances.heldout
            own = np.flatnonzero(held & (utterances.speaker == speaker))
            for index in own[:: max(1, len(own) // PROBE_UTTERANCES[split])]:
                samples = int(utterances.length[index]) - 2 * pad
                wav = corpus.excerpt(int(index), pad, samples)
                units = converter.encode(wav, sample_rate=corpus.sample_rate)
                latents = units.latents if codebook is None else codebook[units.codes]
                assert latents is not None
                counted: Iterator[npt.NDArray[np.floating] | None] = repeat(None)
                if codebook is not None and units.codes is not None:
                    counted = histograms(units.codes, len(codebook), length)
                # The counts are the longer where there are none.
                for mean, histogram in zip(means(latents, length), counted, strict=False):
                    yield speaker, histogram, mean


def _worst(made: list[Comparison], name: str) -> float | None:
    """The greatest figure among the comparisons whose names begin so."""
    found = [c.figure for c in made if c.name.startswith(name) and c.figure is not None]
    return max(found, default=None)


def _level_db(path: Path) -> float:
    wav, _ = soundfile.read(path)
    return 10 * math.log10(float(np.mean(np.square(wav))) + 1e-12)


def _vconv(*arguments: object) -> None:
    """Run the command, its messages passed on."""
    command = [sys.executable, "-m", "vconv", *map(str, arguments)]
    print("$ " + shlex.join(command[1:]), file=sys.stderr, flush=True)
    subprocess.run(command, check=True)


Figures = dict[str, Any]


def tables(rows: list[tuple[Member, Figures]]) -> str:
    """The comparison as Markdown: what was learned, and that it was exported whole."""
    learned = _table(
        "member | changes | held-out NLL | other latents | another speaker | bit/s | codes in use "
        "| speaker by codes | by latents",
        (
            [
                member.title,
                member.changes or "-",
                f"{figures['quality']['heldout_nll']:.3f}",
                _interval(figures["quality"], "probe_latents"),
                _interval(figures["quality"], "probe_speaker"),
                _text(figures["bits_per_second"], ",.0f"),
                _text(figures["quality"].get("heldout_codes_used"), ".0%"),
                _text(figures["speaker_by_codes"], ".0%"),
                _text(figures["speaker_by_latents"], ".0%"),
            ]
            for member, figures in rows
        ),
    )
    exported = _table(
        "member | comparisons | codes that differ | latents | conditioning | native | torchscript "
        "| decoder.ts | converted, dB RMS",
        (
            [
                member.title,
                f"{figures['comparisons']}",
                _text(figures["codes"], ".0f"),
                *(_text(figures[name], ".1e") for name in PARITY),
                f"{figures['level_db']:.1f}",
            ]
            for member, figures in rows
        ),
    )
    return f"{learned}\n\n{exported}\n"


def _table(head: str, rows: Iterable[list[str]]) -> str:
    lines = [head, " | ".join(["---"] * len(head.split("|"))), *map(" | ".join, rows)]
    return "\n".join(f"| {line} |" for line in lines)


def _interval(quality: Figures, name: str) -> str:
    mean, low, high = (quality[name + suffix] for suffix in ("", "_low", "_high"))
    return f"{mean:+.3f} [{low:.3f}, {high:.3f}]"


def _text(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--corpus", required=True, help="prepared as docs/demo-model.md says")
    parser.add_argument("--members", help="some of them, by name; the document then stays")
    parser.add_argument("--steps", type=int, default=400)
    return parser


if __name__ == "__main__":
    main()
