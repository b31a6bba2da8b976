"""Which replica holds which prefix, as the cache service last told. Look-ups are a dictionary's."""

from __future__ import annotations

from collections.abc import Mapping

from cache_service.types import Event, EventKind, Placement, PrefixKey, ReplicaId, Revision, Snapshot


class PlacementView:
    """The placements at one revision, fed by a watch. Pure: `apply` is the only way in.

    The view is a hint, never a promise: without updates it grows old and a request that follows it recomputes.
    """

    def __init__(self) -> None:
        self.revision = Revision(0)
        self._holders: dict[PrefixKey, dict[ReplicaId, Placement]] = {}
        self._held: dict[ReplicaId, set[PrefixKey]] = {}

    def __repr__(self) -> str:
        return f"<PlacementView [{len(self._holders)} prefixes on {len(self._held)} replicas | r{self.revision}]>"

    @property
    def num_prefixes(self) -> int:
        return len(self._holders)

    @property
    def num_placements(self) -> int:
        return sum(map(len, self._held.values()))

    def holders(self, key: PrefixKey) -> frozenset[ReplicaId]:
        return frozenset(self._holders.get(key, ()))

    def match(self, keys: tuple[PrefixKey, ...]) -> Mapping[PrefixKey, frozenset[ReplicaId]]:
        """The holders of each of `keys`; a key that nobody holds is absent."""
        return {key: self.holders(key) for key in keys if key in self._holders}

    def apply(self, update: Snapshot | Event) -> None:
        """Take one message of a watch. An event that the view already covers changes nothing."""
        if isinstance(update, Snapshot):
            self._replace(update)
        elif update.revision > self.revision:
            self._change(update)
            self.revision = update.revision

    def _replace(self, snapshot: Snapshot) -> None:
        self._holders.clear()
        self._held.clear()
        for placement in snapshot.placements:
            self._add(placement)
        self.revision = snapshot.revision

    def _change(self, event: Event) -> None:
        match event:
            case Event(kind=EventKind.ANNOUNCED, placement=Placement() as placement):
                self._add(placement)
            case Event(kind=EventKind.WITHDRAWN, placement=Placement() as placement):
                self._discard(placement.key, placement.replica)
            case Event(kind=EventKind.LEFT | EventKind.JOINED, replica=replica):
                for key in tuple(self._held.get(replica, ())):
                    self._discard(key, replica)

    def _add(self, placement: Placement) -> None:
        self._holders.setdefault(placement.key, {})[placement.replica] = placement
        self._held.setdefault(placement.replica, set()).add(placement.key)

    def _discard(self, key: PrefixKey, replica: ReplicaId) -> None:
        holders, held = self._holders.get(key, {}), self._held.get(replica, set())
        holders.pop(replica, None)
        held.discard(key)
        if not holders:
            self._holders.pop(key, None)
        if not held:
            self._held.pop(replica, None)

    def check_integrity(self) -> None:
        """Both indices say the same, and neither keeps an empty entry."""
        forward = {(key, replica) for key, holders in self._holders.items() for replica in holders}
        backward = {(key, replica) for replica, keys in self._held.items() for key in keys}
        if forward != backward or not all(self._holders.values()) or not all(self._held.values()):
            raise AssertionError(f"{self!r}: indices differ: {forward ^ backward}")
