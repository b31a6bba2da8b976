"""Answer the router's questions about members and holders. Each look-up is one dictionary access."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping

from cache_service.core.mirror import Mirror
from cache_service.core.types import PrefixKey, ReplicaId, Revision


class PlacementView:
    """Answers the router's questions from a mirror of the cache service.

    Its answers are hints, never promises: a request that follows an outdated hint recomputes its prefix.
    """

    def __init__(self, mirror: Mirror) -> None:
        self._mirror = mirror

    def __repr__(self) -> str:
        return f"<PlacementView of {self._mirror}>"

    @property
    def revision(self) -> Revision:
        return self._mirror.revision

    @property
    def num_placements(self) -> int:
        return self._mirror.state.directory.num_placements

    def holders(self, keys: Iterable[PrefixKey]) -> Mapping[PrefixKey, frozenset[ReplicaId]]:
        """Return the holders of each of `keys`; a key without holders is absent."""
        found = self._mirror.state.directory.lookup(tuple(keys))
        return {key: frozenset(placement.replica for placement in placements) for key, placements in found.items()}

    def not_draining(self, replicas: Collection[ReplicaId]) -> list[ReplicaId]:
        """Return the `replicas` that accept new work, or all of them if none does."""
        directory = self._mirror.state.directory
        return [replica for replica in replicas if not directory.is_draining(replica)] or list(replicas)
