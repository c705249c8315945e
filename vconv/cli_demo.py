"""The command ``demo``, mounted by ``cli``: the web page of vconv.demo."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Annotated

import typer

from .cli_shared import ModelOption
from .errors import UsageError
from .messages import log_on_stderr, say


def demo(
    model: ModelOption = "demo",
    runs: Annotated[
        Path, typer.Option("--runs", metavar="FOLDER", help="Where training runs lie.")
    ] = Path("runs"),
    host: Annotated[
        str, typer.Option(help="The address to answer at; 0.0.0.0 is all of this machine's.")
    ] = "127.0.0.1",
    port: Annotated[
        int | None, typer.Option(help="By default 7860, or the next one that is free.")
    ] = None,
    share: Annotated[
        bool, typer.Option("--share", help="A public link through Gradio's servers, for a week.")
    ] = False,
    open_browser: Annotated[
        bool, typer.Option("--open/--no-open", help="Show the page in a browser.")
    ] = True,
    max_seconds: Annotated[
        float, typer.Option(metavar="SECONDS", help="Refuse longer recordings.")
    ] = 300.0,
    queue: Annotated[
        int, typer.Option(metavar="N", help="How many may wait; others are told to come later.")
    ] = 20,
) -> int:
    """Show a web page for converting, comparing, and looking at models and training runs."""
    if not 1 <= max_seconds <= 36_000:
        raise UsageError(f"--max-seconds: allowed are 1 to 36000, found {max_seconds:g}.")
    if not 1 <= queue <= 10_000:
        raise UsageError(f"--queue: allowed are 1 to 10000, found {queue}.")
    from vconv.demo.serve import serving
    from vconv.demo.settings import Settings

    settings = Settings(model=model, runs=runs, max_seconds=max_seconds, queue=queue)
    with log_on_stderr(), serving(settings, host=host, port=port, share=share) as served:
        say(f"vconv: the page is at {served.url} (Ctrl-C ends it)")
        if served.share_url:
            say(f"vconv: for everybody who knows the address: {served.share_url}")
        if open_browser:
            import webbrowser

            threading.Thread(target=webbrowser.open, args=(served.url,), daemon=True).start()
        threading.Event().wait()  # until a signal comes
    return 0
