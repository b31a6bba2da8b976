"""Waiting for a build that another member holds, by the events of a watch that runs anyway."""

from __future__ import annotations

import asyncio

from cache_service.core.events import Built, Event, Granted, Released
from cache_service.core.types import Build, FencingToken, Revision, Snapshot


class BuildWaits:
    """Knows the builds under way. Feed `apply` with everything that one watch yields."""

    def __init__(self) -> None:
        self._revision = Revision(0)
        self._ends: dict[FencingToken, asyncio.Event] = {}

    def apply(self, item: Snapshot | Event) -> None:
        """Take one item of the watch. What a snapshot does not list has ended while nobody looked."""
        if isinstance(item, Snapshot):
            under_way = {build.token for build in item.builds}
            for token in under_way - self._ends.keys():
                self._ends[token] = asyncio.Event()
            for token in self._ends.keys() - under_way:
                self._ends.pop(token).set()
        elif isinstance(item, Granted):
            self._ends.setdefault(item.build.token, asyncio.Event())
        elif isinstance(item, Built | Released) and item.build.token in self._ends:
            self._ends.pop(item.build.token).set()
        self._revision = item.revision

    async def over(self, build: Build, timeout_s: float) -> bool:
        """True once `build` has ended, with an entry or without: look it up. False where `timeout_s` passed first."""
        if build.token not in self._ends and build.token <= self._revision:
            return True
        end = self._ends.setdefault(build.token, asyncio.Event())
        try:
            async with asyncio.timeout(timeout_s):  # wait_for forgets, before Python 3.12, that it was cancelled
                await end.wait()
        except TimeoutError:
            return False
        return True

    def __repr__(self) -> str:
        return f"<BuildWaits at {self._revision} [{len(self._ends)} under way]>"
