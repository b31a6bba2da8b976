"""Remember whether the service could be reached lately, for metrics and health."""

from __future__ import annotations

import time
from collections.abc import Callable

MAX_SILENCE_S = 15.0
"""Seconds without a message after which an instance counts as hanging; a message is due every 5 s. gRPC holds its own
pings back while no data flows, so they would take more than a minute to notice."""


class WatchContact:
    """Records when a watch last heard from the service. Any thread may read it."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._heard_at: float | None = None
        self._failure: str | None = None

    @property
    def silence_s(self) -> float:
        """Return the seconds since the watch last heard from the service, or since it began."""
        return 0.0 if self._heard_at is None else max(0.0, self._clock() - self._heard_at)

    @property
    def is_reachable(self) -> bool:
        """Return whether the watch runs: it has not failed since the last message, and that is not too old."""
        return self._failure is None and self.silence_s <= MAX_SILENCE_S

    @property
    def reason(self) -> str | None:
        """Return why the service counts as unreachable; None while it is reachable."""
        if self.is_reachable:
            return None
        cause = f": {self._failure}" if self._failure else ""
        return f"the cache service has not been heard for {self.silence_s:.0f} s{cause}"

    def record_begin(self) -> None:
        """Count silence from now on, unless a watch began before."""
        self._heard_at = self._clock() if self._heard_at is None else self._heard_at

    def record_message(self) -> None:
        self._heard_at, self._failure = self._clock(), None

    def record_failure(self, failure: Exception) -> None:
        self._failure = str(failure)
