"""Clients that go away, as Serve's proxy tells of them."""

from __future__ import annotations

from ray.exceptions import TaskCancelledError
from starlette.types import ASGIApp, Message, Receive, Scope, Send


class ClientLeftMiddleware:
    """Tells the application of a client that went away in ASGI's words: Serve's proxy cancels the call by which it is
    asked for the client's messages, and that would be logged as a fault, with its stack.
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
