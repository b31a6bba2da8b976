"""A client that went away, as Serve's proxy tells of it when it is busy: by cancelling the call for its messages."""

from __future__ import annotations

import pytest
from ray.exceptions import TaskCancelledError
from starlette.types import Message, Receive, Scope, Send

from cluster.ingress.http.leaving import ClientLeftMiddleware


@pytest.mark.parametrize(
    ("told", "seen"),
    [
        ({"type": "http.request", "body": b"a"}, {"type": "http.request", "body": b"a"}),
        (TaskCancelledError(), {"type": "http.disconnect"}),
    ],
)
async def test_the_application_hears_of_it_as_of_any_disconnect(
    told: Message | TaskCancelledError, seen: Message
) -> None:
    heard: list[Message] = []

    async def application(_scope: Scope, receive: Receive, _send: Send) -> None:
        heard.append(await receive())

    async def receive() -> Message:
        if isinstance(told, TaskCancelledError):
            raise told
        return told

    async def send(_message: Message) -> None:
        raise AssertionError("nobody listens")

    await ClientLeftMiddleware(application)({"type": "http"}, receive, send)
    assert heard == [seen]
