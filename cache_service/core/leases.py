"""Track the deadlines of leases on one clock. Pure."""

from __future__ import annotations

from cache_service.core.types import LeaseId


class Leases:
    """Keeps the active leases. A lapsed lease never becomes active again: its holder needs a new one."""

    def __init__(self) -> None:
        self._deadlines: dict[LeaseId, float] = {}

    def grant(self, lease: LeaseId, ttl_s: float, now: float) -> None:
        self._deadlines[lease] = now + ttl_s

    def renew(self, lease: LeaseId, ttl_s: float, now: float) -> bool:
        """Set the deadline to `now + ttl_s`; return False if the lease has ended already."""
        deadline = self._deadlines.get(lease)
        if deadline is None or deadline <= now:
            return False
        self._deadlines[lease] = now + ttl_s
        return True

    def revoke(self, lease: LeaseId) -> None:
        self._deadlines.pop(lease, None)

    def lapsed(self, now: float) -> frozenset[LeaseId]:
        return frozenset(lease for lease, deadline in self._deadlines.items() if deadline <= now)

    def __len__(self) -> int:
        return len(self._deadlines)
