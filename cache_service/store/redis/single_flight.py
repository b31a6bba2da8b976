"""Coalesce concurrent calls: each caller gets the outcome of a run that began after its own call."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable


class SharedFlight:
    """Runs `act` once for all callers that arrive during the previous run."""

    def __init__(self, act: Callable[[], Awaitable[None]]) -> None:
        self._act = act
        self._current: asyncio.Task[None] | None = None
        self._next: asyncio.Task[None] | None = None

    async def __call__(self) -> None:
        """Wait until a run that began after this call has ended. Raises what the run raised."""
        if self._next is None:
            self._next = asyncio.create_task(self._run(after=self._current))
            self._next.add_done_callback(_mark_retrieved)
        await asyncio.shield(self._next)

    async def close(self) -> None:
        """End the current runs and cancel their callers."""
        runs = [run for run in (self._current, self._next) if run is not None]
        for run in runs:
            run.cancel()
        await asyncio.gather(*runs, return_exceptions=True)

    async def _run(self, after: asyncio.Task[None] | None) -> None:
        if after is not None:
            await asyncio.wait([after])
        self._current, self._next = self._next, None
        await self._act()


def _mark_retrieved(run: asyncio.Task[None]) -> None:
    """Mark a failure as seen, even if every caller has been cancelled."""
    if not run.cancelled():
        run.exception()
