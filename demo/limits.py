"""What the server refuses before anything else sees it, as ASGI middleware.

Uploads that are too large (413), inputs that are addresses or paths of the server instead of
uploads (422), requests that want the server to fetch something (403), and hosts that are not its
own, which is how another website would reach a page on 127.0.0.1.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, MutableMapping
from pathlib import Path
from typing import Any

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

_API = "/gradio_api/"
_CALLS = ("queue/join", "run/", "api/", "call/", "component_server")
_BODY_BYTES = 1_000_000
_FILES = 8  # uploads of the largest size in one request: those of a batch
_POLICY = "; ".join(
    [
        "default-src 'self'",
        "script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:",
        "style-src 'self' 'unsafe-inline'",
        "img-src 'self' data: blob:",
        "media-src 'self' data: blob:",
        "font-src 'self' data:",
        "connect-src 'self' data: blob:",
        "worker-src 'self' blob:",
    ]
)
_HEADERS = [
    (b"content-security-policy", _POLICY.encode()),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"same-origin"),
]


class Limits:
    """Around the page's application. ``hosts`` are the names it answers to; empty: to any."""

    def __init__(
        self, app: App, *, uploads: Path, upload_bytes: int, hosts: tuple[str, ...]
    ) -> None:
        self._app = app
        self._uploads = uploads.resolve()
        self._upload_bytes = upload_bytes
        self._hosts = hosts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = {name.lower(): value for name, value in scope["headers"]}

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                message = {**message, "headers": [*message.get("headers", []), *_HEADERS]}
            await send(message)

        refusal = self._refusal(scope["path"], headers)
        if refusal is None and scope["method"] == "POST":
            path = scope["path"]
            if path.startswith(_API + "upload"):
                receive = _counted(receive, _FILES * self._upload_bytes)
            elif path.startswith(_API) and path[len(_API) :].startswith(_CALLS):
                body = await _whole(receive, _BODY_BYTES)
                refusal = self._refused_call(body)
                receive = _replayed(body or b"", receive)
        if refusal is not None:
            await _answer(send_with_headers, *refusal)
            return
        try:
            await self._app(scope, receive, send_with_headers)
        except _TooLargeError:
            await _answer(send_with_headers, *self._too_large())

    def _refusal(self, path: str, headers: dict[bytes, bytes]) -> tuple[int, str] | None:
        host = headers.get(b"host", b"").decode("latin-1")
        if self._hosts and _without_port(host) not in self._hosts:
            return 403, f"This page answers at {self._hosts[0]} only."
        if path.startswith(_API):
            what = path[len(_API) :]
            if what.startswith("proxy=") or what.lower().startswith(("file=http:", "file=https:")):
                return 403, "The page fetches nothing from other servers."
            if what.startswith("upload"):
                length = headers.get(b"content-length", b"0")
                if length.isdigit() and int(length) > _FILES * self._upload_bytes:
                    return self._too_large()
        return None

    def _too_large(self) -> tuple[int, str]:
        return 413, f"Files of up to {self._upload_bytes / 2**20:g} MB can be uploaded."

    def _refused_call(self, body: bytes | None) -> tuple[int, str] | None:
        if body is None:
            return 413, f"Requests of up to {_BODY_BYTES:,} bytes are taken."
        try:
            values = json.loads(body)
        except (ValueError, RecursionError):
            return None  # Gradio says so itself
        pending, seen = [values], 0
        while pending and seen < 100_000:
            each = pending.pop()
            seen += 1
            if isinstance(each, list):
                pending += each
            elif isinstance(each, dict):
                pending += each.values()
                path = each.get("path")
                if isinstance(path, str) and ("meta" in each or "url" in each or "size" in each):
                    refusal = self._refused_path(path)
                    if refusal:
                        return refusal
        return None

    def _refused_path(self, path: str) -> tuple[int, str] | None:
        if "://" in path or path.lower().startswith(("data:", "//")):
            return 422, "An address cannot be converted; upload the recording itself."
        try:
            inside = Path(path).resolve().is_relative_to(self._uploads)
        except (OSError, ValueError, RuntimeError):
            inside = False
        if not inside:
            return 422, "Only recordings that were uploaded here can be converted."
        return None


class _TooLargeError(Exception):
    pass


def _without_port(host: str) -> str:
    name, colon, port = host.rpartition(":")
    return (name if colon and port.isdigit() else host).lower()


def _counted(receive: Receive, limit: int) -> Receive:
    """A body that declares no length, or a wrong one, is cut off all the same."""
    count = 0

    async def counted() -> Message:
        nonlocal count
        message = await receive()
        count += len(message.get("body", b""))
        if count > limit:
            raise _TooLargeError
        return message

    return counted


async def _whole(receive: Receive, limit: int) -> bytes | None:
    """The body, or None if it is longer."""
    parts: list[bytes] = []
    size = 0
    while True:
        message = await receive()
        if message["type"] != "http.request":
            return b""
        parts.append(message.get("body", b""))
        size += len(parts[-1])
        if size > limit:
            return None
        if not message.get("more_body"):
            return b"".join(parts)


def _replayed(body: bytes, receive: Receive) -> Receive:
    sent = False

    async def replayed() -> Message:
        nonlocal sent
        if sent:
            return await receive()
        sent = True
        return {"type": "http.request", "body": body, "more_body": False}

    return replayed


async def _answer(send: Send, status: int, text: str) -> None:
    data = json.dumps({"detail": text, "error": text}).encode()
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(data)).encode()),
        (b"connection", b"close"),
    ]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": data})
