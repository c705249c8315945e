"""The commands that make models, mounted by ``cli``: ``prepare``, ``train``, ``takes``, ``plot``,
``export``.

What they need beyond converting is imported when they run; where it is missing they say so.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any

import typer

from .cli_shared import JsonOption
from .errors import SetupError, UsageError
from .messages import emit, log_on_stderr, say


def prepare(
    source: Annotated[
        Path,
        typer.Argument(
            help="A folder per speaker, VCTK, LibriSpeech, LibriTTS, or a CSV or JSONL manifest."
        ),
    ],
    output: Annotated[Path, typer.Option("-o", "--output", help="The corpus folder.")],
    heldout: Annotated[
        float, typer.Option(help="Share of each speaker's recordings held out.")
    ] = 0.02,
    trim: Annotated[bool, typer.Option("--trim", help="Cut silence off both ends.")] = False,
    pad_seconds: Annotated[
        float, typer.Option(help="Silence before and after each recording, at most 60.")
    ] = 0.5,
    licence: Annotated[str, typer.Option(help="A note kept with the corpus.")] = "",
    jobs: Annotated[
        int | None, typer.Option("-j", "--jobs", help="Processes; by default one per CPU.")
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace the corpus there.")
    ] = False,
    as_json: JsonOption = False,
) -> int:
    """Prepare recordings as a corpus to train on."""
    if not 0 <= pad_seconds <= 60:
        raise UsageError(f"--pad-seconds: allowed are 0 to 60, found {pad_seconds:g}.")
    _require("train", "torch", "torchaudio")
    with _extra("train"):
        from vconv.train.prepare import prepare as run_prepare
    from .audio import SAMPLE_RATE
    from .reading import printable

    report = run_prepare(
        source,
        output,
        heldout=heldout,
        trim=trim,
        pad_samples=round(pad_seconds * SAMPLE_RATE),
        licence=licence,
        jobs=jobs,
        overwrite=overwrite,
    )
    if as_json:
        from dataclasses import asdict

        emit(json.dumps(asdict(report)))
        return 0
    say(f"{printable(source)}: taken for {report.layout}")
    for note in report.notes:
        say(f"note: {printable(note)}")
    for what, why in report.rejected:
        say(f"left out {printable(what)}: {why}")
    say(
        f"{printable(output)}: {report.utterances:,} utterances of "
        f"{len(report.hours_per_speaker):,} speakers, {report.hours:.2f} h, "
        f"{report.heldout_utterances:,} held out; {len(report.rejected):,} left out, "
        f"{len(report.clipped):,} clipped, {len(report.silent):,} silent"
    )
    return 0


def train(
    config: Annotated[Path, typer.Argument(help="A YAML configuration.")],
    run: Annotated[
        str | None, typer.Option(help="The run's name; by default the config's.")
    ] = None,
    overrides: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Change a key.")
    ] = None,
    resume: Annotated[
        str, typer.Option(help="auto, never, or the path of a run or checkpoint.")
    ] = "auto",
    smoke_test: Annotated[
        bool, typer.Option("--smoke-test", help="Only a few steps, with all that belongs to them.")
    ] = False,
    nproc: Annotated[
        int, typer.Option(min=1, help="Processes on this machine: one for each GPU.")
    ] = 1,
    elastic_exact: Annotated[
        bool,
        typer.Option("--elastic-exact", help="The same bits with any number of processes."),
    ] = False,
) -> int:
    """Train a model, or go on with a run that was interrupted."""
    from vconv.train.naming import run_name

    from .config import load_config

    overrides = [*(overrides or ()), *(["train.elastic_exact=true"] if elastic_exact else ())]
    # What is wrong with them is said before torch is loaded, and by one process.
    run_name(run, load_config(config, overrides), config)
    _require("train", "torch", "torchaudio", "tensorboard", "sklearn")
    with _extra("train"):
        if nproc > 1:
            from vconv.train.launch import launch_training

            return launch_training(
                nproc, config, run=run, overrides=overrides, resume=resume, smoke_test=smoke_test
            )
        from vconv.train.run import train_command
    with _enough_memory():
        return train_command(
            config, run=run, overrides=overrides, resume=resume, smoke_test=smoke_test
        )


def takes(
    run: Annotated[Path, typer.Argument(help="A run's folder, or one of its checkpoints.")],
    output: Annotated[Path, typer.Option("-o", "--output", help="The file of takes.")],
    utterances: Annotated[int, typer.Option(help="Recordings of each speaker.")] = 24,
    candidates: Annotated[int, typer.Option(help="Continuations to choose from, at most 64.")] = 6,
    seconds: Annotated[float, typer.Option(help="Of each recording, at most 60.")] = 3.0,
    seed: Annotated[int, typer.Option(help="Of what is drawn.")] = 0,
    corpus: Annotated[
        Path | None, typer.Option(help="The run's corpus, where it has been moved.")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the file there.")] = False,
    as_json: JsonOption = False,
) -> int:
    """Let a model speak training recordings, to be trained on what it said best."""
    _require("train", "torch", "torchaudio")
    with _extra("train"):
        from vconv.train.takes import make_takes
    from .reading import printable

    with _enough_memory("--seconds, --candidates", "make them smaller."):
        report = make_takes(
            run,
            output,
            utterances=utterances,
            candidates=candidates,
            seconds=seconds,
            seed=seed,
            corpus=corpus,
            overwrite=overwrite,
        )
    for sentence in report.skipped:
        say(f"skipped: {printable(sentence)}")
    if as_json:
        from dataclasses import asdict

        emit(json.dumps(asdict(report)))
        return 0
    say(
        f"{printable(output)}: {report.takes:,} takes of {report.speakers:,} speakers, "
        f"{report.seconds / 60:.1f} min, by {printable(report.checkpoint)} ({report.engine}); "
        f"of {report.candidates} candidates and the kept: log-mel {report.mel[0]:.3f} and "
        f"{report.mel[1]:.3f}, voice {report.voice[0]:.3f} and {report.voice[1]:.3f} off"
    )
    return 0


def plot(
    runs: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="RUN", help="A run's folder, its name below runs/, or a metrics.jsonl."
        ),
    ] = None,
    config: Annotated[
        Path | None,
        typer.Option("-c", "--config", help="A JSON or YAML file of defaults for these options."),
    ] = None,
    output: Annotated[
        list[str] | None,
        typer.Option(
            "-o",
            "--output",
            help="A .png, .svg, .pdf, .jpg or .webp; may be repeated. By default <run>.png here.",
        ),
    ] = None,
    keys: Annotated[
        list[str] | None,
        typer.Option(
            "-k", "--keys", help="A panel of these metrics: nll,heldout_nll or probe_*; repeat."
        ),
    ] = None,
    x: Annotated[
        str | None, typer.Option("--x", help="steps, samples or hours; by default steps.")
    ] = None,
    title: Annotated[str | None, typer.Option(help="By default a single run's name.")] = None,
    x_label: Annotated[str | None, typer.Option(help="By default what --x says.")] = None,
    y_label: Annotated[str | None, typer.Option(help="In the place of each panel's unit.")] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace figures that exist.")
    ] = False,
) -> int:
    """Draw the curves of training runs."""
    with _extra("train"):
        from vconv.train.plot import plot_command
    plot_command(
        runs or [],
        config=config,
        output=output,
        keys=keys,
        x=x,
        title=title,
        x_label=x_label,
        y_label=y_label,
        overwrite=overwrite or None,
    )
    return 0


def export(
    run: Annotated[Path, typer.Argument(help="A run's folder, or one of its checkpoints.")],
    output: Annotated[Path, typer.Option("-o", "--output", help="The bundle's folder.")],
    checkpoint: Annotated[
        str | None, typer.Option(help="Another than the run's newest: step-000010000, or a path.")
    ] = None,
    name: Annotated[str | None, typer.Option(help="The model's; by default the run's.")] = None,
    samples: Annotated[
        Path | None, typer.Option(help="A folder with a recording <speaker>.wav of each voice.")
    ] = None,
    command: Annotated[str | None, typer.Option(help="How it was trained, to be noted.")] = None,
    statement: Annotated[
        str | None, typer.Option(help="What it was trained on, to be noted.")
    ] = None,
    licence: Annotated[
        str | None, typer.Option(help="The data's terms; by default the corpus's.")
    ] = None,
    limits: Annotated[str, typer.Option(help="What it is not fit for, to be noted.")] = "",
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace the bundle there.")
    ] = False,
    as_json: JsonOption = False,
) -> int:
    """Export a trained run as a bundle, and prove the two equal."""
    from dataclasses import asdict

    with _extra("export"):
        from vconv.export.bundle import export_run
        from vconv.export.checkpoint import find_checkpoint
    from .bundle import Bundle
    from .engines.base import MAX_COST
    from .reading import printable

    with log_on_stderr():
        speech, level_db = _heldout_speech(find_checkpoint(run, checkpoint))
        made = export_run(
            run,
            output,
            checkpoint=checkpoint,
            name=name,
            samples=samples,
            command=command,
            statement=statement,
            licence=licence,
            limits=limits,
            speech=None if isinstance(speech, str) else speech,
            input_level_db=level_db,
            overwrite=overwrite,
        )
    if isinstance(speech, str):
        say(f"reduced precisions are not offered, nor are inputs brought to a level: {speech}")
    for precision, cost in Bundle.open(output).manifest.precisions.items():
        offered = "offered" if cost < MAX_COST else f"not offered: {MAX_COST:g} are allowed"
        say(f"{precision} costs {cost:+.4f} nats a sample of held-out speech ({offered})")
    if as_json:
        emit(json.dumps([asdict(each) | {"passed": each.passed} for each in made]))
    say(f"{printable(output)}: exported; {len(made)} comparisons passed")
    return 0


def _require(extra: str, *packages: str) -> None:
    """SetupError if a package is missing that is imported late: after hours, perhaps."""
    for package in packages:
        with _extra(extra):
            if find_spec(package) is None:
                raise ModuleNotFoundError(f"No module named {package!r}", name=package)


def _heldout_speech(checkpoint: Path) -> tuple[tuple[list[Any], int] | str, float | None]:
    """For what export judges on it, or why there is none, and its level: see ``train.speech``."""
    try:
        from vconv.train.speech import heldout_level, heldout_speech
    except ImportError as error:
        return f"{error.name or 'a package'} is missing, which reading the corpus needs", None
    return heldout_speech(checkpoint), heldout_level(checkpoint)


@contextmanager
def _extra(name: str) -> Iterator[None]:
    """Imports of an optional part; a package that is missing becomes one sentence."""
    try:
        yield
    except ImportError as error:
        raise SetupError(
            f"{error.name or 'a package'} is missing ({error}); install what this command "
            f"needs: pip install 'vconv[{name}]'."
        ) from error


@contextmanager
def _enough_memory(
    what: str = "train.batch, data.window, model",
    remedy: str = "make train.decode_batch, train.batch or data.window smaller, or the model.",
) -> Iterator[None]:
    """Around training: memory that is not there becomes one sentence, saying what takes less."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        # torch has no type of its own for what a CPU's allocator says.
        lacking = (
            "out of memory",
            "can't allocate memory",
            "not enough memory",
            "size calculation",
        )
        if not isinstance(error, MemoryError) and not any(each in str(error) for each in lacking):
            raise
        raise SetupError(f"{what}: there is not enough memory for them; {remedy}") from error
