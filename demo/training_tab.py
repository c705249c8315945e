"""The tab "Training": a run's curves as it goes, and what it makes of the same sentences."""

from __future__ import annotations

from typing import Any

import gradio as gr

from vconv.errors import VconvError

from . import runs
from .charts import charts
from .site import Site, sentence
from .stage import Track, escape, facts, hint, message, stage

_EVERY_SECONDS = 5.0


def build(site: Site) -> None:
    """Draw the tab. Runs that appear later are found by its button."""
    folder = site.settings.runs
    names = runs.run_names(folder)
    first = names[0] if names else None
    with gr.Row(equal_height=True):
        run = gr.Dropdown(
            names, value=first, label="Run", elem_id="training-run", scale=4, min_width=200
        )
        again = gr.Button("Look again", scale=1, min_width=120)
    state = gr.HTML(head(site, first), elem_id="training-head")
    curves = gr.HTML(drawn(site, first), elem_id="training-curves")
    steps = _steps(site, first)
    step = gr.Dropdown(
        steps,
        value=steps[0] if steps else None,
        label="Sample conversions of step",
        elem_id="training-step",
        visible=bool(steps),
    )
    heard = gr.HTML(samples(site, first, steps[0] if steps else None), elem_id="training-samples")
    timer = gr.Timer(_EVERY_SECONDS)
    quiet: dict[str, Any] = {
        "queue": False,
        "show_progress": "hidden",
        "api_visibility": "private",
    }

    def look(name: str | None) -> tuple[Any, ...]:
        there = runs.run_names(folder)
        chosen = name if name in there else (there[0] if there else None)
        return gr.Dropdown(choices=there, value=chosen), *choose(chosen)

    def choose(name: str | None) -> tuple[Any, ...]:
        steps = _steps(site, name)
        newest = steps[0] if steps else None
        return (
            head(site, name),
            drawn(site, name),
            gr.Dropdown(choices=steps, value=newest, visible=bool(steps)),
            samples(site, name, newest),
        )

    seen: dict[str, float] = {}

    def tick(name: str | None, request: gr.Request) -> tuple[Any, Any]:
        path = runs.find_run(folder, name) if name else None
        if path is None:
            return gr.skip(), gr.skip()
        # Curves are sent again only when there is something new in them.
        key, written = f"{request.session_hash}/{name}", runs.written_at(path)
        new = seen.get(key) != written
        if len(seen) > 1000:
            seen.clear()
        seen[key] = written
        return head(site, name), drawn(site, name) if new else gr.skip()

    again.click(look, run, [run, state, curves, step, heard], **quiet)
    run.input(choose, run, [state, curves, step, heard], **quiet)
    step.input(lambda name, step: samples(site, name, step), [run, step], heard, **quiet)
    timer.tick(tick, run, [state, curves], **quiet)


def head(site: Site, name: str | None) -> str:
    """Where the run stands, and the line that goes on with it."""
    path = runs.find_run(site.settings.runs, name) if name else None
    if path is None or name is None:
        return hint(
            "No training run here",
            [
                f"Runs are looked for in {site.settings.runs}; vconv demo --runs FOLDER names "
                "another place.",
                "vconv train configs/demo.yaml begins one.",
            ],
        )
    try:
        steps = runs.read_metrics(path)
    except VconvError as error:
        return message(sentence(error), "error")
    last = max(steps)
    wanted = runs.config_keys(path).get("train") or {}
    total = wanted.get("steps") if isinstance(wanted, dict) else None
    saved = runs.checkpoints(path)
    newest: dict[str, float] = {}
    for row in steps.values():
        newest.update(row)
    figures = [("step", f"{last:,}" + (f" of {total:,}" if isinstance(total, int) else ""))]
    figures += [
        (label, f"{newest[key]:{form}}")
        for key, label, form in (
            ("heldout_nll", "nats, held out", ".3f"),
            ("heldout_perplexity", "perplexity, held out", ".0f"),
            ("times_real_time", "times real time", ".2f"),
        )
        if key in newest
    ]
    if saved:
        figures.append(("newest checkpoint", f"{saved[-1]:,}"))
    live = runs.is_live(path)
    word = "training" if live else "not training"
    ago = _ago(runs.seconds_ago(path))
    return (
        f'<div class="vc-live{" vc-on" if live else ""}"><i></i>{word}; last figures {ago} ago'
        f"</div>{facts(figures)}"
        '<div class="vc-sample">Go on with it, where it was started:</div>'
        f'<div class="vc-code" tabindex="0">{escape(resume_line(name))}</div>'
    )


def resume_line(name: str) -> str:
    """The command that goes on where the run stopped."""
    import shlex

    return f"vconv train {shlex.quote(f'runs/{name}/config.yaml')} --run {shlex.quote(name)}"


def drawn(site: Site, name: str | None) -> str:
    """The run's curves; what is wrong with them has been said above."""
    path = runs.find_run(site.settings.runs, name) if name else None
    if path is None:
        return ""
    try:
        return f'<div class="vc-section">{charts(runs.read_metrics(path))}</div>'
    except VconvError:
        return ""


def samples(site: Site, name: str | None, step: str | None) -> str:
    """What was converted at a step: source and result, with the picture that training drew."""
    path = runs.find_run(site.settings.runs, name) if name else None
    if path is None or not step:
        return ""
    cards = []
    for each in runs.conversions(path, step):
        tracks = []
        for label, file, kind in (
            ("Source", each.source, "vc-is-source"),
            ("Result", each.result, "vc-is-result"),
        ):
            sound = runs.sample_file(path, step, file)
            if sound is None:
                continue
            url = f"page/run/{name}/{step}/{file}"
            tracks.append(Track(label, url, each.seconds, _picture(sound), kind=kind))
        if tracks:
            cards.append(
                f'<div class="vc-card"><h3>{escape(each.title)}</h3>'
                f"{stage(tracks, seconds=each.seconds)}</div>"
            )
    return f'<div class="vc-cards">{"".join(cards)}</div>' if cards else ""


def _picture(sound: Any) -> str | None:
    import numpy as np

    from vconv.reading import read_blocks

    from .pictures import log_mel, mel_image

    try:
        with read_blocks(sound, max_seconds=60) as reader:
            return mel_image(log_mel(np.concatenate([*reader])))
    except VconvError:
        return None


def _steps(site: Site, name: str | None) -> list[str]:
    path = runs.find_run(site.settings.runs, name) if name else None
    return runs.sample_steps(path) if path else []


def _ago(seconds: float) -> str:
    for size, unit in ((86_400, "day"), (3600, "hour"), (60, "minute"), (1, "second")):
        if seconds >= size:
            count = int(seconds // size)
            return f"{count} {unit}{'s' if count > 1 else ''}"
    return "a moment"
