"""Write server-sent events: for chats, completions and the denoising of contexts."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Awaitable, Mapping, Sequence
from contextlib import aclosing
from typing import Protocol, TypeVar

from fastapi import Response
from sse_starlette import EventSourceResponse, ServerSentEvent

from cluster.generation.contexts.denoising import Denoised
from cluster.generation.events import Accepted, Finished
from cluster.ingress.errors import at_paths
from cluster.ingress.http.errors import error_response
from cluster.ingress.http.shapes import Json

LAST_EVENTS = Finished, Denoised
"""The events with which a stream ends."""

NO_PATHS: Mapping[str, str] = {}
KEEPALIVE = ServerSentEvent(comment="keep-alive", sep="\n")

T = TypeVar("T")
T_contra = TypeVar("T_contra", contravariant=True)


class EventEncoder(Protocol[T_contra]):
    """Turns the events of one stream into chunks."""

    def first_chunks(self) -> Sequence[Json]:
        """Return the chunks that come before those of the first event after the acceptance."""
        ...

    def chunks(self, event: T_contra) -> Sequence[Json]: ...


async def event_stream(
    events: AsyncGenerator[T, None],
    encoder: EventEncoder[T],
    *,
    keepalive_s: float,
    paths: Mapping[str, str] = NO_PATHS,
) -> Response:
    """Return the response that streams `events`, with a comment every `keepalive_s`.

    It begins at the first event, which is the acceptance of the request, or after `keepalive_s` without one. An error
    before that is raised, and sets the status; in a later one, `paths` name the client's fields, as in `at_paths`.
    """
    first = asyncio.ensure_future(anext(events))
    try:
        await asyncio.wait((first,), timeout=keepalive_s)
    except asyncio.CancelledError:
        first.cancel()
        raise
    if first.done():
        first.result()
    stream: Response = EventSourceResponse(
        write_events(first, events, encoder, paths), sep="\n", ping=keepalive_s, ping_message_factory=lambda: KEEPALIVE
    )
    return stream


async def write_events(
    first: Awaitable[T], events: AsyncGenerator[T, None], encoder: EventEncoder[T], paths: Mapping[str, str]
) -> AsyncGenerator[str, None]:
    """Yield the data of each server-sent event. An error in the stream becomes its last event."""
    async with aclosing(events):
        try:
            with at_paths(paths):
                event = await first
                while isinstance(event, Accepted):
                    event = await anext(events)
                for chunk in encoder.first_chunks():
                    yield json.dumps(chunk)
                while not isinstance(event, LAST_EVENTS):
                    for chunk in encoder.chunks(event):
                        yield json.dumps(chunk)
                    event = await anext(events)
        except Exception as error:
            yield json.dumps(error_response(error).body())
            return
    for chunk in encoder.chunks(event):
        yield json.dumps(chunk)
    yield "[DONE]"
