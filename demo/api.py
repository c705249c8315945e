"""The page's named endpoints, for programs: /convert, /speakers, /models, /info.

A conversion takes the same way as on the page, and its place in the same queue.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import gradio as gr

from vconv.errors import UsageError, VconvError

from .conversion import RATE, Done, Wish, convert, wish
from .convert_tab import file_part
from .site import Site, sentence


def build(site: Site) -> None:
    """Declare the endpoints; nothing of them is seen on the page."""
    with gr.Column(visible=False):
        audio = gr.Audio(type="filepath", label="audio", sources=["upload"])
        speaker = gr.Textbox(label="speaker")
        seed = gr.Number(0, label="seed", precision=0)
        temperature = gr.Number(1.0, label="temperature")
        level = gr.Textbox("keep", label="level")
        model = gr.Textbox(site.shelf.default, label="model")
        made = gr.Audio(label="converted", interactive=False)
        facts = gr.JSON(label="facts")
        listed = gr.JSON(label="list")
        press = [gr.Button() for _ in range(4)]

    def convert_one(
        audio: str,
        speaker: str,
        seed: float,
        temperature: float,
        level: str,
        model: str,
        request: gr.Request,
    ) -> tuple[str, dict[str, Any]]:
        """Convert a recording to a speaker: a name, an index or a mixture ("slt:0.7,awb:0.3").
        Gives the converted file (WAV, 16 kHz) and what is known of it."""
        with _sentences():
            return _converted(
                site,
                str(request.session_hash),
                audio,
                wish(speaker, seed, temperature, level),
                model,
            )

    def speakers(model: str) -> list[dict[str, Any]]:
        """The voices of a model: index and name."""
        with _sentences():
            names = site.shelf.voices(model)
            return [{"index": index, "name": name} for index, name in enumerate(names)]

    def models() -> list[str]:
        """The names of the models that can be asked for, the page's own first."""
        return site.shelf.names

    def info(model: str) -> dict[str, Any]:
        """What a model says of itself, as ``vconv info --json``."""
        from vconv.describe import describe_json

        with _sentences():
            return describe_json(site.shelf.bundle(model).manifest)

    press[0].click(
        convert_one,
        [audio, speaker, seed, temperature, level, model],
        [made, facts],
        api_name="convert",
        concurrency_id="voice",
        concurrency_limit=2,
    )
    press[1].click(speakers, [model], [listed], api_name="speakers")
    press[2].click(models, [], [listed], api_name="models")
    press[3].click(info, [model], [facts], api_name="info")


@contextmanager
def _sentences() -> Iterator[None]:
    """Around an endpoint: any error reaches the caller as one sentence."""
    try:
        yield
    except Exception as error:
        raise gr.Error(sentence(error), print_exception=False) from None


def _converted(
    site: Site, session: str, path: str | None, wanted: Wish, model: str
) -> tuple[str, dict[str, Any]]:
    from vconv.audio import write_atomic

    if not path:
        raise UsageError("There is no recording; give one as audio=handle_file(path).")
    site.files.uses(session, path)
    converter = site.shelf.converter(model)
    folder = site.files.folder(session)
    done: Done | None = None
    try:
        with site.jobs.begin(session, None) as job:
            limit = site.settings.max_seconds
            for each in convert(converter, path, wanted, job, folder, max_seconds=limit):
                if isinstance(each, Done):
                    done = each
    except VconvError:
        site.files.discard(folder)
        raise
    assert done is not None
    target = folder / f"{Path(done.name).stem}.{file_part(done.speaker)}.wav"
    with write_atomic(target, RATE) as writer:
        writer.write(done.result)
    return str(target), {
        "speaker": done.speaker,
        "seconds": round(done.seconds, 4),
        "elapsed_seconds": round(done.elapsed_seconds, 4),
        "real_time_factor": round(done.real_time_factor, 3),
        "sample_rate": RATE,
        "notes": list(done.notes),
    }
