"""The tab "Compare": one recording in several voices, or with several settings, side by side."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import gradio as gr

from vconv.errors import UsageError

from . import pictures
from .buttons import connect
from .conversion import RATE, Doing, Stopped, Wish, convert, wish
from .convert_tab import doing, file_part
from .settings import COMPARED
from .site import Site, sentence
from .stage import Track, escape, hint, message, progress, stage

_RANGE_HZ = 60.0, 350.0  # the same for all, or they could not be compared
_TEMPERATURES = [0.0, 0.5, 0.8, 1.0]


def build(site: Site, model: gr.Dropdown) -> gr.Dropdown:
    """Draw the tab; returns the choice of voices."""
    names = site.shelf.voices(site.shelf.default)
    with gr.Row(equal_height=False):
        with gr.Column(scale=4, min_width=280):
            audio = gr.Audio(
                label="Recording to compare with",
                sources=["upload", "microphone"],
                type="filepath",
                elem_id="compare-audio",
                buttons=[],
            )
        with gr.Column(scale=6, min_width=280):
            voices = gr.Dropdown(
                names,
                value=names[:2],
                multiselect=True,
                max_choices=COMPARED,
                label="Voices",
                elem_id="compare-voices",
            )
            with gr.Row():
                temperatures = gr.CheckboxGroup(
                    [(f"{each:g}", each) for each in _TEMPERATURES],
                    value=[1.0],
                    label="Temperatures",
                    info="each voice with each of them",
                )
                readings = gr.Slider(
                    1, 3, 1, step=1, label="Readings", info="of each, by seeds 0, 1, 2"
                )
            token = gr.Textbox(visible=False)
            with gr.Row():
                go = gr.Button("Compare", variant="primary", scale=3, elem_id="compare-go")
                cancel = gr.Button("Cancel", scale=1, min_width=90, elem_id="compare-cancel")
    status = gr.HTML("", elem_id="compare-status")
    result = gr.HTML(
        hint(
            "The same words, side by side",
            [f"Up to {COMPARED} results of one recording, each to hear and to see."],
        ),
        elem_id="compare-result",
    )

    def run(
        path: str | None,
        voices: list[str],
        temperatures: list[float],
        readings: float,
        model: str,
        token: str,
        request: gr.Request,
    ) -> Iterator[tuple[Any, Any]]:
        form = (voices, temperatures, readings)
        for said, shown in compared(site, str(request.session_hash), token, model, path, form):
            yield said, gr.skip() if shown is None else shown

    inputs = [audio, voices, temperatures, readings, model, token]
    connect(site, "compare", go, cancel, run, inputs, [status, result])
    return voices


def wishes(voices: Sequence[str], temperatures: Sequence[float], readings: float) -> list[Wish]:
    """Every combination, at most ``COMPARED``; UsageError otherwise."""
    if not voices:
        raise UsageError("No voice is chosen; choose one or more.")
    seeds = range(max(1, int(readings or 1)))
    made = [
        wish(voice, temperature=degree, seed=seed)
        for voice, degree, seed in product(voices, temperatures or [1.0], seeds)
    ]
    if len(made) > COMPARED:
        raise UsageError(
            f"These are {len(made)} results, and {COMPARED} can be compared at a time; choose "
            "fewer voices, temperatures or readings."
        )
    return made


def compared(
    site: Site, session: str, token: str | None, model: str, path: str | None, form: Sequence[Any]
) -> Iterator[tuple[str, str | None]]:
    """(status, result) as HTML; cards appear as they are made."""
    folder: Path | None = None
    cards: list[str] = []
    try:
        if not path:
            raise UsageError("There is no recording yet; record or upload one first.")
        wanted = wishes(*form)
        site.files.uses(session, path)
        with site.jobs.begin(session, token) as job:
            yield progress("Preparing", None), None
            converter = site.shelf.converter(model)
            folder = site.files.folder(session)
            for number, each in enumerate(wanted):
                what = f"{number + 1} of {len(wanted)}: {each.speaker}"
                job.over.clear()
                limit = site.settings.max_seconds
                for step in convert(converter, path, each, job, folder, max_seconds=limit):
                    if isinstance(step, Doing):
                        yield doing(step, what), None
                        continue
                    if not cards:
                        cards.append(_card(site, session, folder, path, step.source, None, step))
                    cards.append(_card(site, session, folder, path, step.result, each, step))
                    yield progress(what, 1.0), _cards(cards)
            yield "", _cards(cards)
    except Stopped:
        kept = " What is finished stays." if cards else ""
        yield message(f"Cancelled.{kept}"), _cards(cards) if cards else None
    except Exception as error:
        yield message(sentence(error), "error"), None
    finally:
        if folder is not None and not cards:
            site.files.discard(folder)


def _cards(cards: Sequence[str]) -> str:
    return f'<div class="vc-cards">{"".join(cards)}</div>'


def _card(
    site: Site,
    session: str,
    folder: Path,
    path: str,
    sound: Any,
    wanted: Wish | None,
    done: Any,
) -> str:
    from vconv.audio import write_atomic

    stem = Path(path).stem
    if wanted is None:
        title, name, kind = "Your recording", f"{stem}.wav", "vc-is-source"
        file = folder / "source.wav"
    else:
        details = [f"temperature {wanted.temperature:g}", f"seed {wanted.seed}"]
        title, kind = f"{done.speaker}, {', '.join(details)}", "vc-is-result"
        part = f"{file_part(done.speaker)}-t{wanted.temperature:g}-s{wanted.seed}"
        name = f"{stem}.{part}.wav"
        file = folder / f"{part}.wav"
    with write_atomic(file, RATE) as writer:
        writer.write(sound.clip(-1, 1))
    mel = pictures.mel_image(pictures.log_mel(sound))
    seconds = len(sound) / RATE
    url = site.files.offer(session, file, name)
    track = Track(
        done.speaker if wanted else "Your recording",
        url,
        seconds,
        mel,
        download=name if wanted else None,
        kind=kind,
        titled=False,
    )
    label = "recording" if wanted is None else "result"
    pitches = [(label, kind, *pictures.f0(sound))]
    return (
        f'<div class="vc-card"><h3>{escape(title)}</h3>'
        f"{stage([track], pitches=pitches, seconds=seconds, range_hz=_RANGE_HZ)}</div>"
    )
