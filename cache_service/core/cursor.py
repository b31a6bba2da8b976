"""Cut a watch into updates, and follow the updates. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from cache_service.core.events import Created, Deleted, Edited, Event, Renewed
from cache_service.core.types import Revision, Snapshot
from cache_service.errors import Compacted

MAX_PART_PLACEMENTS = 4096
"""Maximum number of placements or depth limits in one part of a snapshot: about 400 KB of gRPC's 4 MB."""

MAX_BATCH_TOKENS = 262_144
"""Maximum number of context tokens and name characters, in all, in the events of one message."""


@dataclass(frozen=True, slots=True)
class Part:
    """Holds a piece of a snapshot: the whole is the union of the pieces up to the last."""

    snapshot: Snapshot
    last: bool


@dataclass(frozen=True, slots=True)
class Update:
    """Carries a part of a snapshot, or events, or neither: then it only gives an idle watcher the newest `revision`."""

    incarnation: str
    revision: Revision
    part: Part | None = None
    events: tuple[Event, ...] = ()


def parts_of(snapshot: Snapshot) -> Iterator[Part]:
    """Yield `snapshot` in pieces that each fit a message; a context has a piece of its own."""
    pieces = [replace(snapshot, placements=(), contexts=(), limits=())]
    empty = Snapshot(snapshot.revision, (), ())
    for start in range(0, len(snapshot.placements), MAX_PART_PLACEMENTS):
        pieces.append(replace(empty, placements=snapshot.placements[start : start + MAX_PART_PLACEMENTS]))
    for start in range(0, len(snapshot.limits), MAX_PART_PLACEMENTS):
        pieces.append(replace(empty, limits=snapshot.limits[start : start + MAX_PART_PLACEMENTS]))
    pieces.extend(replace(empty, contexts=(context,)) for context in snapshot.contexts)
    for i, piece in enumerate(pieces):
        yield Part(piece, last=i == len(pieces) - 1)


def batch_of(events: Sequence[Event]) -> tuple[Event, ...]:
    """Return as many of `events` as fit a message, and at least the first."""
    num_tokens = 0
    for i, event in enumerate(events):
        num_tokens += _weight(event)
        if num_tokens > MAX_BATCH_TOKENS and i > 0:
            return tuple(events[:i])
    return tuple(events)


def content_size(event: Event) -> int:
    """Return the number of tokens, holes and edits that `event` holds."""
    match event:
        case Created(context=context):
            return len(context.token_ids) + len(context.masked)
        case Edited(edits=edits):
            return sum(2 + len(edit.token_ids) for edit in edits)
        case _:
            return 0


def _weight(event: Event) -> int:
    """Estimate the size of `event` in tokens; fields that are always small don't count."""
    match event:
        case Created(author=author, context=context):
            return len(author) + content_size(event) + len(context.salt) + len(context.fingerprint)
        case Edited(author=author):
            return len(author) + content_size(event)
        case Deleted(author=author) | Renewed(author=author):
            return len(author)
        case _:
            return len(event.replica)


def _whole(pieces: list[Snapshot]) -> Snapshot:
    return Snapshot(
        revision=pieces[0].revision,
        members=tuple(member for piece in pieces for member in piece.members),
        placements=tuple(placement for piece in pieces for placement in piece.placements),
        draining=tuple(member for piece in pieces for member in piece.draining),
        contexts=tuple(context for piece in pieces for context in piece.contexts),
        builds=tuple(build for piece in pieces for build in piece.builds),
        limits=tuple(limit for piece in pieces for limit in piece.limits),
    )


class Cursor:
    """Turns the updates of many streams into one snapshot and then every later event, once and in order."""

    def __init__(self) -> None:
        self._incarnation = ""
        self._revision: Revision | None = None
        self._pieces: list[Snapshot] = []

    @property
    def incarnation(self) -> str:
        return self._incarnation

    def resume(self) -> Revision | None:
        """Drop an incomplete snapshot; return the revision after which to continue, or None to ask for a snapshot."""
        self._pieces.clear()
        return self._revision

    def reset(self) -> None:
        """Begin with a snapshot at the next stream."""
        self._revision = None
        self._pieces.clear()

    def take(self, update: Update) -> tuple[Snapshot | Event, ...]:
        """Return the part of `update` that is new. Raises Compacted on a gap: call `reset` and watch again."""
        if update.part is not None:
            return self._take_part(update.incarnation, update.part)
        if self._revision is None or update.incarnation != self._incarnation:
            raise Compacted(f"events of incarnation {update.incarnation!r} came without their snapshot")
        fresh = tuple(event for event in update.events if event.revision > self._revision)
        for event in fresh:
            if event.revision != self._revision + 1:
                raise Compacted(f"event {event.revision} came after revision {self._revision}: some are missing")
            self._revision = event.revision
        if not update.events and update.revision > self._revision:
            raise Compacted(f"the service is idle at {update.revision}, this view at {self._revision}")
        return fresh

    def _take_part(self, incarnation: str, part: Part) -> tuple[Snapshot, ...]:
        self._pieces.append(part.snapshot)
        if not part.last:
            return ()
        snapshot = _whole(self._pieces)
        self._pieces.clear()
        self._incarnation, self._revision = incarnation, snapshot.revision
        return (snapshot,)
