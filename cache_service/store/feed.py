"""Keep the recent events of one store, and wait for the next ones.

Every watcher is only a cursor into this shared, bounded history: a slow one costs nothing, and when the history
has moved past its cursor it gets an error instead of missing events.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterable
from itertools import islice

from cache_service.core.cursor import content_size
from cache_service.core.events import Event
from cache_service.core.types import Revision
from cache_service.errors import CacheServiceUnavailable, Compacted

MAX_CONTENT = 4_000_000
"""The most tokens in the events that are kept, about 160 MB. Without it, contexts that are created and deleted in turn
would fill any memory."""


class Feed:
    """Holds the last events, contiguous by revision: at most `capacity`, and no more content than `max_content`."""

    def __init__(self, capacity: int, max_content: int = MAX_CONTENT) -> None:
        self._capacity, self._max_content = capacity, max_content
        self._events: deque[Event] = deque()
        self._content = 0
        self._head = Revision(0)
        self._pulse = asyncio.Event()
        self._closed = False

    @property
    def head(self) -> Revision:
        return self._head

    def append(self, events: Iterable[Event]) -> None:
        for event in events:
            if event.revision != self._head + 1:
                raise ValueError(f"event {event.revision} can't follow revision {self._head}")
            self._events.append(event)
            self._head = event.revision
            self._content += content_size(event)
            while len(self._events) > self._capacity or self._content > self._max_content:
                self._content -= content_size(self._events.popleft())
        self._wake()

    def restart(self, head: Revision) -> None:
        """Forget all events; history begins after `head`."""
        self._events.clear()
        self._content = 0
        self._head = head
        self._wake()

    def read(self, after: Revision, limit: int) -> list[Event]:
        """Return at most `limit` events after `after`. Raises Compacted if they are no longer, or not yet, known."""
        oldest = self._head - len(self._events)
        if not oldest <= after <= self._head:
            raise Compacted(f"revision {after} is not within the kept history {oldest}..{self._head}")
        start = after - oldest
        if start > len(self._events) // 2:  # a deque is quick to reach from its nearer end
            tail = list(islice(reversed(self._events), self._head - after))
            return tail[::-1][:limit]
        return list(islice(self._events, start, start + limit))

    async def wait(self, after: Revision) -> None:
        """Wait until the head is no longer at `after`. Raises CacheServiceUnavailable when the feed closes."""
        while self._head == after:
            if self._closed:
                raise CacheServiceUnavailable("the cache service is shutting down")
            await self._pulse.wait()

    def __len__(self) -> int:
        return len(self._events)

    def close(self) -> None:
        self._closed = True
        self._wake()

    def _wake(self) -> None:
        pulse, self._pulse = self._pulse, asyncio.Event()
        pulse.set()
