"""Starting the page: where it answers, what it refuses, and that it leaves nothing behind."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

from vconv.errors import SetupError, UsageError

from .settings import PORT, Settings

_LOOPBACK = ("127.0.0.1", "localhost", "::1")
_TRIED_PORTS = 100


@dataclass(frozen=True)
class Served:
    """A page that answers at ``url``; ``share_url`` where a link was asked for."""

    url: str
    share_url: str | None
    page: Any


def check_installed() -> None:
    """SetupError if Gradio is missing, before a second is spent."""
    if find_spec("gradio") is None:
        raise SetupError(
            "gradio is missing, which the page is made with; install it: pip install 'vconv[demo]'."
        )


@contextmanager
def serving(
    settings: Settings,
    *,
    host: str = "127.0.0.1",
    port: int | None = None,
    share: bool = False,
) -> Iterator[Served]:
    """Serve the page in the background while the block lasts.

    ``port`` None takes the first free one from 7860 on. Raises SetupError without Gradio or where
    the port cannot be had, ModelError for a bad model.
    """
    check_installed()
    number = free_port(host, port)
    # Gradio reads these when it is imported.
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
    os.environ["GRADIO_ALLOWED_PATHS"] = os.environ["GRADIO_SHARE"] = ""
    from .site import Site

    site = Site.of(settings)
    os.environ["GRADIO_TEMP_DIR"] = str(site.files.uploads)
    try:
        from starlette.middleware import Middleware

        from .limits import Limits
        from .page import build
        from .routes import routes
        from .theme import css, head, theme

        limits = Middleware(
            Limits,  # type: ignore[arg-type, unused-ignore]
            uploads=site.files.uploads,
            upload_bytes=settings.upload_bytes,
            hosts=() if share or host not in _LOOPBACK else (*_LOOPBACK, "[::1]"),
        )
        page = build(site)
        _, url, share_url = page.launch(
            server_name=host,
            server_port=number,
            share=share,
            inbrowser=False,
            prevent_thread_lock=True,
            quiet=True,
            show_error=False,
            footer_links=[],
            max_file_size=settings.upload_bytes,
            blocked_paths=[],
            app_kwargs={"routes": routes(site), "middleware": [limits]},
            ssr_mode=False,
            pwa=False,
            mcp_server=False,
            enable_monitoring=False,
            theme=theme(),
            css=css(),
            head=head(),
        )
        # The model is loaded while somebody looks for their microphone.
        threading.Thread(target=_warm, args=(site,), daemon=True).start()
        try:
            yield Served(url, share_url or None, page)
        finally:
            page.close(verbose=False)
    finally:
        site.close()


def free_port(host: str, port: int | None) -> int:
    """The port asked for, or the first free one; SetupError if there is none."""
    if port is not None and not 1 <= port <= 65535:
        raise UsageError(f"--port: allowed are 1 to 65535, found {port}.")
    reason = ""
    for number in [port] if port is not None else range(PORT, PORT + _TRIED_PORTS):
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        with socket.socket(family, socket.SOCK_STREAM) as tried:
            if os.name == "posix":
                tried.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                tried.bind((host, number))
            except OSError as error:
                reason = (error.strerror or str(error)).lower()
            else:
                return number
    asked = f"port {port}" if port is not None else f"a port from {PORT} on"
    raise SetupError(f"The page cannot have {asked} of {host} ({reason}); name another one.")


def _warm(site: Any) -> None:
    try:
        site.shelf.converter(site.shelf.default)
    except Exception as error:
        from .site import log

        log.warning("the model could not be loaded ahead: %s", error)
