"""What a tab's two buttons do: begin its work, and cancel it wherever it stands."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import gradio as gr

from .site import Site


def connect(
    site: Site,
    tab: str,
    go: Any,
    cancel: Any,
    run: Callable[..., Any],
    inputs: Sequence[Any],
    outputs: Sequence[Any],
    *,
    queue: str = "voice",
    at_once: int = 2,
    live: bool = False,
) -> Any:
    """Returns the event of beginning.

    ``inputs``: the last of them is the token of the job, which the page draws (page.js);
    ``outputs``: the first of them says how far the work is; ``queue``: what shares a name waits
    for one of ``at_once`` places; ``live``: the page plays the result while it is made.
    """

    def stop(token: str, request: gr.Request) -> None:
        site.jobs.stop(str(request.session_hash), token)

    heard = "true" if live else "false"
    begun = go.click(
        run,
        [*inputs],
        [*outputs],
        js=f"(...inputs) => window.vconv.begin('{tab}', inputs, {heard})",
        concurrency_id=queue,
        concurrency_limit=at_once,
        show_progress="minimal",
        show_progress_on=[outputs[0]],
        api_visibility="private",
        trigger_mode="once",
    )
    cancel.click(
        stop,
        [inputs[-1]],
        None,
        js=f"() => window.vconv.stop('{tab}')",
        queue=False,
        api_visibility="private",
    )
    return begun
