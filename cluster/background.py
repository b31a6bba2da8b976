"""Run tasks that last as long as their process. If one ends, the process reports itself unhealthy, with the reason."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager, suppress
from functools import partial
from typing import Any

from cache_service.client.contact import WatchContact
from cluster.errors import BackgroundTaskError

logger = logging.getLogger(__name__)

Work = Coroutine[Any, Any, None]


class BackgroundTasks:
    """Starts tasks that should never end, and remembers why any of them has ended."""

    def __init__(self) -> None:
        self._running: set[asyncio.Task[None]] = set()
        self._failures: dict[str, str] = {}

    def start(self, name: str, work: Work) -> asyncio.Task[None]:
        """Run `work` in a task of its own, which should never end. `name` says in messages what it does."""
        task = asyncio.get_running_loop().create_task(work, name=name)
        self._running.add(task)
        task.add_done_callback(partial(self._record_end, name))
        return task

    @asynccontextmanager
    async def running(self, name: str, work: Work) -> AsyncIterator[None]:
        """Run `work` as `start` does, and cancel it when the context is left."""
        task = self.start(name, work)
        try:
            yield
        finally:
            self._running.discard(task)
            task.cancel()
            with suppress(asyncio.CancelledError, Exception):  # how it ends is of no interest any more
                await task

    def check(self) -> None:
        """Raise BackgroundTaskError if a task has ended by itself."""
        if self._failures:
            raise BackgroundTaskError("; ".join(self._failures.values()))

    def _record_end(self, name: str, task: asyncio.Task[None]) -> None:
        if task not in self._running:
            return
        self._running.discard(task)
        error = None if task.cancelled() else task.exception()
        reason = "it was cancelled" if task.cancelled() else repr(error) if error else "it returned"
        self._failures[name] = f"{name} has ended ({reason}); restart this process, and see its log"
        logger.error("%s has ended (%s); /health fails until this process is restarted", name, reason, exc_info=error)


_OF_PROCESS = BackgroundTasks()
_CONTACT = WatchContact()


def tasks_of_process() -> BackgroundTasks:
    """Return this process's tasks: those of its ingress, and of the routers that Serve makes in it."""
    return _OF_PROCESS


def contact_of_process() -> WatchContact:
    """Return the record of what this process's routers hear from the cache service."""
    return _CONTACT
