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

from .cli_convert import convert, decode, encode
from .cli_demo import demo
from .cli_evaluate import evaluate
from .cli_shared import JsonOption, ModelOption, interruption, report_error
from .cli_training import export, plot, prepare, takes, train
from .errors import ModelError
from .messages import emit, log_on_stderr, say

app = typer.Typer(
    name="vconv",
    add_completion=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Voice conversion: say something in any voice, hear it in a chosen speaker's.",
)


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


@app.command()
def speakers(model: ModelOption = "demo", as_json: JsonOption = False) -> int:
    """List a model's speakers: index and name."""
    from .bundle import Bundle
    from .reading import printable

    names = Bundle.find(model).speakers.names
    if as_json:
        emit(json.dumps([{"index": index, "name": name} for index, name in enumerate(names)]))
    else:
        emit("\n".join(f"{index}\t{printable(name)}" for index, name in enumerate(names)))
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
    # Before numpy is loaded: its products, and torch's, would take all processors, and the figures
    # are those of a thread.
    os.environ |= {"OMP_NUM_THREADS": "1", "VECLIB_MAXIMUM_THREADS": "1"}
    from .bench import bench as run_bench
    from .bench import checked_lanes, describe

    report = run_bench(
        model, seconds=seconds, lanes=checked_lanes(lanes), engine=engine, threads=threads
    )
    emit(json.dumps(report.json(), indent=1) if as_json else describe(report))
    for note in report.notes:
        say(f"vconv: note: {note}")
    return 0


@app.command()
def doctor(model: ModelOption = "demo", as_json: JsonOption = False) -> int:
    """Say whether vconv works on this machine, and what to do where it does not."""
    from .doctor import describe, examine

    diagnosis = examine(model)
    emit(json.dumps(diagnosis.json(), indent=1) if as_json else describe(diagnosis))
    return diagnosis.exit_code


for _speaking in (convert, encode, decode):
    app.command(no_args_is_help=False)(_speaking)
for _verb in (prepare, train, takes, plot, evaluate, export, demo):
    app.command()(_verb)


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run the command line and leave with its exit code."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    options = arguments[: arguments.index("--")] if "--" in arguments else arguments
    debug = "--debug" in options
    # An option whose value may be left out is more than typer knows.
    options = ["--ray=auto" if a == "--ray" else a for a in options]
    arguments = [a for a in options if a != "--debug"] + arguments[len(options) :]
    # `train` has handlers of its own while it runs.
    interruption.install()
    sys.exit(_run(arguments, debug))


def _run(arguments: list[str], debug: bool) -> int:
    try:
        code = app(args=arguments, prog_name="vconv", standalone_mode=False)
        return int(code or 0)
    except Exception as error:
        if debug:
            traceback.print_exc()
        return report_error(error)
