"""The command that measures conversion, mounted by ``cli``: ``evaluate``."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any

import typer

from .cli_shared import JsonOption
from .errors import SetupError, UsageError
from .messages import emit, say

_PACKAGES = (
    *("resemblyzer", "webrtcvad", "pkg_resources", "pocketsphinx", "rapidfuzz", "pesq", "pystoi"),
    *("speechmos", "torch", "torchaudio", "librosa", "matplotlib", "sklearn", "scipy", "filelock"),
)


def evaluate(
    bundle: Annotated[
        str, typer.Argument(help="A bundled model's name, or a bundle's folder.", metavar="BUNDLE")
    ],
    pairs: Annotated[
        Path,
        typer.Argument(
            help="A JSONL file: a manifest of recordings, or a list of items.", metavar="PAIRS"
        ),
    ],
    output: Annotated[Path, typer.Option("-o", "--output", help="The report's folder.")],
    sentences: Annotated[
        int | None, typer.Option(min=1, help="Of a manifest: held-out sentences; by default 40.")
    ] = None,
    sources: Annotated[
        str | None, typer.Option(help="Of a manifest: voices, separated by commas; by default 6.")
    ] = None,
    targets: Annotated[
        str | None, typer.Option(help="Voices, separated by commas; by default all.")
    ] = None,
    content_voices: Annotated[
        str | None,
        typer.Option(help="Targets that the recogniser judges; by default those it understands."),
    ] = None,
    jobs: Annotated[
        int | None, typer.Option("-j", "--jobs", min=1, help="Processes; by default one per CPU.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the draws.")] = 0,
    temperature: Annotated[float, typer.Option(help="Of the draws.")] = 1.0,
    precision: Annotated[str, typer.Option(help="auto, fp32, bf16 or int8.")] = "auto",
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Begin again where another evaluation is.")
    ] = False,
    as_json: JsonOption = False,
    quiet: Annotated[bool, typer.Option("-q", "--quiet", help="Say only errors.")] = False,
) -> int:
    """Measure how well a model converts: voice, content, pitch, sound."""
    if not 0 <= temperature < math.inf:
        raise UsageError(f"--temperature: must be 0 or more, found {temperature:g}.")
    if not 0 <= seed < 2**64:
        raise UsageError(f"--seed: must be 0 to 2^64 - 1, found {seed}.")
    for name in _PACKAGES:
        if find_spec(name) is None:
            raise _missing(name)
    # Before numpy is loaded, here and in the processes: each works on one thread.
    os.environ |= {"OMP_NUM_THREADS": "1", "VECLIB_MAXIMUM_THREADS": "1"}
    try:
        from vconv.train.evaluation.run import Request
        from vconv.train.evaluation.run import evaluate as run_evaluate
    except ImportError as error:
        raise _missing(error.name or "a package") from error
    report = run_evaluate(
        Request(
            bundle=bundle,
            pairs=pairs,
            output=output,
            sentences=sentences,
            sources=_names("--sources", sources),
            targets=_names("--targets", targets),
            content_voices=_names("--content-voices", content_voices),
            jobs=jobs,
            seed=seed,
            temperature=temperature,
            precision=precision,
            overwrite=overwrite,
            quiet=quiet,
        )
    )
    for warning in [] if quiet else report["warnings"]:
        say(f"vconv: warning: {warning}")
    emit(json.dumps(report, indent=1) if as_json else described(report))
    return 0


def described(report: Mapping[str, Any]) -> str:
    """The report as a table and the limits."""
    kinds = ("source", "target", "copy", "conversion")
    lines = [f"{'':46}" + "".join(f"{kind:>11}" for kind in kinds) + "   95 % of the last"]
    for figure in report["figures"].values():
        title = figure["title"] + (
            f", {figure['unit']}" if figure["unit"] not in ("", "share") else ""
        )
        cells = "".join(f"{_told(figure[kind], figure['unit']):>11}" for kind in kinds)
        last = figure["conversion"]
        span = (
            ""
            if last is None or last["low"] is None
            else f"{last['low']:.3f} to {last['high']:.3f}"
        )
        lines.append(f"{title:46}{cells}   {span}")
    eer = report["equal_error_rate"]
    cells = "".join(f"{_told(eer.get(kind), 'share'):>11}" for kind in kinds)
    lines.append(f"{'equal error rate':46}{cells}")
    lines.append("")
    for name in ("perplexity", "codes_used", "bits_per_second", "speaker_probe"):
        value = report["model"][name]
        lines.append(f"{name.replace('_', ' '):46}{'-' if value is None else f'{value:11.3f}'}")
    lines.append("")
    for check in report["checks"]:
        verdict = {True: "met", False: "MISSED", None: "not judged"}[check["met"]]
        figure, limit = (
            "-" if check[key] is None else f"{check[key]:.3f}" for key in ("figure", "limit")
        )
        lines.append(f"{check['name']:56}{figure:>9} {check['sense']} {limit:8} {verdict}")
    return "\n".join(lines)


def _told(found: Mapping[str, Any] | None, unit: str) -> str:
    if found is None:
        return "-"
    return f"{100 * found['mean']:.1f} %" if unit == "share" else f"{found['mean']:.3f}"


def _names(option: str, text: str | None) -> list[str] | None:
    if text is None:
        return None
    names = [name.strip() for name in text.split(",")]
    if not all(names):
        raise UsageError(f"{option}: expected names separated by commas, found {text!r}.")
    return names


def _missing(package: str) -> SetupError:
    return SetupError(
        f"{package} is missing; install what this command needs: pip install 'vconv[eval]'."
    )
