"""The history checker finds each invariant that a doctored history breaks, and none in a true history."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from cache_service.core.contexts import apply_edits
from cache_service.core.types import (
    FIRST_EPOCH,
    Build,
    Context,
    ContextId,
    DepthLimit,
    Edit,
    EditId,
    Epoch,
    FencingToken,
    Lease,
    LeaseId,
    PrefixKey,
    Revision,
    Version,
)
from cache_service.testing import FakeClock, HistoryChecker, Violation
from tests.unit.cache_service.builders import ANNA, BORIS, key, placed

TTL_S = 10.0
ORIGIN = EditId("made")


class History:
    """Reports a history to the checker; each test doctors it in one place."""

    def __init__(self) -> None:
        self.clock = FakeClock()
        self.checker = HistoryChecker(self.clock, strays_s=1.0)
        self.revision = 0

    def register(self) -> Lease:
        self.revision += 1
        lease = Lease(LeaseId(self.revision), ANNA, TTL_S)
        self.checker.begin_register(ANNA)
        self.checker.end_register(lease, self.clock.now + TTL_S)
        self.clock.advance(1.0)
        return lease

    def announce(self, name: str = "a") -> None:
        self.checker.entries.begin_announce([placed(name, ANNA)])
        self.checker.entries.end_announce([placed(name, ANNA)])

    def look_up(self, *found: str) -> None:
        began = self.checker.begin()
        self.checker.entries.end_lookup(began, [key("a")], {key(name): [placed(name, ANNA)] for name in found}, 0)

    def withdraw(self) -> None:
        self.checker.entries.begin_withdraw(ANNA, [key("a")])
        self.checker.entries.end_withdraw(ANNA, [key("a")])

    def create(self) -> Context:
        self.checker.contexts.begin_create(ORIGIN, [1, 2], [1])
        made = Version(FIRST_EPOCH, key("v0"), ORIGIN)
        context = Context(ContextId("c"), "m", "red", (1, 2), (1,), Revision(1), ORIGIN, made)
        self.checker.contexts.end_create(ORIGIN, context)
        return context

    def edit(self, context: Context, edit_id: str = "e1") -> Context:
        edits, name = [Edit(0, 1, (7, 8))], EditId(edit_id)
        self.checker.contexts.begin_edit(context.id, context.epoch, edits, name)
        version = Version(Epoch(context.epoch + 1), key(f"v{context.epoch + 1}"), name)
        self.checker.contexts.end_edit(context.id, name, version, context.lifetime)
        return apply_edits(context, version, edits, context.lifetime)

    def get(self, context: Context) -> None:
        self.checker.contexts.end_get(self.checker.begin(), context)

    def list(self, *contexts: Context) -> None:
        self.checker.contexts.end_list(self.checker.begin(), "red", contexts)

    def acquire(self, token: int, *, safe_s: float = TTL_S) -> Build:
        build = Build(key("b"), FIRST_EPOCH, ANNA, FencingToken(token), TTL_S)
        self.checker.builds.end_acquire(self.checker.begin(), build, self.clock.now + safe_s)
        return build

    def report(self, depth: int) -> None:
        limits = [DepthLimit(key("a"), 60, depth, 1)]
        began = self.checker.entries.begin_report(limits)
        self.checker.entries.end_report(began, ANNA, limits)

    def read_limits(self, *depths: int) -> None:
        limits = [DepthLimit(key("a"), 60, depth, 1) for depth in depths]
        self.checker.entries.end_limits(self.checker.begin(), [key("a")], limits)


def test_a_true_history_is_believed() -> None:
    history = History()
    history.register()
    history.announce()
    history.report(3)
    history.read_limits(3)
    history.look_up("a")
    history.clock.advance(1.5)
    history.withdraw()
    history.look_up()
    context = history.create()
    history.list(context)
    edited = history.edit(context)
    history.get(edited)
    build = history.acquire(2)
    history.checker.builds.begin_complete(build)
    history.checker.builds.end_complete(build)
    assert history.acquire(3).token == 3
    assert (history.checker.entries.num_found, history.checker.entries.num_limits) == (1, 1)
    assert history.checker.contexts.num_contents == 2


def an_announced_entry_is_not_found(history: History) -> None:
    history.register()
    history.announce()
    history.look_up()


def a_withdrawn_entry_is_found(history: History) -> None:
    history.register()
    history.announce()
    history.clock.advance(1.5)
    history.withdraw()
    history.look_up("a")


def an_entry_outlives_its_registration(history: History) -> None:
    history.register()
    history.announce()
    history.register()
    history.look_up("a")


def an_entry_is_found_that_no_replica_announced(history: History) -> None:
    history.register()
    history.look_up("a")


def a_dead_replica_is_found(history: History) -> None:
    history.register()
    history.announce()
    history.checker.entries.died(ANNA, history.clock.now + 1.0)
    history.clock.advance(1.1)
    history.look_up("a")


def a_read_is_older_than_an_accepted_edit(history: History) -> None:
    context = history.create()
    history.edit(context)
    history.get(context)


def a_deleted_context_is_read(history: History) -> None:
    context = history.create()
    history.checker.contexts.begin_delete(context.id)
    history.checker.contexts.end_delete(context.id)
    history.get(context)


def an_accepted_edit_is_not_carried_out(history: History) -> None:
    context = history.create()
    edited = history.edit(context)
    history.get(replace(edited, token_ids=(7, 1, 2)))


def a_hole_is_lost(history: History) -> None:
    history.get(replace(history.edit(history.create()), masked=()))


def a_creation_returns_another_content(history: History) -> None:
    history.get(replace(history.create(), token_ids=(1, 3)))


def a_retried_creation_makes_two_contexts(history: History) -> None:
    context = history.create()
    history.list(context, replace(context, id=ContextId("d")))


def a_retried_edit_acts_twice(history: History) -> None:
    edited = history.edit(history.create())
    twice = Version(Epoch(2), key("v2"), edited.version.edit_id)
    history.get(replace(edited, version=twice, past=(edited.version, *edited.past)))


def two_edits_make_one_epoch(history: History) -> None:
    context = history.create()
    history.edit(context, "e1")
    history.edit(context, "e2")


def a_version_comes_from_no_edit(history: History) -> None:
    context = history.create()
    version = Version(Epoch(1), key("v1"), EditId("unknown"))
    history.get(replace(context, version=version, past=(context.version,)))


def a_past_version_is_missing(history: History) -> None:
    history.get(replace(history.edit(history.create()), past=()))


def two_salts_share_a_key(history: History) -> None:
    context = history.create()
    history.checker.contexts.begin_create(EditId("other"), [1, 2], [1])
    version = replace(context.version, edit_id=EditId("other"))
    other = replace(context, id=ContextId("d"), salt="blue", origin=EditId("other"), version=version)
    history.checker.contexts.end_create(EditId("other"), other)


def a_context_is_not_listed(history: History) -> None:
    history.create()
    history.list()


def a_stale_entry_is_found(history: History) -> None:
    context = history.create()
    history.edit(context)
    entry = placed("", BORIS, key=context.key, context=context.id)
    history.checker.entries.end_lookup(history.checker.begin(), [context.key], {context.key: [entry]}, 0)


def two_builds_are_under_way(history: History) -> None:
    history.acquire(2)
    history.acquire(3)


def a_token_falls(history: History) -> None:
    history.acquire(5, safe_s=0.0)
    history.acquire(4)


def a_fenced_write_is_accepted(history: History) -> None:
    build = history.acquire(2, safe_s=0.0)
    history.acquire(3)
    history.checker.builds.begin_complete(build)
    history.checker.builds.end_complete(build)


def a_build_outlives_its_registration(history: History) -> None:
    history.register()
    history.acquire(2)
    history.revision = 5
    history.register()
    history.acquire(2)


def an_ended_build_is_under_way(history: History) -> None:
    build = history.acquire(2)
    history.checker.builds.give_up(build)
    history.checker.builds.end_release(build)
    history.acquire(2)


def a_limit_rises(history: History) -> None:
    history.register()
    history.announce()
    history.report(3)
    history.report(5)
    history.read_limits(5)


def a_limit_ends_before_its_entry(history: History) -> None:
    history.register()
    history.announce()
    history.report(3)
    history.read_limits()


def a_limit_was_never_reported(history: History) -> None:
    history.read_limits(2)


@pytest.mark.parametrize(
    ("doctor", "found"),
    [
        (an_announced_entry_is_not_found, "is not found"),
        (a_withdrawn_entry_is_found, "withdrawal had been acknowledged"),
        (an_entry_outlives_its_registration, "never announced it under its present lease"),
        (an_entry_is_found_that_no_replica_announced, "never announced"),
        (a_dead_replica_is_found, "dead beyond its TTL"),
        (a_read_is_older_than_an_accepted_edit, "stale read"),
        (a_deleted_context_is_read, "its deletion"),
        (an_accepted_edit_is_not_carried_out, "the edits made"),
        (a_hole_is_lost, "the edits made"),
        (a_creation_returns_another_content, "the edits made|share the key"),
        (a_retried_creation_makes_two_contexts, "made two contexts"),
        (a_retried_edit_acts_twice, "acted twice"),
        (two_edits_make_one_epoch, "two edits made epoch 1"),
        (a_version_comes_from_no_edit, "no client has sent"),
        (a_past_version_is_missing, "lists the epochs"),
        (two_salts_share_a_key, "share the key"),
        (a_context_is_not_listed, "is not listed"),
        (a_stale_entry_is_found, "stale read"),
        (two_builds_are_under_way, "two builds at once"),
        (a_token_falls, "was granted after"),
        (a_fenced_write_is_accepted, "was accepted though"),
        (a_build_outlives_its_registration, "outlived its registration"),
        (an_ended_build_is_under_way, "said to be under way"),
        (a_limit_rises, "yet the limit is"),
        (a_limit_ends_before_its_entry, "yet the limit is"),
        (a_limit_was_never_reported, "no client has reported"),
    ],
)
def test_a_doctored_history_is_refused(doctor: Callable[[History], None], found: str) -> None:
    with pytest.raises(Violation, match=found):
        doctor(History())


def test_what_may_still_be_under_way_proves_nothing() -> None:
    history = History()
    history.register()
    history.announce()
    history.withdraw()  # a late copy of the announcement may follow it
    history.look_up("a")
    history.announce()  # and a late copy of the withdrawal this
    history.look_up()


def test_an_entry_need_not_be_found_once_its_lease_may_have_lapsed() -> None:
    history = History()
    history.register()
    history.announce()
    history.clock.advance(TTL_S)
    history.look_up()


@pytest.mark.parametrize("answer", [PrefixKey(b"x"), key("v1")])
def test_a_content_has_one_key(answer: PrefixKey) -> None:
    history = History()
    context = history.create()
    history.checker.contexts.begin_create(EditId("again"), [1, 2], [1])
    version = Version(FIRST_EPOCH, answer, EditId("again"))
    twin = replace(context, id=ContextId("d"), origin=EditId("again"), version=version)
    with pytest.raises(Violation, match="has the keys"):
        history.checker.contexts.end_create(EditId("again"), twin)
