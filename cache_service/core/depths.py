"""Decide the depth limits of prefixes on which drift was measured. Pure.

A limit ends with the last placement of its key, so the limits are no more than the placements allow.
"""

from __future__ import annotations

from collections.abc import Iterable

from cache_service.core.events import Limited
from cache_service.core.types import DepthLimit, PrefixKey, ReplicaId, Revision
from cache_service.errors import InvalidRequest


class Depths:
    """Holds the depth limits by prefix and ratio bucket."""

    def __init__(self) -> None:
        self._limits: dict[PrefixKey, dict[int, DepthLimit]] = {}

    def report(self, limits: Iterable[DepthLimit], replica: ReplicaId, at: Revision) -> tuple[Limited, ...]:
        """Limit each prefix whose limit is lower than the known one, or was judged by a newer depth table."""
        lowered: dict[tuple[PrefixKey, int], DepthLimit] = {}
        for limit in limits:
            if not 0 <= limit.bucket <= 100:
                raise InvalidRequest(f"a bucket must lie within 0 and 100, got {limit}")
            identity = (limit.key, limit.bucket)
            known = lowered.get(identity) or self._limits.get(limit.key, {}).get(limit.bucket)
            if known is None or _rank(limit) > _rank(known):
                lowered[identity] = limit
        return tuple(Limited(Revision(at + i), replica, limit) for i, limit in enumerate(lowered.values()))

    def lookup(self, keys: Iterable[PrefixKey]) -> tuple[DepthLimit, ...]:
        return tuple(limit for key in keys for limit in self._limits.get(key, {}).values())

    def all(self) -> tuple[DepthLimit, ...]:
        return self.lookup(self._limits)

    def put(self, limit: DepthLimit) -> None:
        self._limits.setdefault(limit.key, {})[limit.bucket] = limit

    def drop(self, limit: DepthLimit) -> None:
        by_bucket = self._limits[limit.key]
        del by_bucket[limit.bucket]
        if not by_bucket:
            del self._limits[limit.key]


def _rank(limit: DepthLimit) -> tuple[int, int]:
    """Order limits: a newer depth table counts more, and under the same one a lower depth does."""
    return limit.depth_table_version, -limit.depth
