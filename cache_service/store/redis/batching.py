"""Choose the waiting decisions that can be appended together. Pure.

All decisions of a batch are made on one state, so none may depend on what an earlier one of the batch changes. That
holds for announcements of different placements: each reads only leases, epochs and its own placement, and changes
only the placement. Any other decision, even one without events, goes alone or begins the next batch.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from cache_service.core.events import Announced, Event
from cache_service.core.state import State
from cache_service.core.types import PrefixKey, ReplicaId, Revision
from cache_service.errors import CacheServiceError
from cache_service.store.base import Decision

MAX_EVENTS = 512


class Proposal:
    """Holds a decision that waits for its turn, and its outcome."""

    def __init__(self, decide: Decision) -> None:
        self.decide = decide
        self.is_decided = False
        self.is_up_to_date = False
        """The state has caught up since the proposal was made, so a refusal counts."""
        self._events: Sequence[Event] = ()
        self._refusal: CacheServiceError | None = None

    def accept(self, events: Sequence[Event]) -> None:
        self.is_decided, self._events = True, events

    def refuse(self, refusal: CacheServiceError) -> None:
        self.is_decided, self._refusal = True, refusal

    def outcome(self) -> Sequence[Event]:
        """Return the events that were appended. Raises the refusal."""
        if self._refusal is not None:
            raise self._refusal
        return self._events


def batch_of(proposals: Iterable[Proposal], state: State) -> list[tuple[Proposal, Sequence[Event]]]:
    """Return the first of `proposals` and as many of the following ones as can go with it, each with its events.

    Raises what the first decision raises, which may also have no events. The batch numbers its events consecutively.
    """
    first, *others = proposals
    events = first.decide(state, state.next_revision)
    batch = [(first, events)]
    claimed: set[tuple[PrefixKey, ReplicaId]] = set()
    if not _claim(events, claimed):
        return batch
    at = Revision(state.next_revision + len(events))
    for proposal in others:
        try:
            events = proposal.decide(state, at)
        except Exception:  # it fails in its own turn, without harm to the others
            break
        if len(claimed) + len(events) > MAX_EVENTS or not _claim(events, claimed):
            break
        batch.append((proposal, events))
        at = Revision(at + len(events))
    return batch


def _claim(events: Sequence[Event], claimed: set[tuple[PrefixKey, ReplicaId]]) -> bool:
    """Claim the placements that `events` announce; return False if one is taken, or an event isn't Announced."""
    announced = [event.placement for event in events if isinstance(event, Announced)]
    claims = {(placement.key, placement.replica) for placement in announced}
    if not events or len(announced) < len(events) or not claimed.isdisjoint(claims):
        return False
    claimed |= claims
    return True
