"""Which replica holds which prefix, as the cache service last told. Look-ups are a dictionary's."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping

from cache_service.core.events import Event
from cache_service.core.state import State
from cache_service.core.types import PrefixKey, ReplicaId, Revision, Snapshot


class PlacementView:
    """A copy of the service's directory at one revision, fed by a watch. Pure: `apply` is the only way in.

    The view is a hint, never a promise: without updates it grows old, and a request that follows it recomputes.
    """

    def __init__(self) -> None:
        self._state = State()

    @property
    def revision(self) -> Revision:
        return self._state.revision

    def __repr__(self) -> str:
        return f"<PlacementView at {self.revision}: {self._state.directory}>"

    @property
    def num_placements(self) -> int:
        return self._state.directory.num_placements

    def holders(self, keys: Iterable[PrefixKey]) -> Mapping[PrefixKey, frozenset[ReplicaId]]:
        """Who holds each of `keys`; a key that nobody holds is absent."""
        found = self._state.directory.lookup(tuple(keys))
        return {key: frozenset(placement.replica for placement in placements) for key, placements in found.items()}

    def not_draining(self, replicas: Collection[ReplicaId]) -> list[ReplicaId]:
        """Those of `replicas` that take new work; all of them where none does."""
        return [replica for replica in replicas if not self._state.directory.is_draining(replica)] or list(replicas)

    def apply(self, update: Snapshot | Event) -> None:
        """Take one message of a watch. An event that the view already covers changes nothing."""
        if isinstance(update, Snapshot):
            self._state = State.of(update)
        elif update.revision > self.revision:
            self._state.apply(update)
