"""Reads the newest content of shared contexts, for requests in follow mode, so that the engine never waits for it."""

from __future__ import annotations

import asyncio

from cache_service.client.client import CacheClient
from cache_service.core.types import Context
from cache_service.errors import CacheServiceError
from workers.api import ContextRead, ContextReply
from workers.coherence.view import ClusterView


class ContextReader:
    """Answers from a view that a watch feeds, as far as that may be behind, else from the service.

    Lives in the event loop that feeds the view. A question is answered within the client's timeout.
    """

    def __init__(self, client: CacheClient, view: ClusterView) -> None:
        self._client, self._view = client, view
        self._asked: set[asyncio.Task[None]] = set()

    def ask(self, read: ContextRead, reply: ContextReply) -> None:
        """Returns at once; questions that are open at the end get no reply."""
        task = asyncio.create_task(self._answer(read, reply))
        self._asked.add(task)
        task.add_done_callback(self._asked.discard)

    async def newest(self, read: ContextRead) -> Context | None:
        """The newest content of its context; None where it is gone, or the service doesn't answer in time.

        A reader with a staleness budget is content with what the watch has told. For one without, the service is asked
        whether that is the newest: a commit may have been accepted, and its author told so, before the watch tells of
        it. Content travels only where it isn't.
        """
        known = self._view.context(read.at.context)
        if read.max_staleness and known is not None:
            return known
        try:
            return await self._client.get_context(read.at.context, known=known)
        except CacheServiceError:
            return None

    async def close(self) -> None:
        """End all questions."""
        for task in self._asked:
            task.cancel()
        await asyncio.gather(*self._asked, return_exceptions=True)

    async def _answer(self, read: ContextRead, reply: ContextReply) -> None:
        reply(await self.newest(read))
