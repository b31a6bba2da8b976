"""Read the newest content of shared contexts for requests in follow mode, so that the engine never waits for it."""

from __future__ import annotations

import asyncio

from cache_service.client.client import CacheClient
from cache_service.core.types import Context
from cache_service.errors import CacheServiceError
from workers.api import ContextRead, ContextReply
from workers.coherence.faults import TaskFaults
from workers.coherence.view import ClusterView


class ContextReader:
    """Reads contexts from the local view if staleness allows, else from the service.

    Runs in the event loop that updates the view. It answers a question within the client's timeout.
    """

    def __init__(self, client: CacheClient, view: ClusterView, faults: TaskFaults) -> None:
        self._client, self._view, self._faults = client, view, faults
        self._open: set[asyncio.Task[None]] = set()

    def ask(self, read: ContextRead, reply: ContextReply) -> None:
        """Return at once, and call `reply` with the newest content later. `close` leaves open questions unanswered."""
        task = asyncio.create_task(self._answer(read, reply))
        self._open.add(task)
        task.add_done_callback(self._open.discard)

    async def newest(self, read: ContextRead) -> Context | None:
        """Return the newest content of a context; None if it is gone, or the service doesn't answer in time.

        A reader with a staleness budget gets the view's content. For one without, the service is asked whether that is
        the newest: it may have accepted a commit, and answered its author, before the watch delivers it. Content
        is transferred only if the view is behind.
        """
        known = self._view.context(read.at.context)
        if read.max_staleness and known is not None:
            return known
        try:
            return await self._client.get_context(read.at.context, known=known)
        except CacheServiceError:
            return None

    async def close(self) -> None:
        """Cancel all open questions."""
        for task in self._open:
            task.cancel()
        await asyncio.gather(*self._open, return_exceptions=True)

    async def _answer(self, read: ContextRead, reply: ContextReply) -> None:
        try:
            newest = await self.newest(read)
        except Exception as error:
            self._faults.record("context", error)
            newest = None
        reply(newest)
