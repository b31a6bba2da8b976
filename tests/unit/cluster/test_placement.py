from __future__ import annotations

from cache_service.core.events import Announced, Draining, Event, Joined, Left, Withdrawn
from cache_service.core.mirror import Mirror
from cache_service.core.types import (
    Lease,
    LeaseId,
    Placement,
    PrefixKey,
    ReplicaId,
    Revision,
    Snapshot,
)
from cluster.placement import PlacementView

A, B = ReplicaId("a"), ReplicaId("b")
SHEET, TALK = PrefixKey(b"sheet"), PrefixKey(b"talk")


def placement(key: PrefixKey, replica: ReplicaId) -> Placement:
    return Placement(key, replica, num_tokens=100, safe_depth=4, size_bytes=1)


def snapshot(revision: int, *placements: Placement) -> Snapshot:
    return Snapshot(Revision(revision), tuple({p.replica for p in placements}), placements)


def announced(revision: int, key: PrefixKey, replica: ReplicaId) -> Event:
    return Announced(Revision(revision), placement(key, replica))


def withdrawn(revision: int, key: PrefixKey, replica: ReplicaId) -> Event:
    return Withdrawn(Revision(revision), placement(key, replica))


def test_a_view_of_an_empty_mirror_gives_no_hints() -> None:
    assert PlacementView(Mirror()).holders((SHEET,)) == {}


def test_events_after_a_snapshot_are_followed() -> None:
    mirror = Mirror()
    view = PlacementView(mirror)
    mirror.take(snapshot(5, placement(SHEET, A)))
    mirror.take(Joined(Revision(6), Lease(LeaseId(6), B, 10.0)))
    mirror.take(announced(7, SHEET, B))
    mirror.take(announced(8, TALK, B))

    assert view.holders((SHEET, TALK)) == {SHEET: {A, B}, TALK: {B}}
    mirror.take(withdrawn(9, SHEET, B))
    assert view.holders((SHEET, TALK)) == {SHEET: {A}, TALK: {B}}
    mirror.take(Left(Revision(10), B))
    assert view.holders((SHEET, TALK)) == {SHEET: {A}}
    assert (view.revision, view.num_placements) == (10, 1)


def test_a_known_event_changes_nothing() -> None:
    mirror = Mirror()
    view = PlacementView(mirror)
    mirror.take(snapshot(5))
    mirror.take(announced(4, SHEET, A))
    mirror.take(announced(5, SHEET, A))

    assert view.holders((SHEET,)) == {}


def test_a_snapshot_replaces_everything_even_by_a_lower_revision() -> None:
    """A service that lost its memory counts from the start again."""
    mirror = Mirror()
    view = PlacementView(mirror)
    mirror.take(snapshot(50, placement(SHEET, A), placement(TALK, B)))
    mirror.take(snapshot(2, placement(TALK, A)))
    mirror.take(announced(3, SHEET, B))

    assert view.holders((SHEET, TALK)) == {SHEET: {B}, TALK: {A}}


def test_a_draining_replica_gets_no_new_work_while_there_are_others() -> None:
    mirror = Mirror()
    view = PlacementView(mirror)
    a, b = ReplicaId("a"), ReplicaId("b")
    mirror.take(Snapshot(Revision(5), (a, b), (), draining=(a,)))
    assert view.not_draining([a, b]) == [b]
    mirror.take(Draining(Revision(6), b))
    assert view.not_draining([a, b]) == [a, b]
    mirror.take(Left(Revision(7), a))
    assert view.not_draining([a, b]) == [a]
