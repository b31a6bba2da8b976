"""Restart failed background tasks, and report those that have ended for good."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable

from cache_service.errors import CacheServiceUnavailable

_log = logging.getLogger(__name__)

RESTART_S = 2.0
"""Seconds before a failed task begins again."""

Run = Callable[[], Awaitable[None]]


def ignore_failure(_: BaseException) -> None:
    """Ignore a failure, which is logged already."""


async def run_forever(run: Run, on_failure: Callable[[BaseException], None] = ignore_failure) -> None:
    """Run `run` again and again, after every failure, until this task is cancelled.

    A return counts as a failure, and so does a CancelledError without a request to cancel this task, as a library may
    raise it. `on_failure` gets each failure.
    """
    while True:
        try:
            await run()
            failure: BaseException = RuntimeError("it returned, although it should never end")
        except asyncio.CancelledError as error:
            if is_cancelling():
                raise
            failure = error
        except Exception as error:
            failure = error
        if is_cancelling():  # what ran has swallowed the cancellation
            return
        _log.error("a background task failed (%r) and begins again in %g s", failure, RESTART_S, exc_info=failure)
        on_failure(failure)
        await asyncio.sleep(RESTART_S)


def is_cancelling() -> bool:
    """Return whether the current task was asked to end."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


class BackgroundTasks:
    """Runs tasks that begin again after every failure, and remembers those that have ended for good."""

    def __init__(self, on_failure: Callable[[str], None], on_end: Callable[[], None]) -> None:
        """Call `on_failure` with the name of a task after each failure, and `on_end` once one has ended."""
        self._on_failure, self._on_end = on_failure, on_end
        self._running: dict[asyncio.Task[None], str] = {}
        self._ended: dict[str, str] = {}

    def start(self, name: str, run: Run) -> asyncio.Task[None]:
        """Run `run` in a task of its own until `close`. `name` says in messages what it does."""
        task = asyncio.get_running_loop().create_task(run_forever(run, lambda _: self._on_failure(name)), name=name)
        self._running[task] = name
        task.add_done_callback(self._record_end)
        return task

    def check(self) -> None:
        """Raise CacheServiceUnavailable if a task has ended for good."""
        if self._ended:
            reasons = (f"{name} has ended ({reason})" for name, reason in self._ended.items())
            raise CacheServiceUnavailable(f"{'; '.join(reasons)}: restart this instance, and see its log")

    async def close(self) -> None:
        """Cancel all tasks, and wait until they have ended."""
        tasks = tuple(self._running)
        self._running.clear()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _record_end(self, task: asyncio.Task[None]) -> None:
        if (name := self._running.pop(task, None)) is None:
            return
        error = None if task.cancelled() else task.exception()
        self._ended[name] = "it was cancelled" if task.cancelled() else repr(error) if error else "it returned"
        _log.error("%s has ended (%s); restart this instance", name, self._ended[name], exc_info=error)
        self._on_end()
