"""Notify the application of clients that disconnect."""

from __future__ import annotations

from ray.exceptions import TaskCancelledError
from starlette.types import ASGIApp, Message, Receive, Scope, Send


class ClientLeftMiddleware:
    """Sends ASGI's disconnect message to the application when a client disconnects.

    Serve's proxy cancels the call that asks it for the client's messages, which would be logged as a fault, with a
    stack trace.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def received() -> Message:
            try:
                return await receive()
            except TaskCancelledError:
                return {"type": "http.disconnect"}

        await self._app(scope, received, send)
