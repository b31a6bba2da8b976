"""Everything the cache service knows, at one revision. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Self

from cache_service.directory import Directory
from cache_service.types import Event, Lease, Placement, Revision, Snapshot


class State:
    """The fold of all events up to `revision`."""

    def __init__(self) -> None:
        self.revision = Revision(0)
        self.directory = Directory()

    @classmethod
    def restore(cls, revision: Revision, members: Iterable[Lease], placements: Iterable[Placement]) -> Self:
        """The state whose facts these are."""
        state = cls()
        state.revision = revision
        for lease in members:
            state.directory.admit(lease)
        for placement in placements:
            state.directory.place(placement)
        return state

    @property
    def next_revision(self) -> Revision:
        return Revision(self.revision + 1)

    def apply(self, event: Event) -> None:
        """Take the next event. Raises ValueError on a gap."""
        if event.revision != self.next_revision:
            raise ValueError(f"event {event.revision} can't follow revision {self.revision}")
        self.directory.apply(event)
        self.revision = event.revision

    def snapshot(self) -> Snapshot:
        members = tuple(lease.replica for lease in self.directory.members())
        return Snapshot(self.revision, members, tuple(self.directory.placements()))

    def __repr__(self) -> str:
        return f"<State at {self.revision}: {self.directory}>"
