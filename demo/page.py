"""The page: its tabs, its theme, and what becomes of a session when it ends."""

from __future__ import annotations

from typing import Any

import gradio as gr

from vconv.errors import VconvError

from . import api, batch_tab, compare_tab, convert_tab, model_tab, training_tab
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
        model = gr.Dropdown(site.shelf.names, value=site.shelf.default, label="Model", render=False)
        with gr.Tabs():
            with gr.Tab("Convert", id="convert"):
                voice, second, sample = convert_tab.build(site, model)
            with gr.Tab("Compare", id="compare"):
                compared = compare_tab.build(site, model)
            with gr.Tab("Batch", id="batch"):
                batched = batch_tab.build(site, model)
            with gr.Tab("Model", id="model"):
                shown = model_tab.build(site, model)
            with gr.Tab("Training", id="training"):
                training_tab.build(site)
        api.build(site)
        gr.HTML(
            '<div class="vc-foot">Convert to voices that you may use, and say that a recording '
            "was converted. Recordings stay on the computer that runs this page and are removed "
            f"when it is closed; at most {escape(f'{site.settings.max_seconds:g}')} s each.</div>"
        )

        def leave(request: gr.Request) -> None:
            site.end_session(str(request.session_hash))

        def choose(name: str) -> tuple[Any, ...]:
            try:
                names = site.shelf.voices(name)
            except VconvError:
                return (*(gr.skip() for _ in range(5)), model_tab.shown(site, name))
            first = site.shelf.first_voice(name)
            return (
                gr.Dropdown(choices=names, value=first),
                gr.Dropdown(choices=[convert_tab.NO_SECOND, *names], value=convert_tab.NO_SECOND),
                convert_tab.voice_sample(site, name, first),
                gr.Dropdown(choices=names, value=names[:2]),
                gr.Dropdown(choices=names, value=first),
                model_tab.shown(site, name),
            )

        model.input(
            choose,
            model,
            [voice, second, sample, compared, batched, shown],
            queue=False,
            show_progress="hidden",
            api_visibility="private",
        )
        page.unload(leave)
    page.queue(max_size=site.settings.queue, default_concurrency_limit=4, api_open=False)
    return page
