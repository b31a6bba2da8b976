"""Write server-sent events: for chats, completions and the denoising of contexts."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import Protocol, TypeVar

from fastapi import Response
from sse_starlette import EventSourceResponse

from cluster.generation.contexts.denoising import Denoised
from cluster.generation.events import Finished
from cluster.ingress.http.errors import error_response
from cluster.ingress.http.shapes import Json

LAST_EVENTS = Finished, Denoised
"""The events with which a stream ends."""

T = TypeVar("T")
T_contra = TypeVar("T_contra", contravariant=True)


class EventEncoder(Protocol[T_contra]):
    """Turns the events of one stream into chunks."""

    def first_chunks(self) -> Sequence[Json]:
        """Return the chunks that come before any event's."""
        ...

    def chunks(self, event: T_contra) -> Sequence[Json]: ...


async def event_stream(events: AsyncGenerator[T, None], encoder: EventEncoder[T]) -> Response:
    """Return the response that streams `events`. An error before the first event is raised, and sets the status."""
    first = await anext(events)
    stream: Response = EventSourceResponse(write_events(first, events, encoder), sep="\n")
    return stream


async def write_events(
    first: T, events: AsyncGenerator[T, None], encoder: EventEncoder[T]
) -> AsyncGenerator[str, None]:
    """Yield the data of each server-sent event. An error after the first event becomes the last one."""
    async with aclosing(events):
        try:
            for chunk in encoder.first_chunks():
                yield json.dumps(chunk)
            event = first
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
