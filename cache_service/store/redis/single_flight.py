"""Share one call among many callers: each gets the outcome of a call that began after it asked."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable


class SharedFlight:
    """Runs `act` once for all calls that arrive while the run before is under way."""

    def __init__(self, act: Callable[[], Awaitable[None]]) -> None:
        self._act = act
        self._flying: asyncio.Task[None] | None = None
        self._boarding: asyncio.Task[None] | None = None

    async def __call__(self) -> None:
        """Return when a run that began after this call has ended. Raises what the run raised."""
        if self._boarding is None:
            self._boarding = asyncio.create_task(self._fly(after=self._flying))
            self._boarding.add_done_callback(_mark_retrieved)
        await asyncio.shield(self._boarding)

    async def close(self) -> None:
        """End the runs under way and cancel their callers."""
        flights = [flight for flight in (self._flying, self._boarding) if flight is not None]
        for flight in flights:
            flight.cancel()
        await asyncio.gather(*flights, return_exceptions=True)

    async def _fly(self, after: asyncio.Task[None] | None) -> None:
        if after is not None:
            await asyncio.wait([after])
        self._flying, self._boarding = self._boarding, None
        await self._act()


def _mark_retrieved(flight: asyncio.Task[None]) -> None:
    """Mark a failure as seen, even where every caller was cancelled meanwhile."""
    if not flight.cancelled():
        flight.exception()
