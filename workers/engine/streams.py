"""Delivers outcomes to the callers: one queue for each request, on the caller's own event loop."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from contextlib import suppress

from workers.scheduler.scheduler import Outcome


class Stream:
    """Queues the outcomes of one request, to be read on the event loop that created the stream."""

    def __init__(self) -> None:
        self.loop = asyncio.get_running_loop()
        self.started = time.monotonic()
        self._queue: asyncio.Queue[Outcome] = asyncio.Queue()

    def put(self, outcome: Outcome) -> None:
        self._queue.put_nowait(outcome)

    async def get(self) -> Outcome:
        return await self._queue.get()


Delivery = tuple[Stream, Outcome]


def deliver(deliveries: Sequence[Delivery]) -> None:
    """Put outcomes into their streams, from any thread; wake each event loop once, however many streams it reads."""
    by_loop: dict[asyncio.AbstractEventLoop, list[Delivery]] = {}
    for stream, outcome in deliveries:
        by_loop.setdefault(stream.loop, []).append((stream, outcome))
    for loop, own in by_loop.items():
        with suppress(RuntimeError):  # the event loop is closed, and its callers have gone with it
            loop.call_soon_threadsafe(_put_all, own)


def _put_all(deliveries: Sequence[Delivery]) -> None:
    for stream, outcome in deliveries:
        stream.put(outcome)
