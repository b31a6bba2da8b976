"""The index of what a replica holds, builds and has announced."""

from __future__ import annotations

from cache_service.core.types import FIRST_EPOCH, Build, DepthLimit, FencingToken, Placement, PrefixKey, ReplicaId
from workers.bicache.entry_report import EntryReport, LiveEntry
from workers.coherence.inventory import Inventory

A, B = PrefixKey(b"a" * 20), PrefixKey(b"b" * 20)
REPLICA = ReplicaId("worker#1")


def live(key: PrefixKey, heat: int = 0) -> LiveEntry:
    return LiveEntry(key, 5, frozenset({2}), 2, 1000, heat=heat, drifted=(), build_s=0.1)


def placement(key: PrefixKey, heat: int = 0) -> Placement:
    return Placement(key, REPLICA, 5, 2, 1000, heat=heat)


def test_an_entry_is_present_from_the_time_that_it_is_pending() -> None:
    inventory = Inventory()
    inventory.apply(EntryReport(pending=(A,)))
    assert (inventory.has(A), inventory.find_live(A)) == (True, None)
    inventory.apply(EntryReport(live=(live(A),)))
    assert (inventory.has(A), inventory.find_live(A)) == (True, live(A))
    inventory.apply(EntryReport(gone=(A,)))
    assert (inventory.has(A), inventory.find_live(A)) == (False, None)


def test_an_entry_that_replaces_an_older_one_under_its_key_is_present() -> None:
    """In a report, entries that left precede those that were added."""
    inventory = Inventory()
    inventory.apply(EntryReport(live=(live(A),)))
    inventory.apply(EntryReport(gone=(A,), pending=(A,)))
    assert (inventory.has(A), inventory.find_live(A)) == (True, None)
    inventory.apply(EntryReport(abandoned=(A,), live=(live(A, heat=1),)))
    assert inventory.find_live(A) == live(A, heat=1)


def test_a_successor_is_present_before_the_engine_has_begun_with_it() -> None:
    inventory = Inventory()
    inventory.apply(EntryReport(live=(live(A),)))
    inventory.replace(A, B)
    assert (inventory.has(A), inventory.has(B)) == (False, True)
    assert inventory.find_live(A) == live(A)  # it serves its readers to the end
    inventory.replace(B, None)
    assert not inventory.has(B)


def test_what_differs_from_the_announcements_is_announced_or_withdrawn() -> None:
    inventory = Inventory()
    placements = {A: placement(A), B: placement(B)}
    assert inventory.unannounced(placements) == [placement(A), placement(B)]
    inventory.mark_announced(placements.values())
    hotter = {B: placement(B, heat=2)}
    assert inventory.announced_except(hotter) == [A]
    assert inventory.unannounced(hotter) == [placement(B, heat=2)]
    inventory.mark_withdrawn([A])
    assert inventory.announced_except(hotter) == []


def test_a_new_lease_begins_with_no_announcements_reports_or_builds() -> None:
    inventory, limit = Inventory(), DepthLimit(A, 60, 1, 0)
    inventory.add_build(Build(A, FIRST_EPOCH, REPLICA, FencingToken(1), 10.0))
    inventory.mark_announced([placement(A)])
    inventory.mark_reported([limit])
    inventory.apply(EntryReport(live=(live(A),)))
    assert inventory.unreported({limit}) == set()
    inventory.begin_lease()
    assert (inventory.find_build(A), inventory.unreported({limit})) == (None, {limit})
    assert inventory.unannounced({A: placement(A)}) == [placement(A)]
    assert inventory.find_live(A) == live(A)


def test_drift_is_reported_again_once_the_entry_is_announced_again() -> None:
    inventory, limit, other = Inventory(), DepthLimit(A, 60, 1, 0), DepthLimit(B, 60, 1, 0)
    inventory.mark_announced([placement(A), placement(B)])
    inventory.mark_reported([limit, other])
    inventory.mark_withdrawn([A])
    assert [inventory.is_announced(key) for key in (A, B)] == [False, True]
    assert inventory.unreported({limit, other}) == {limit}
