"""Guard Serve's HTTP server: no client's header steers Serve, and an answer that Serve makes itself has our shape.

Serve calls `middlewares` in every process that listens for HTTP, since its environment names them
(`cluster.supervisor.supervisor.SERVE_ENVIRONMENT`).
"""

from __future__ import annotations

import json
import logging
from http import HTTPStatus

from fastapi import Request
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from cluster.errors import ClusterError, NotReadyError, ReplicaLostError, RequestTimeoutError
from cluster.ingress.http.errors import error_response, refuse
from workers.errors import OverloadedError
from workers.ray_internals import REQUEST_ID, steers_serve

logger = logging.getLogger(__name__)

MAX_HEADER_BYTES = 32 << 10
"""The most bytes of a request's path, query and headers."""
LOST = ReplicaLostError("the ingress was lost before this answer was complete; try again shortly, or watch /health")
ERRORS: dict[int, Exception] = {
    HTTPStatus.NOT_FOUND: NotReadyError("the application isn't deployed yet; try again shortly, or watch /health"),
    HTTPStatus.REQUEST_TIMEOUT: RequestTimeoutError("the answer took longer than Serve's request_timeout_s: raise it"),
    HTTPStatus.TOO_MANY_REQUESTS: OverloadedError("too many requests wait for the ingress; try again later"),
    HTTPStatus.SERVICE_UNAVAILABLE: NotReadyError("no ingress answers now; try again shortly, or watch /health"),
}
"""Serve's own errors by their statuses. The application has the root, so it isn't there where Serve finds no path."""


def middlewares() -> list[Middleware]:
    return [Middleware(ProxyGuard)]


class ProxyGuard:
    """Wraps Serve's proxy."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        harmless = [(name, value) for name, value in scope.get("headers", ()) if is_harmless(name, value)]
        guarded = {**scope, "headers": harmless}
        if scope["type"] != "http":
            await self._app(guarded, receive, send)
            return
        if header_bytes(scope) > MAX_HEADER_BYTES:
            too_large = HTTPException(
                HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE,
                f"path, query and headers are longer than {MAX_HEADER_BYTES} bytes: send fewer or shorter ones",
            )
            response = await refuse(Request(scope), too_large)
            await response(scope, receive, send)
            return
        answer = GuardedAnswer(scope, receive, send)
        try:
            await self._app(guarded, receive, answer.take)
        except Exception:
            logger.exception("Serve's proxy failed")
        await answer.finish()


def header_bytes(scope: Scope) -> int:
    fields = sum(len(name) + len(value) for name, value in scope["headers"])
    return fields + len(scope.get("raw_path") or b"") + len(scope.get("query_string") or b"")


def is_harmless(name: bytes, value: bytes) -> bool:
    """Return whether a header neither steers Serve nor holds a request id that Serve can't read."""
    if name == REQUEST_ID.encode():
        return bool(value) and value.isascii()
    return not steers_serve(name.decode("latin-1"))


class GuardedAnswer:
    """Passes an answer on, except for Serve's own errors, and completes one that breaks off."""

    def __init__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self._scope, self._receive, self._send = scope, receive, send
        self._start: Message | None = None
        self._is_withheld = self._is_complete = False
        self._text = b""

    async def take(self, message: Message) -> None:
        """Take one message of the answer."""
        if message["type"] == "http.response.start":
            self._start, self._is_withheld = message, is_serves_error(message)
        elif message["type"] == "http.response.body":
            self._is_complete = not message.get("more_body", False)
        if not self._is_withheld:
            await self._send(message)
        elif message["type"] == "http.response.body":
            self._text += message.get("body", b"")

    async def finish(self) -> None:
        """Send what is missing once the proxy has nothing more to send."""
        if self._start is None:
            await self._refuse(LOST)
        elif self._is_withheld:
            await self._refuse(error_of(self._start["status"], self._text.decode(errors="replace")))
        elif not self._is_complete and content_type(self._start).startswith("text/event-stream"):
            event = f"data: {json.dumps(error_response(LOST).body())}\n\n".encode()
            await self._send({"type": "http.response.body", "body": event})

    async def _refuse(self, error: Exception) -> None:
        response = await refuse(Request(self._scope), error)
        if self._start is not None and (request_id := headers_of(self._start).get(REQUEST_ID)):
            response.headers[REQUEST_ID] = request_id
        await response(self._scope, self._receive, self._send)


def error_of(status: int, text: str) -> Exception:
    """Return the error that a status and a plain text report."""
    if status in ERRORS:
        return ERRORS[status]
    if status < HTTPStatus.INTERNAL_SERVER_ERROR:
        return HTTPException(status, text)
    return ClusterError(f"Serve's proxy answered with status {status}: {text}")


def is_serves_error(start: Message) -> bool:
    """Return whether a response is an error in plain text, which is Serve's, or of a middleware around our routes."""
    return start["status"] >= HTTPStatus.BAD_REQUEST and content_type(start).startswith("text/plain")


def content_type(start: Message) -> str:
    return headers_of(start).get("content-type", "")


def headers_of(start: Message) -> Headers:
    return Headers(raw=list(start.get("headers", ())))
