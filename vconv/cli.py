"""The command line. Data goes to stdout; messages and bars go to stderr.

Commands import what they need when they run, so that ``vconv -h`` is quick and converting needs
no torch; the exit codes are those of ``errors`` (0 done, 1 some inputs failed, 128 + signal).
"""

from __future__ import annotations

import json
import os
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, NoReturn

import typer

from .cli_training import JsonOption, export, plot, prepare, train
from .errors import ModelError, SetupError, VconvError
from .interruption import Interruption
from .messages import emit, log_on_stderr, say

app = typer.Typer(
    name="vconv",
    add_completion=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Voice conversion: say something in any voice, hear it in a chosen speaker's.",
)
# The base of typer's own usage errors, whichever click it is built on.
_CommandLineError: type[Exception] = typer.BadParameter.__mro__[2]
_interruption = Interruption()

ModelOption = Annotated[
    str, typer.Option("-m", "--model", help="A bundled model's name, or a bundle's folder.")
]


@app.callback(invoke_without_command=True)
def _root(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
    debug: Annotated[
        bool, typer.Option("--debug", help="Show the traceback of an error (anywhere).")
    ] = False,
) -> None:
    if version:
        from . import __version__

        emit(__version__)
    elif context.invoked_subcommand is None:
        say(context.get_help())
        raise typer.Exit(2)


@app.command(no_args_is_help=False)
def convert(
    inputs: Annotated[
        list[str], typer.Argument(metavar="INPUT", help="Recordings, folders, or - for stdin.")
    ],
    speaker: Annotated[
        str,
        typer.Option("-s", "--speaker", help="Name, index, index:N, or a mixture a:0.7,b:0.3."),
    ],
    output: Annotated[
        str | None,
        typer.Option(
            "-o",
            "--output",
            help="A file for one input, a folder for several, - for stdout; by default "
            "<stem>.<speaker>.wav beside the input.",
        ),
    ] = None,
    model: ModelOption = "demo",
    device: Annotated[str, typer.Option("-d", "--device", help="auto, cpu or cuda[:N].")] = "auto",
    engine: Annotated[str, typer.Option(help="auto, native or torchscript.")] = "auto",
    precision: Annotated[
        str, typer.Option(help="auto, fp32, bf16 or int8: how the native engine keeps weights.")
    ] = "auto",
    seed: Annotated[int, typer.Option(help="Same seed, same bytes.")] = 0,
    temperature: Annotated[
        float, typer.Option(help="Of the draws: 1 as trained, 0 the likeliest.")
    ] = 1.0,
    pitch: Annotated[
        float,
        typer.Option(
            metavar="SEMITONES", help="Speak higher, or lower; of a model trained with pitch."
        ),
    ] = 0.0,
    lanes: Annotated[
        str,
        typer.Option(help="auto or a number: pieces of a recording that are generated together."),
    ] = "auto",
    recursive: Annotated[
        bool, typer.Option("-r", "--recursive", help="Look into sub-folders.")
    ] = False,
    format_name: Annotated[
        str | None, typer.Option("-f", "--format", help="wav, flac, ogg or mp3.")
    ] = None,
    sample_rate: Annotated[
        int | None, typer.Option(help="The output's rate in Hz; by default the model's.")
    ] = None,
    level: Annotated[
        str, typer.Option(help="keep, match (the input's loudness) or peak (-1 dB).")
    ] = "keep",
    channel: Annotated[
        int | None, typer.Option(help="Take this channel (from 0); by default the mean.")
    ] = None,
    allow_truncated: Annotated[
        bool, typer.Option("--allow-truncated", help="Convert what is there of a cut file.")
    ] = False,
    max_duration: Annotated[
        float | None, typer.Option(help="Refuse recordings longer than so many seconds.")
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace outputs that exist.")
    ] = False,
    skip_existing: Annotated[
        bool, typer.Option("--skip-existing", help="Pass over outputs that exist.")
    ] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object a file on stdout.")
    ] = False,
    quiet: Annotated[bool, typer.Option("-q", "--quiet", help="Only errors and warnings.")] = False,
    verbose: Annotated[bool, typer.Option("-v", "--verbose", help="Say more.")] = False,
) -> int:
    """Say recordings in a speaker's voice."""
    from .convert_command import Options, convert_all

    return convert_all(
        inputs,
        output,
        Options(
            model=model,
            device=device,
            engine=engine,
            precision=precision,
            speaker=speaker,
            seed=seed,
            temperature=temperature,
            pitch=pitch,
            lanes=lanes,
            level=level,
            format_name=format_name,
            sample_rate=sample_rate,
            channel=channel,
            allow_truncated=allow_truncated,
            max_duration=max_duration,
            recursive=recursive,
            overwrite=overwrite,
            skip_existing=skip_existing,
            as_json=as_json,
            quiet=quiet,
            verbose=verbose,
        ),
        report_error,
        _interruption,
    )


@app.command()
def speakers(model: ModelOption = "demo", as_json: JsonOption = False) -> int:
    """List a model's speakers: index and name."""
    from .bundle import Bundle

    names = Bundle.find(model).speakers.names
    if as_json:
        emit(json.dumps([{"index": index, "name": name} for index, name in enumerate(names)]))
    else:
        emit("\n".join(f"{index}\t{name}" for index, name in enumerate(names)))
    return 0


@app.command()
def info(model: ModelOption = "demo", as_json: JsonOption = False) -> int:
    """Say what a model is, how good it is and what it was trained on."""
    from .bundle import Bundle
    from .describe import describe, describe_json

    manifest = Bundle.find(model).manifest
    emit(json.dumps(describe_json(manifest), indent=1) if as_json else describe(manifest))
    return 0


@app.command()
def verify(
    bundle: Annotated[Path, typer.Argument(help="The bundle's folder.")],
    trust_code: Annotated[
        bool,
        typer.Option("--trust-code", help="Run its decoder.ts too: code of whoever wrote it."),
    ] = False,
    as_json: JsonOption = False,
) -> int:
    """Hold every part of a bundle against its golden figures and its weights, by number."""
    from dataclasses import asdict

    from vconv.export.verify import verify as run_verify

    with log_on_stderr():
        made = run_verify(bundle, trust_code=trust_code)
    if as_json:
        emit(json.dumps([asdict(each) | {"passed": each.passed} for each in made]))
    else:
        emit("\n".join(map(str, made)))
    failed = [each.name for each in made if not each.passed]
    if failed:
        raise ModelError(
            f"{bundle}: {len(failed)} of {len(made)} comparisons failed, the first: {failed[0]}."
        )
    return 0


@app.command()
def bench(
    model: ModelOption = "demo",
    seconds: Annotated[float, typer.Option(help="How long each row is measured.")] = 0.2,
    lanes: Annotated[
        str, typer.Option(help="Numbers of streams drawn together, separated by commas.")
    ] = "1,4,16",
    engine: Annotated[
        str, typer.Option(help="native or torchscript; auto: all that can run here.")
    ] = "auto",
    threads: Annotated[
        int, typer.Option(help="Threads that draw at the same time, each its own lanes.")
    ] = 1,
    as_json: JsonOption = False,
) -> int:
    """Measure how fast a model is on this machine."""
    from .bench import bench as run_bench
    from .bench import checked_lanes, describe

    report = run_bench(
        model, seconds=seconds, lanes=checked_lanes(lanes), engine=engine, threads=threads
    )
    emit(json.dumps(report.json(), indent=1) if as_json else describe(report))
    for note in report.notes:
        say(f"vconv: note: {note}")
    return 0


for _verb in (prepare, train, plot, export):
    app.command()(_verb)


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run the command line and leave with its exit code."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    options = arguments[: arguments.index("--")] if "--" in arguments else arguments
    debug = "--debug" in options
    arguments = [a for a in options if a != "--debug"] + arguments[len(options) :]
    # `train` has handlers of its own while it runs.
    _interruption.install()
    sys.exit(_run(arguments, debug))


def _run(arguments: list[str], debug: bool) -> int:
    try:
        code = app(args=arguments, prog_name="vconv", standalone_mode=False)
        return int(code or 0)
    except Exception as error:
        if debug:
            traceback.print_exc()
        return report_error(error)


def report_error(error: Exception) -> int:
    """Print an error as one line on stderr; returns the exit code that it asks for."""
    code = 1
    if isinstance(error, VconvError):
        text, code = str(error), error.exit_code
    elif isinstance(error, _CommandLineError):
        text, code = error.format_message(), 2  # type: ignore[attr-defined]
    elif isinstance(error, MemoryError):
        text, code = "there is not enough memory.", SetupError.exit_code
    else:
        what = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
        text = f"this is a fault of vconv's ({what}); --debug shows where."
    say(f"vconv: error: {_printable(text)}")
    return code


def _printable(text: str | os.PathLike[str]) -> str:
    from .reading import printable

    return printable(text)
