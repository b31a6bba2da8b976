"""Reads the newest content of shared contexts, for requests in follow mode, so that the engine never waits for it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress

from cache_service.client import CacheClient
from cache_service.contexts import Contexts
from cache_service.errors import CacheServiceError
from cache_service.types import Context, ContextId, Event, Revision, Snapshot
from workers.api import ContextRead
from workers.bicache.threads import LoopThread

Reply = Callable[[Context | None], None]
"""Takes the newest content of a context, None where it isn't known; from any thread, and at once."""


class ContextView:
    """A copy of all contexts at one revision, fed by a watch. Pure: `apply` is the only way in."""

    def __init__(self) -> None:
        self._revision = Revision(0)
        self._contexts = Contexts()

    def find(self, context: ContextId) -> Context | None:
        """What the watch has told of it so far; None where it has told nothing, or that it is gone."""
        return self._contexts.find(context)

    def apply(self, update: Snapshot | Event) -> None:
        """Take one message of a watch. An event that the view already covers changes nothing."""
        if isinstance(update, Snapshot):
            self._contexts = Contexts()
            for context in update.contexts:
                self._contexts.restore(context)
        elif update.revision <= self._revision:
            return
        else:
            self._contexts.apply(update)
        self._revision = update.revision

    def __repr__(self) -> str:
        return f"<ContextView at {self._revision} [{len(self._contexts)} contexts]>"


class ContextReader:
    """Lives in one event loop. The first reader with a staleness budget starts the watch, which then runs on."""

    def __init__(self, client: CacheClient) -> None:
        self._client = client
        self._view = ContextView()
        self._watching: asyncio.Task[None] | None = None

    async def newest(self, read: ContextRead) -> Context | None:
        """The newest content of its context; None where it is gone, or the service doesn't answer in time.

        Without a staleness budget the service is asked, so that nothing that was committed before the call is missed.
        With one, what the watch has told is enough.
        """
        if read.max_staleness:
            self._watching = self._watching or asyncio.create_task(self._watch())
            if known := self._view.find(read.at.context):
                return known
        try:
            return await self._client.get_context(read.at.context)
        except CacheServiceError:
            return None

    async def close(self) -> None:
        """End the watch."""
        if self._watching is not None:
            self._watching.cancel()
            with suppress(asyncio.CancelledError):
                await self._watching

    async def _watch(self) -> None:
        async for update in self._client.watch():
            self._view.apply(update)


class FollowThread(LoopThread):
    """A `ContextReader` in an event loop and thread of its own. Questions that are open at its end get no reply."""

    def __init__(self, target: str, timeout_s: float) -> None:
        """After `timeout_s` a question is answered with None."""
        super().__init__("context-follow")
        self._client = CacheClient(target, timeout_s=timeout_s)
        self._reader = ContextReader(self._client)
        self._asked: set[asyncio.Task[None]] = set()

    def ask(self, read: ContextRead, reply: Reply) -> None:
        """From any thread; returns at once. `reply` is called on this object's thread with the newest content."""
        self._loop.call_soon_threadsafe(self._begin, read, reply)

    def _begin(self, read: ContextRead, reply: Reply) -> None:
        task = self._loop.create_task(self._answer(read, reply))
        self._asked.add(task)
        task.add_done_callback(self._asked.discard)

    async def _answer(self, read: ContextRead, reply: Reply) -> None:
        reply(await self._reader.newest(read))

    async def _main(self) -> None:
        async with self._client:
            await self._stop.wait()
            await self._reader.close()
            for task in self._asked:
                task.cancel()
            await asyncio.gather(*self._asked, return_exceptions=True)
