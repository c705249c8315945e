"""What the page's players load: files of a session, sound while it is made, samples of voices and
of training runs. Nothing here takes a path."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vconv.errors import VconvError

from .runs import find_run, sample_file
from .site import Site

if TYPE_CHECKING:
    from starlette.requests import Request

_WAIT_SECONDS = 600.0  # for a job that is in the queue
_POLL_SECONDS = 0.05
_BLOCK = 1 << 16


def routes(site: Site) -> list[Any]:
    """Starlette's routes, to stand before Gradio's."""
    from starlette.responses import FileResponse, PlainTextResponse, StreamingResponse
    from starlette.routing import Route

    def missing() -> Any:
        return PlainTextResponse("This file is no longer there.", 404)

    def file_of(request: Request) -> Any:
        found = site.files.offered(request.path_params["token"])
        if found is None or not found[0].is_file():
            return missing()
        path, name = found
        kept = {"Cache-Control": "private, no-store"}
        if request.query_params.get("download"):
            return FileResponse(path, filename=name, headers=kept)
        return FileResponse(path, headers=kept)

    def voice(request: Request) -> Any:
        try:
            path = site.shelf.sample(request.path_params["model"], request.path_params["index"])
        except VconvError:
            path = None
        return missing() if path is None else FileResponse(path)

    def sample(request: Request) -> Any:
        given = request.path_params
        run = find_run(site.settings.runs, given["run"])
        path = sample_file(run, given["step"], given["name"]) if run else None
        return missing() if path is None else FileResponse(path)

    def live(request: Request) -> Any:
        return StreamingResponse(
            _live(site, request.path_params["token"]),
            media_type="application/octet-stream",
            # Compressing would hold the sound back.
            headers={"Cache-Control": "no-store", "Content-Encoding": "identity"},
        )

    return [
        Route("/page/file/{token}", file_of),
        Route("/page/voice/{model}/{index:int}", voice),
        Route("/page/run/{run}/{step}/{name}", sample),
        Route("/page/live/{token}", live),
    ]


async def _live(site: Site, token: str) -> AsyncIterator[bytes]:
    """What a job has made, as it grows, until it is over."""
    waited = time.monotonic()
    while (job := site.jobs.find(token)) is None or job.live is None:
        if time.monotonic() - waited > _WAIT_SECONDS or (job is not None and job.over.is_set()):
            return
        await asyncio.sleep(_POLL_SECONDS)
    path: Path = job.live
    try:
        file = path.open("rb")
    except OSError:
        return
    with file:
        while True:
            over = job.over.is_set()
            while block := file.read(_BLOCK):
                yield block
            if over or job.stopped.is_set():
                return
            await asyncio.sleep(_POLL_SECONDS)
