"""A busy proxy of Serve reports a client that went away by cancelling the call for the client's messages."""

from __future__ import annotations

import pytest
from ray.exceptions import TaskCancelledError
from starlette.types import Message, Receive, Scope, Send

from cluster.ingress.http.leaving import ClientLeftMiddleware


@pytest.mark.parametrize(
    ("message", "seen"),
    [
        ({"type": "http.request", "body": b"a"}, {"type": "http.request", "body": b"a"}),
        (TaskCancelledError(), {"type": "http.disconnect"}),
    ],
)
async def test_the_application_gets_the_message_of_any_disconnect(
    message: Message | TaskCancelledError, seen: Message
) -> None:
    seen_messages: list[Message] = []

    async def application(_scope: Scope, receive: Receive, _send: Send) -> None:
        seen_messages.append(await receive())

    async def receive() -> Message:
        if isinstance(message, TaskCancelledError):
            raise message
        return message

    async def send(_message: Message) -> None:
        raise AssertionError("nothing is sent")

    await ClientLeftMiddleware(application)({"type": "http"}, receive, send)
    assert seen_messages == [seen]
