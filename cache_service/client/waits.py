"""Wait for other members' builds, by the updates of a watch that already runs."""

from __future__ import annotations

import asyncio

from cache_service.core.mirror import Mirror, News
from cache_service.core.types import Build, FencingToken


class BuildWaits:
    """Waits until builds end. Call `take` with the news of every update that the mirror applies."""

    def __init__(self, mirror: Mirror) -> None:
        self._mirror = mirror
        self._ends: dict[FencingToken, asyncio.Event] = {}

    def take(self, news: News) -> None:
        """End the waits for builds that have ended. A snapshot ends the waits for all builds that it doesn't list."""
        ended = self._ends.keys() & news.ended_builds
        if news.is_restart:
            ended = self._ends.keys() - {build.token for build in self._mirror.state.builds.all()}
        for token in ended:
            self._ends.pop(token).set()

    async def wait_for_end(self, build: Build, timeout_s: float) -> bool:
        """Return True once `build` has ended, with or without an entry; False if `timeout_s` passes first."""
        if self._has_ended(build):
            return True
        end = self._ends.setdefault(build.token, asyncio.Event())
        try:
            async with asyncio.timeout(timeout_s):  # wait_for forgets, before Python 3.12, that it was cancelled
                await end.wait()
        except TimeoutError:
            return False
        return True

    def _has_ended(self, build: Build) -> bool:
        known = self._mirror.state.builds.get(build.key, build.epoch)
        is_under_way = known is not None and known.token == build.token
        return not is_under_way and build.token <= self._mirror.revision

    def __repr__(self) -> str:
        return f"<BuildWaits at {self._mirror.revision} [{len(self._ends)} waited for]>"
