"""The tab "Convert": a recording in, the same words in another voice out."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import gradio as gr

from vconv.errors import UsageError, VconvError

from . import pictures
from .buttons import connect
from .conversion import RATE, Doing, Done, Stopped, convert, mixture, wish
from .site import Site, sentence
from .stage import Track, facts, hint, message, play_button, progress, stage

LEVELS = [
    ("As the model speaks", "keep"),
    ("As loud as the recording", "match"),
    ("Peak at -1 dB", "peak"),
]
NO_SECOND = "(none)"


def build(site: Site, model: Any) -> list[Any]:
    """Draw the tab; returns the components that list voices: voice, second voice, sample."""
    names = site.shelf.voices(site.shelf.default)
    first = site.shelf.first_voice(site.shelf.default)
    with gr.Row(equal_height=False):
        with gr.Column(scale=4, min_width=300):
            audio = gr.Audio(
                label="Your recording",
                sources=["upload", "microphone"],
                type="filepath",
                elem_id="convert-audio",
                buttons=[],
                waveform_options=gr.WaveformOptions(
                    waveform_color="#9aa6a5", waveform_progress_color="#0f766e"
                ),
            )
            gr.HTML('<div class="vc-sample">Or take one of these:</div>')
            with gr.Row(elem_classes="vc-examples"):
                examples = [
                    (gr.Button(f"Example {names[index]}", size="sm", min_width=80), index)
                    for index in example_voices(site)
                ]
            voice = gr.Dropdown(
                names, value=first, label="Voice", filterable=True, elem_id="convert-voice"
            )
            sample = gr.HTML(voice_sample(site, site.shelf.default, first))
            with gr.Accordion("More settings", open=False):
                second = gr.Dropdown(
                    [NO_SECOND, *names], value=NO_SECOND, label="Mix with a second voice"
                )
                share = gr.Slider(
                    0, 1, 0.5, step=0.05, label="Share of the second voice", info="0 none, 1 all"
                )
                temperature = gr.Slider(
                    0, 1.2, 1, step=0.05, label="Temperature", info="lower is calmer"
                )
                seed = gr.Number(
                    0, label="Seed", info="another number, another reading", precision=0, minimum=0
                )
                level = gr.Radio(LEVELS, value="keep", label="Loudness")
            token = gr.Textbox(visible=False)
            with gr.Row():
                go = gr.Button("Convert", variant="primary", scale=3, elem_id="convert-go")
                cancel = gr.Button("Cancel", scale=1, min_width=90, elem_id="convert-cancel")
        with gr.Column(scale=6, min_width=300):
            status = gr.HTML("", elem_id="convert-status")
            result = gr.HTML(
                hint(
                    "Hear yourself as somebody else",
                    [
                        "Record something, upload a file, or take an example.",
                        "Choose a voice.",
                        "Press Convert: you hear it while it is being made.",
                    ],
                ),
                elem_id="convert-result",
            )

    def run(
        path: str | None,
        voice: str,
        second: str,
        share: float,
        seed: float,
        temperature: float,
        level: str,
        model: str,
        token: str,
        request: gr.Request,
    ) -> Iterator[tuple[Any, Any]]:
        chosen = None if second == NO_SECOND else second
        form = (voice, chosen, share, seed, temperature, level)
        for said, shown in converted(site, str(request.session_hash), token, model, path, form):
            yield said, gr.skip() if shown is None else shown

    def example(index: int, model: str, request: gr.Request) -> str | None:
        return example_file(site, str(request.session_hash), model, index)

    inputs = [audio, voice, second, share, seed, temperature, level, model, token]
    connect(site, "convert", go, cancel, run, inputs, [status, result], live=True).then(
        None, js="() => { window.vconv.ended('convert-result'); }", api_visibility="private"
    )
    voice.change(
        lambda model, voice: voice_sample(site, model, voice),
        [model, voice],
        sample,
        queue=False,
        show_progress="hidden",
        api_visibility="private",
    )
    for button, index in examples:
        _on_example(button, index, example, model, audio)
    return [voice, second, sample]


def _on_example(button: Any, index: int, example: Any, model: Any, audio: Any) -> None:
    def take(model: str, request: gr.Request) -> str | None:
        found: str | None = example(index, model, request)
        return found

    button.click(take, [model], audio, queue=False, api_visibility="private")


def example_voices(site: Site) -> list[int]:
    """Up to three voices with a clip, spread over the table."""
    model = site.shelf.default
    count = len(site.shelf.voices(model))
    spread = dict.fromkeys([0, count // 2, count - 1])
    return [index for index in spread if site.shelf.sample(model, index) is not None]


def example_file(site: Site, session: str, model: str, index: int) -> str | None:
    """A copy of a voice's clip, as if it had been uploaded."""
    try:
        clip = site.shelf.sample(model, index)
        if clip is None:
            return None
        copy = site.files.folder(session) / f"{site.shelf.voices(model)[index]}{clip.suffix}"
    except (VconvError, IndexError):
        return None
    shutil.copyfile(clip, copy)
    return str(copy)


def voice_sample(site: Site, model: str, voice: str) -> str:
    """A button that plays a voice's clip."""
    try:
        index = site.shelf.voices(model).index(voice)
        clip = site.shelf.sample(model, index)
    except (VconvError, ValueError):
        return ""
    if clip is None:
        return '<div class="vc-sample">The model has no sample of this voice.</div>'
    button = play_button(f"a sample of {voice}", f"page/voice/{model}/{index}")
    return f'<div class="vc-sample">{button}<span>How this voice sounds</span></div>'


def converted(
    site: Site, session: str, token: str | None, model: str, path: str | None, form: Sequence[Any]
) -> Iterator[tuple[str, str | None]]:
    """(status, result) as HTML, again and again; no result is None. Errors become sentences."""
    folder: Path | None = None
    try:
        if not path:
            raise UsageError("There is no recording yet; record, upload or choose one first.")
        voice, second, share, *settings = form
        wanted = wish(mixture(voice, second, share), *settings)
        site.files.uses(session, path)
        with site.jobs.begin(session, token) as job:
            yield progress("Preparing", None), None
            converter = site.shelf.converter(model)
            folder = place = site.files.folder(session)
            limit = site.settings.max_seconds
            for each in convert(converter, path, wanted, job, folder, max_seconds=limit):
                if isinstance(each, Doing):
                    yield doing(each), None
                    continue
                yield progress("Drawing", 1.0, f"{each.seconds:.1f} s"), None
                shown = shown_result(site, session, place, converter, path, each)
                folder = None
                yield "".join(message(note) for note in each.notes), shown
    except Stopped:
        yield message("Cancelled; nothing of it was kept."), None
    except Exception as error:
        yield message(sentence(error), "error"), None
    finally:
        if folder is not None:
            site.files.discard(folder)


def doing(each: Doing, what: str = "Converting") -> str:
    if each.seconds is None:
        return progress(what, None, f"{each.done:.1f} s done")
    part = each.done / max(each.seconds, 1e-9)
    return progress(what, part, f"{min(each.done, each.seconds):.1f} of {each.seconds:.1f} s")


def shown_result(
    site: Site, session: str, folder: Path, converter: Any, path: str, done: Done
) -> str:
    """Source and result with all that there is to see, and the figures."""
    from vconv.audio import write_atomic

    stem = Path(done.name).stem
    name = f"{stem}.{file_part(done.speaker)}.wav"
    sounds = {"source": done.source, "result": done.result}
    for which, sound in sounds.items():
        with write_atomic(folder / f"{which}.wav", RATE) as writer:
            writer.write(sound.clip(-1, 1) if which == "source" else sound)
    mels = {which: pictures.log_mel(sound) for which, sound in sounds.items()}
    tracks = [
        Track(
            "Your recording",
            site.files.offer(session, folder / "source.wav", f"{stem}.wav"),
            len(done.source) / RATE,
            pictures.mel_image(mels["source"]),
            kind="vc-is-source",
        ),
        Track(
            f"As {done.speaker}",
            site.files.offer(session, folder / "result.wav", name),
            done.seconds,
            pictures.mel_image(mels["result"]),
            download=name,
            kind="vc-is-result",
        ),
    ]
    codes = converter.encode(path).codes
    units = None if codes is None else (pictures.units_image(codes), len(codes))
    pitches = [
        (label, f"vc-is-{which}", *pictures.f0(sounds[which]))
        for which, label in (("source", "recording"), ("result", "result"))
    ]
    seconds = max(done.seconds, len(done.source) / RATE)
    figures = [
        ("seconds", f"{done.seconds:.2f}"),
        ("to convert", f"{done.elapsed_seconds:.2f} s"),
        ("real time", f"{done.real_time_factor:.1f} x"),
    ]
    if codes is not None:
        figures.append(("different units", f"{len(set(codes.tolist()))} of {len(codes)}"))
    return stage(tracks, pitches=pitches, units=units, seconds=seconds) + facts(figures)


def file_part(speaker: str) -> str:
    """A speaker's name as part of a file's."""
    return "".join(c if c.isalnum() or c in "-_." else "_" for c in speaker)[:60]
