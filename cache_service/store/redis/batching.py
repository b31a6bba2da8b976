"""Which waiting decisions can be appended together. Pure.

All decisions of a batch are taken on one state, so none may depend on what an earlier one of the batch changes. That
is sure of announcements of different placements: each reads only leases, epochs and its own placement, and changes
only the latter. Anything else, a decision without events too, goes alone or begins the next batch.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from cache_service.core.state import State
from cache_service.core.types import Event, EventKind, PrefixKey, ReplicaId, Revision
from cache_service.errors import CacheServiceError
from cache_service.store.base import Decision

MAX_EVENTS = 512


class Proposal:
    """A decision that waits for its turn, and what came of it."""

    def __init__(self, decide: Decision) -> None:
        self.decide = decide
        self.is_settled = False
        self.is_up_to_date = False
        """Whether the state has caught up since the proposal was made, so that a refusal by it counts."""
        self._events: Sequence[Event] = ()
        self._refusal: CacheServiceError | None = None

    def accept(self, events: Sequence[Event]) -> None:
        self.is_settled, self._events = True, events

    def refuse(self, refusal: CacheServiceError) -> None:
        self.is_settled, self._refusal = True, refusal

    def outcome(self) -> Sequence[Event]:
        """The events that were appended. Raises what refused it."""
        if self._refusal is not None:
            raise self._refusal
        return self._events


def batch_of(proposals: Iterable[Proposal], state: State) -> list[tuple[Proposal, Sequence[Event]]]:
    """The first of `proposals` and as many of those after it as can go with it, each with its events.

    Raises what the first one's decision raises; its events may be none. The events are numbered on from one another.
    """
    first, *others = proposals
    events = first.decide(state, state.next_revision)
    batch = [(first, events)]
    places: set[tuple[PrefixKey, ReplicaId]] = set()
    if not _claims(events, places):
        return batch
    at = Revision(state.next_revision + len(events))
    for proposal in others:
        try:
            events = proposal.decide(state, at)
        except Exception:  # it fails in its own turn, and nobody else's
            break
        if len(places) + len(events) > MAX_EVENTS or not _claims(events, places):
            break
        batch.append((proposal, events))
        at = Revision(at + len(events))
    return batch


def _claims(events: Sequence[Event], places: set[tuple[PrefixKey, ReplicaId]]) -> bool:
    """Add the places that `events` announce; False where they do anything else, or a place is taken."""
    claimed = {(e.placement.key, e.placement.replica) for e in events if e.placement is not None}
    if not events or any(e.kind is not EventKind.ANNOUNCED for e in events) or not places.isdisjoint(claimed):
        return False
    places |= claimed
    return True
