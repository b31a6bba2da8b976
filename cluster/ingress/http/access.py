"""Note each HTTP request in the access log, also those that are refused before their body is read."""

from __future__ import annotations

from http import HTTPStatus

from fastapi import FastAPI
from fastapi.routing import iter_route_contexts
from starlette.datastructures import Headers
from starlette.routing import compile_path
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from cluster.ingress.access import (
    CLIENT_LEFT,
    OK,
    UNMATCHED,
    AccessLog,
    Exchange,
    begin,
    note_request_id,
    presented_tenant,
)

LEFT_STATUS = 499
"""The status that stands for a client that left before its response was complete."""


class AccessMiddleware:
    """Ends each request's exchange in the access log, with the status that was sent."""

    def __init__(self, app: ASGIApp, log: AccessLog) -> None:
        self._app, self._log = app, log
        self._templates: RouteTemplates | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        exchange = Exchange(self._log, "http", scope["method"], scope["path"], tenant=presented_tenant(headers.items()))
        begin(exchange)
        note_request_id(headers.get("x-request-id") or "-")
        progress = ResponseProgress(receive, send)
        try:
            await self._app(scope, progress.receive, progress.send)
        except Exception:
            progress.status = progress.status or HTTPStatus.INTERNAL_SERVER_ERROR
            exchange.reason = exchange.reason or "internal_error"
            raise
        finally:
            status = progress.outcome()
            reason = CLIENT_LEFT if status == LEFT_STATUS else exchange.reason or reason_of(status)
            exchange.end(self._endpoint(scope), status, reason)

    def _endpoint(self, scope: Scope) -> str:
        if self._templates is None:
            self._templates = RouteTemplates(scope["app"])
        return self._templates.find(scope["path"])


class ResponseProgress:
    """Follows one response: its status, whether it is complete, and whether the client left before."""

    def __init__(self, receive: Receive, send: Send) -> None:
        self._receive, self._send = receive, send
        self.status: int | None = None
        self._is_complete = self._has_left = False

    async def receive(self) -> Message:
        message = await self._receive()
        if message["type"] == "http.disconnect" and not self._is_complete:
            self._has_left = True
        return message

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
        await self._send(message)
        if message["type"] == "http.response.body" and not message.get("more_body", False):
            self._is_complete = True

    def outcome(self) -> int:
        """Return the status of the response; that of a client that left if there is no whole response."""
        if self.status is None or self._has_left:
            return LEFT_STATUS
        is_failed = self.status >= HTTPStatus.INTERNAL_SERVER_ERROR
        return self.status if self._is_complete or is_failed else LEFT_STATUS


class RouteTemplates:
    """Finds the template of the route that a path belongs to."""

    def __init__(self, app: FastAPI) -> None:
        paths = [str(route.path) for route in iter_route_contexts(app.routes)]
        self._templates = [(compile_path(path)[0], path) for path in paths]

    def find(self, path: str) -> str:
        """Return the template, whatever the method: a request may be refused before it is routed."""
        return next((template for pattern, template in self._templates if pattern.match(path)), UNMATCHED)


def reason_of(status: int) -> str:
    """Return the reason for a status for which the application gave none."""
    return OK if status < HTTPStatus.BAD_REQUEST else HTTPStatus(status).phrase.lower().replace(" ", "_")
