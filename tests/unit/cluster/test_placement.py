from __future__ import annotations

from cache_service.core.events import Announced, Draining, Event, Joined, Left, Withdrawn
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


def test_a_view_without_news_gives_no_hints() -> None:
    assert PlacementView().holders((SHEET,)) == {}


def test_events_after_a_snapshot_are_followed() -> None:
    view = PlacementView()
    view.apply(snapshot(5, placement(SHEET, A)))
    view.apply(Joined(Revision(6), Lease(LeaseId(6), B, 10.0)))
    view.apply(announced(7, SHEET, B))
    view.apply(announced(8, TALK, B))

    assert view.holders((SHEET, TALK)) == {SHEET: {A, B}, TALK: {B}}
    view.apply(withdrawn(9, SHEET, B))
    assert view.holders((SHEET, TALK)) == {SHEET: {A}, TALK: {B}}
    view.apply(Left(Revision(10), B))
    assert view.holders((SHEET, TALK)) == {SHEET: {A}}
    assert (view.revision, view.num_placements) == (10, 1)


def test_an_event_that_is_known_already_changes_nothing() -> None:
    view = PlacementView()
    view.apply(snapshot(5))
    view.apply(announced(4, SHEET, A))
    view.apply(announced(5, SHEET, A))

    assert view.holders((SHEET,)) == {}


def test_a_snapshot_replaces_everything_even_by_a_lower_revision() -> None:
    """A service that lost its memory counts anew."""
    view = PlacementView()
    view.apply(snapshot(50, placement(SHEET, A), placement(TALK, B)))
    view.apply(snapshot(2, placement(TALK, A)))
    view.apply(announced(3, SHEET, B))

    assert view.holders((SHEET, TALK)) == {SHEET: {B}, TALK: {A}}


def test_a_draining_replica_gets_no_new_work_while_there_are_others() -> None:
    view = PlacementView()
    a, b = ReplicaId("a"), ReplicaId("b")
    view.apply(Snapshot(Revision(5), (a, b), (), draining=(a,)))
    assert view.not_draining([a, b]) == [b]
    view.apply(Draining(Revision(6), b))
    assert view.not_draining([a, b]) == [a, b]
    view.apply(Left(Revision(7), a))
    assert view.not_draining([a, b]) == [a]
