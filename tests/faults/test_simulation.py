"""A million operations over a faulty network break no invariant; with a bug planted in any of them, they do."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest

from cache_service.core.builds import Builds
from cache_service.core.contexts import Contexts
from cache_service.core.cursor import Cursor, Update
from cache_service.core.depths import Depths
from cache_service.core.events import Event
from cache_service.core.facts import Change
from cache_service.core.hashing import prefix_keys
from cache_service.core.leases import Leases
from cache_service.core.state import State
from cache_service.core.types import FencingToken, Placement, PrefixKey, ReplicaId, Snapshot
from cache_service.errors import Compacted, FencedToken, StaleEpoch
from cache_service.store.feed import Feed
from cache_service.testing import Violation
from tests.faults.simulation import Simulation


@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.system) for seed in range(1, 4))])
def test_no_invariant_breaks_under_faults(seed: int) -> None:
    simulation = Simulation(seed)
    simulation.run(num_operations=250_000)
    checker = simulation.checker
    assert checker.num_reads > 100_000
    assert checker.num_grants > 5_000
    assert checker.num_fenced > 100
    for watcher in simulation.watchers:
        assert watcher.num_gaps > 50
        assert watcher.checker.num_events > 10_000


def test_a_run_is_repeated_by_its_seed() -> None:
    one, two = Simulation(5), Simulation(5)
    one.run(5_000)
    two.run(5_000)
    assert one.store.state.snapshot() == two.store.state.snapshot()


Plant = Callable[[pytest.MonkeyPatch], None]


def reads_that_forget_epochs(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(State, "_is_fresh", lambda self, placement, max_staleness: True)


def edits_of_any_epoch(patch: pytest.MonkeyPatch) -> None:
    whole = Contexts.edit

    def edit(self: Contexts, context_id: Any, expected: Any, *rest: Any, renewal: Any) -> tuple[Event, ...]:
        try:
            return whole(self, context_id, expected, *rest, renewal=renewal)
        except StaleEpoch:
            (event,) = whole(self, context_id, self.get(context_id).epoch, *rest, renewal=renewal)
            return (replace(event, version=replace(event.version, epoch=expected + 1)),)

    patch.setattr(Contexts, "edit", edit)


def writes_under_any_token(patch: pytest.MonkeyPatch) -> None:
    whole = Builds.require

    def require(self: Builds, replica: Any, key: Any, epoch: Any, token: FencingToken) -> Any:
        try:
            return whole(self, replica, key, epoch, token)
        except FencedToken:
            build = self.get(key, epoch)
            if build is None:
                raise
            return build

    patch.setattr(Builds, "require", require)


def builds_for_every_caller(patch: pytest.MonkeyPatch) -> None:
    whole = Builds.acquire

    def acquire(self: Builds, lease: Any, key: Any, epoch: Any, *rest: Any) -> tuple[Event, ...]:
        held = self._builds.pop((key, epoch), None)
        try:
            return whole(self, lease, key, epoch, *rest)
        finally:
            if held is not None:
                self.put(held)

    patch.setattr(Builds, "acquire", acquire)


def leases_that_lapse_early(patch: pytest.MonkeyPatch) -> None:
    whole = Leases.grant
    patch.setattr(Leases, "grant", lambda self, lease, ttl_s, now: whole(self, lease, ttl_s / 4, now))


def leases_that_never_lapse(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Leases, "lapsed", lambda self, now: frozenset())


def watchers_that_skip_gaps(patch: pytest.MonkeyPatch) -> None:
    def take(self: Cursor, update: Update) -> Sequence[Snapshot | Event]:
        if update.part is not None:
            return self._take_part(update.incarnation, update.part)
        if self._revision is None:
            raise Compacted("no snapshot yet")
        fresh = [event for event in update.events if event.revision > self._revision]
        self._revision = fresh[-1].revision if fresh else self._revision
        return fresh

    patch.setattr(Cursor, "take", take)


def a_log_that_forgets_in_silence(patch: pytest.MonkeyPatch) -> None:
    whole = Feed.read

    def read(self: Feed, after: Any, limit: int) -> list[Event]:
        try:
            return whole(self, after, limit)
        except Compacted:
            return whole(self, type(after)(self.head - len(self._events)), limit)

    patch.setattr(Feed, "read", read)
    watchers_that_skip_gaps(patch)


def keys_without_salt(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(
        "cache_service.core.contexts.prefix_keys", lambda fingerprint, salt, *rest: prefix_keys(fingerprint, "", *rest)
    )


def withdrawals_that_watchers_miss(patch: pytest.MonkeyPatch) -> None:
    whole = State.apply

    def apply(self: State, event: Event) -> tuple[Change, ...]:
        changes = whole(self, event)
        if event.revision % 500 == 0:
            ghost = Placement(PrefixKey(b"ghost"), ReplicaId("ghost"), event.revision, id(self) % 999, 1)
            self.directory.put_placement(ghost)
        return changes

    patch.setattr(State, "apply", apply)


def limits_that_never_end(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Depths, "drop", lambda self, limit: None)


def limits_that_rise(patch: pytest.MonkeyPatch) -> None:
    patch.setattr("cache_service.core.depths._rank", lambda limit: (limit.depth_table_version, limit.depth))


@pytest.mark.parametrize(
    ("plant", "found"),
    [
        (reads_that_forget_epochs, "stale read"),
        (edits_of_any_epoch, "two edits made epoch|came after epoch|stale read"),
        (writes_under_any_token, "was accepted though"),
        (builds_for_every_caller, "two builds at once"),
        (leases_that_lapse_early, "two builds at once"),
        (leases_that_never_lapse, "dead beyond its TTL"),
        (watchers_that_skip_gaps, "came after revision"),
        (a_log_that_forgets_in_silence, "came after revision"),
        (keys_without_salt, "share"),
        (limits_that_never_end, "has outlived the last placement"),
        (limits_that_rise, "does not lower"),
        (withdrawals_that_watchers_miss, "differ|no members|indexes"),
    ],
)
def test_a_planted_bug_is_found(monkeypatch: pytest.MonkeyPatch, plant: Plant, found: str) -> None:
    plant(monkeypatch)
    simulation = Simulation(seed=0)
    with pytest.raises((Violation, AssertionError), match=found):
        simulation.run(num_operations=50_000)
