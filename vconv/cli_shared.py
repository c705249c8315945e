"""What the commands share: options, the handling of signals, the line that an error becomes."""

from __future__ import annotations

import os
from typing import Annotated

import typer

from .errors import SetupError, VconvError
from .interruption import Interruption
from .messages import say

JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]
ModelOption = Annotated[
    str, typer.Option("-m", "--model", help="A bundled model's name, or a bundle's folder.")
]

interruption = Interruption()

# The base of typer's own usage errors, whichever click it is built on.
_CommandLineError: type[Exception] = typer.BadParameter.__mro__[2]


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
