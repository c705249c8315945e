"""The tab "Batch": many recordings in, one zip out, a row for each with what became of it."""

from __future__ import annotations

import time
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gradio as gr

from vconv.errors import UsageError, VconvError

from .buttons import connect
from .conversion import Wish, named, wish
from .convert_tab import LEVELS, file_part
from .settings import BATCH_FILES
from .site import Site, sentence
from .stage import escape, hint, message, play_button, progress

_TELL_SECONDS = 0.25


@dataclass
class Row:
    """A file and what became of it: "waiting", "converting", "done", "failed" or "cancelled"."""

    name: str
    path: str
    state: str = "waiting"
    detail: str = ""
    seconds: float = 0.0
    elapsed: float = 0.0
    url: str = ""


def build(site: Site, model: gr.Dropdown) -> gr.Dropdown:
    """Draw the tab; returns the choice of a voice."""
    names = site.shelf.voices(site.shelf.default)
    with gr.Row(equal_height=False):
        with gr.Column(scale=4, min_width=280):
            files = gr.File(
                label=f"Recordings, up to {BATCH_FILES}",
                file_count="multiple",
                type="filepath",
                elem_id="batch-files",
                height=220,
            )
        with gr.Column(scale=6, min_width=280):
            first = site.shelf.first_voice(site.shelf.default)
            voice = gr.Dropdown(names, value=first, label="Voice", elem_id="batch-voice")
            with gr.Row():
                level = gr.Radio(LEVELS, value="keep", label="Loudness")
                kind = gr.Radio(["wav", "flac"], value="wav", label="Format")
            token = gr.Textbox(visible=False)
            with gr.Row():
                go = gr.Button("Convert all", variant="primary", scale=3, elem_id="batch-go")
                cancel = gr.Button("Cancel", scale=1, min_width=90, elem_id="batch-cancel")
    status = gr.HTML("", elem_id="batch-status")
    table = gr.HTML(
        hint("A folder's worth at once", ["Results come as one zip; a bad file stops nothing."]),
        elem_id="batch-result",
    )

    def run(
        files: list[str] | None,
        voice: str,
        level: str,
        kind: str,
        model: str,
        token: str,
        request: gr.Request,
    ) -> Iterator[tuple[Any, Any]]:
        session = str(request.session_hash)
        for said, shown in batched(site, session, token, model, files, (voice, level, kind)):
            yield said, gr.skip() if shown is None else shown

    inputs = [files, voice, level, kind, model, token]
    connect(site, "batch", go, cancel, run, inputs, [status, table], queue="batch", at_once=1)
    return voice


def batched(
    site: Site,
    session: str,
    token: str | None,
    model: str,
    files: Sequence[str] | None,
    form: Sequence[Any],
) -> Iterator[tuple[str, str | None]]:
    """(status, table) as HTML; the zip stands above the table when there is one."""
    folder: Path | None = None
    kept = False
    try:
        if not files:
            raise UsageError("There are no recordings yet; choose some first.")
        if len(files) > BATCH_FILES:
            raise UsageError(
                f"These are {len(files)} files; up to {BATCH_FILES} are converted at a time. For "
                "more, vconv convert takes whole folders."
            )
        voice, level, kind = form
        if kind not in ("wav", "flac"):
            raise UsageError(f"The format must be wav or flac, found {kind!r}.")
        wanted = wish(voice, level=level)
        rows = [Row(Path(path).name, str(path)) for path in files]
        for row in rows:
            site.files.uses(session, row.path)
        with site.jobs.begin(session, token) as job:
            yield progress("Preparing", None), _table(rows)
            converter = site.shelf.converter(model)
            folder = site.files.folder(session)
            taken: set[str] = set()
            for number, row in enumerate(rows):
                if job.stopped.is_set():
                    break
                row.state = "converting"
                target = folder / unique(f"{Path(row.name).stem}.{kind}", taken)
                text = f"{number + 1} of {len(rows)}"
                yield progress(text, number / len(rows), row.name), _table(rows)
                for part in _one(site, converter, row, target, wanted, job):
                    yield progress(text, (number + part) / len(rows), row.name), None
                if row.state == "done":
                    row.url = site.files.offer(session, target, target.name)
            for row in rows:
                if row.state in ("waiting", "converting"):
                    row.state, row.detail = "cancelled", ""
            done = [row for row in rows if row.state == "done"]
            link = ""
            if done:
                name = f"vconv-{file_part(voice)}.zip"
                packed = folder / "results.zip"
                _pack(packed, [folder / each for each in sorted(taken)])
                link = _link(site.files.offer(session, packed, name), name, len(done))
                kept = True
            yield _summary(rows), link + _table(rows)
    except Exception as error:
        yield message(sentence(error), "error"), None
    finally:
        if folder is not None and not kept:
            site.files.discard(folder)


def _one(
    site: Site, converter: Any, row: Row, target: Path, wanted: Wish, job: Any
) -> Iterator[float]:
    """Convert one file in a thread of its own, telling which part is done."""
    import threading

    part = [0.0]
    failure: list[Exception] = []

    def advance(done: float, seconds: float | None) -> bool:
        part[0] = done / seconds if seconds else 0.0
        return not job.stopped.is_set()

    def work() -> None:
        from vconv import Cancelled

        begun = time.perf_counter()
        try:
            made = converter.convert_to_file(
                row.path,
                target,
                speaker=wanted.speaker,
                level=wanted.level,
                max_seconds=site.settings.max_seconds,
                progress=advance,
                cores=lambda: 1,
            )
            row.seconds, row.elapsed = made.seconds, time.perf_counter() - begun
            row.state = "done"
        except Cancelled:
            row.state = "cancelled"
        except Exception as error:
            failure.append(error)

    worker = threading.Thread(target=work, daemon=True)
    worker.start()
    try:
        while worker.is_alive():
            worker.join(_TELL_SECONDS)
            yield part[0]
    except GeneratorExit:
        job.stopped.set()  # nobody is there to see it
        worker.join()
        raise
    if failure:
        row.state = "failed"
        row.detail = named(sentence(failure[0]), row.path)
        if isinstance(failure[0], VconvError):
            row.detail = row.detail.removeprefix(f"{row.name}: ")


def unique(name: str, taken: set[str]) -> str:
    """The name, or one with a number where another file has it; it is taken then."""
    path = Path(name)
    found, number = name, 2
    while found.casefold() in {each.casefold() for each in taken}:
        found, number = f"{path.stem}-{number}{path.suffix}", number + 1
    taken.add(found)
    return found


def _pack(path: Path, files: Sequence[Path]) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        for file in files:
            if file.is_file():
                archive.write(file, file.name)


def _link(url: str, name: str, count: int) -> str:
    return (
        f'<p><a class="vc-zip" href="{escape(url)}?download=1" download="{escape(name)}">'
        f"Download {count} {'result' if count == 1 else 'results'} as a zip</a></p>"
    )


def _summary(rows: Sequence[Row]) -> str:
    counts = {state: sum(row.state == state for row in rows) for state in _WORDS}
    parts = [f"{counts['done']} converted"]
    parts += [f"{counts[state]} {state}" for state in ("failed", "cancelled") if counts[state]]
    return message(f"{', '.join(parts)}.", "error" if not counts["done"] else "done")


_WORDS = {
    "waiting": "vc-wait",
    "converting": "vc-wait",
    "done": "vc-ok",
    "failed": "vc-failed",
    "cancelled": "vc-wait",
}


def _table(rows: Sequence[Row]) -> str:
    lines = []
    for row in rows:
        listen = play_button(row.name, row.url) if row.url else ""
        speed = f"{row.seconds / row.elapsed:.1f} x" if row.elapsed else ""
        seconds = f"{row.seconds:.1f} s" if row.seconds else ""
        detail = f"<br>{escape(row.detail)}" if row.detail else ""
        lines.append(
            f"<tr><td>{listen}</td><td>{escape(row.name)}</td>"
            f'<td><span class="{_WORDS[row.state]}">{row.state}</span>{detail}</td>'
            f'<td class="vc-n">{seconds}</td><td class="vc-n">{speed}</td></tr>'
        )
    head = "".join(f"<th scope='col'>{name}</th>" for name in _COLUMNS)
    return (
        f'<div class="vc-scroll"><table class="vc-table"><thead><tr>{head}</tr></thead>'
        f"<tbody>{''.join(lines)}</tbody></table></div>"
    )


_COLUMNS = ("Hear", "File", "Outcome", "Lasts", "Real time")
