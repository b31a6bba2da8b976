"""Read the newest content of shared contexts, so that neither the engine nor the watch ever waits for it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from functools import partial

from cache_service.client.client import CacheClient
from cache_service.core.events import Event
from cache_service.core.types import Context, ContextId, Snapshot
from cache_service.errors import CacheServiceError, UnknownContext
from workers.api import ContextRead, ContextReply
from workers.coherence.contents import ContextContents
from workers.coherence.faults import TaskFaults
from workers.coherence.view import ClusterView

_Read = Callable[[], Awaitable[Context | None]]


class ContextReader:
    """Reads contexts from what is kept here if staleness allows, else from the service.

    Runs in the event loop that updates the view, and is given the same updates. It answers a question within the
    client's timeout.
    """

    def __init__(self, client: CacheClient, view: ClusterView, faults: TaskFaults) -> None:
        self._client, self._view, self._faults = client, view, faults
        self._contents = ContextContents()
        self._open: set[asyncio.Task[None]] = set()

    def take(self, update: Snapshot | Event) -> None:
        """Follow one update of the watch."""
        self._contents.take(update)

    def ask(self, read: ContextRead, reply: ContextReply) -> None:
        """Return at once, and call `reply` with the newest content later. `close` leaves open questions unanswered."""
        self._start(partial(self.newest, read), reply)

    def supply(self, context_id: ContextId, reply: ContextReply) -> None:
        """Call `reply` with the content that the view names: at once if it is kept here, else like `ask`."""
        known = self._current(context_id)
        if known is not None:
            reply(known)
        else:
            self._start(partial(self._catch_up, context_id), reply)

    async def newest(self, read: ContextRead) -> Context | None:
        """Return the newest content of a context; None if it is gone, or the service doesn't answer in time.

        A reader with a staleness budget gets what the view names, if its content is kept here. For one without, the
        service is asked whether that is the newest: it may have accepted a commit, and answered its author, before the
        watch delivers it. Content is transferred only if it isn't kept here.
        """
        known = self._current(read.at.context)
        if read.max_staleness and known is not None:
            return known
        return await self._fetch(read.at.context)

    async def close(self) -> None:
        """Cancel all open questions."""
        for task in self._open:
            task.cancel()
        await asyncio.gather(*self._open, return_exceptions=True)

    def _current(self, context_id: ContextId) -> Context | None:
        """Return the content that is kept, unless the view knows a newer epoch, or doesn't know the context."""
        known, newest = self._contents.find(context_id), self._view.context(context_id)
        return known if known is not None and newest is not None and known.epoch >= newest.epoch else None

    async def _fetch(self, context_id: ContextId) -> Context | None:
        """Return the service's newest content, and keep it; None if it has none or doesn't answer in time."""
        try:
            newest = await self._client.get_context(context_id, known=self._contents.find(context_id))
        except UnknownContext:
            self._contents.drop(context_id)
            return None
        except CacheServiceError:
            return None
        self._contents.put(newest)
        return newest

    async def _catch_up(self, context_id: ContextId) -> Context | None:
        """Fetch the content until the view knows no newer epoch: it may have moved on during the call."""
        while await self._fetch(context_id) is not None:
            if self._view.context(context_id) is None:
                return None
            if (current := self._current(context_id)) is not None:
                return current
        return None

    def _start(self, read: _Read, reply: ContextReply) -> None:
        task = asyncio.create_task(self._answer(read, reply))
        self._open.add(task)
        task.add_done_callback(self._open.discard)

    async def _answer(self, read: _Read, reply: ContextReply) -> None:
        try:
            newest = await read()
        except Exception as error:
            self._faults.record("context", error)
            newest = None
        reply(newest)
