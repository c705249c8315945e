"""The page: its tabs, its theme, and what becomes of a session when it ends."""

from __future__ import annotations

from typing import Any

import gradio as gr

from . import convert_tab
from .site import Site
from .stage import escape

TITLE = "vconv"


def build(site: Site) -> Any:
    """The page as Gradio's Blocks."""
    with gr.Blocks(title=TITLE, analytics_enabled=False, delete_cache=(600, 3600)) as page:
        gr.HTML(
            '<header class="vc-head"><h1>v<span>conv</span></h1>'
            "<p>Say something in any voice, hear it in another.</p></header>"
        )
        model = gr.Dropdown(
            site.shelf.names, value=site.shelf.default, label="Model", render=False
        )
        with gr.Tabs():
            with gr.Tab("Convert", id="convert"):
                convert_tab.build(site, model)
            with gr.Tab("Model", id="model"):
                model.render()
        gr.HTML(
            '<div class="vc-foot">Convert to voices that you may use, and say that a recording '
            "was converted. Recordings stay on the computer that runs this page and are removed "
            f"when it is closed; at most {escape(f'{site.settings.max_seconds:g}')} s each.</div>"
        )

        def leave(request: gr.Request) -> None:
            site.end_session(str(request.session_hash))

        page.unload(leave)
    page.queue(max_size=site.settings.queue, default_concurrency_limit=4, api_open=False)
    return page
