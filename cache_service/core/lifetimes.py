"""Decide when a shared context with a time to live ends. Pure.

The clock is the wall clock of the instance that decides, since an end must outlast every process.
"""

from __future__ import annotations

from dataclasses import dataclass

from cache_service.core.types import Lifetime
from cache_service.errors import InvalidRequest

MIN_TTL_S = 1.0
MAX_TTL_S = 31_536_000.0
"""A year."""


@dataclass(frozen=True, slots=True)
class Renewal:
    """Begins the lifetime of a context at `now`, for the first time or again."""

    now: float
    ttl_s: float | None = None
    """The time to live from now on; None keeps the one that the context has, if any."""

    def lifetime_after(self, before: Lifetime | None) -> Lifetime | None:
        """Return the lifetime that follows `before`. Raises InvalidRequest for a time to live out of bounds."""
        ttl_s = self.ttl_s if self.ttl_s is not None or before is None else before.ttl_s
        if ttl_s is None:
            return None
        require_ttl(ttl_s)
        return Lifetime(ttl_s, self.now + ttl_s)


def require_ttl(ttl_s: float, name: str = "ttl_s of a context") -> None:
    """Raise InvalidRequest for a time to live out of bounds."""
    if not MIN_TTL_S <= ttl_s <= MAX_TTL_S:
        raise InvalidRequest(f"{name} must lie within {MIN_TTL_S:.0f} and {MAX_TTL_S:.0f} seconds, got {ttl_s}")
