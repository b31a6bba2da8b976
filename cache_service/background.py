"""Keep tasks running that should run as long as their process."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable

_log = logging.getLogger(__name__)

RESTART_S = 2.0
"""How long a task that failed rests before it begins again."""


def ignore(_: BaseException) -> None:
    """Do nothing about a failure that is logged already."""


async def run_forever(run: Callable[[], Awaitable[None]], on_failure: Callable[[BaseException], None] = ignore) -> None:
    """Run what never ends by itself, and again after every failure, until this task is cancelled.

    A return counts as a failure, and so does a cancellation that nobody asked this task for, as a library may raise
    it. `on_failure` gets each failure.
    """
    while True:
        try:
            await run()
            raise RuntimeError("it returned, although it should never end")
        except asyncio.CancelledError as error:
            if is_cancelling():
                raise
            failure: BaseException = error
        except Exception as error:
            failure = error
        _log.error("a background task failed (%r) and begins again in %g s", failure, RESTART_S, exc_info=failure)
        on_failure(failure)
        await asyncio.sleep(RESTART_S)


def is_cancelling() -> bool:
    """Return whether the current task was asked to end."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0
