from __future__ import annotations

from dataclasses import replace

import pytest

from cache_service.core.events import Announced, Built, Edited, Event, Left, Limited, Released
from cache_service.core.state import State
from cache_service.core.types import (
    FIRST_EPOCH,
    Build,
    DepthLimit,
    DepthTable,
    Edit,
    EditId,
    Epoch,
    FencingToken,
    Lease,
    LeaseId,
    PrefixKey,
    ReplicaId,
)
from cache_service.errors import FencedToken, InvalidRequest, LeaseRefused, StaleEpoch
from tests.unit.cache_service.builders import ANNA, BORIS, key, placed


def carry_out(state: State, events: tuple[Event, ...]) -> list[type[Event]]:
    for event in events:
        state.apply(event)
    return [type(event) for event in events]


def joined(state: State, replica: ReplicaId, version: int = 1) -> Lease:
    carry_out(state, state.register(replica, 5.0, state.next_revision, DepthTable(version, num_layers=9)))
    return state.directory.lease_of(replica)


def acquire(state: State, lease: Lease, name: str = "a") -> Build:
    carry_out(state, state.acquire(lease, key(name), FIRST_EPOCH, None, 2.0, state.next_revision))
    return state.builds.in_progress(key(name), FIRST_EPOCH)


def complete(state: State, lease: Lease, build: Build, *, depth: int = 4) -> list[type[Event]]:
    entry = placed("a", lease.replica, depth=depth)
    return carry_out(state, state.complete(lease, build.token, entry, state.next_revision))


@pytest.fixture
def state() -> State:
    return State()


def test_one_member_builds_and_the_others_learn_which(state: State) -> None:
    anna, boris = joined(state, ANNA), joined(state, BORIS)
    build = acquire(state, anna)
    assert build.replica == ANNA
    assert acquire(state, boris) == build
    assert acquire(state, anna) == build
    assert acquire(state, boris, "b").replica == BORIS


def test_completing_announces_the_entry_and_ends_the_build(state: State) -> None:
    anna = joined(state, ANNA)
    build = acquire(state, anna)
    assert complete(state, anna, build) == [Announced, Built]
    made = replace(placed("a", ANNA), token=build.token)
    assert state.directory.lookup([key("a")]) == {key("a"): (made,)}
    assert state.announce(anna, [placed("a", ANNA)], state.next_revision) == ()
    assert complete(state, anna, build) == []  # its answer was lost, and it asks again
    assert acquire(state, anna).token > build.token


def test_a_holder_that_slept_through_its_lease_is_fenced_off(state: State) -> None:
    anna, boris = joined(state, ANNA), joined(state, BORIS)
    old = acquire(state, anna)
    assert carry_out(state, state.expire({old.lease.id}, state.next_revision)) == [Released]
    with pytest.raises(FencedToken, match="has ended"):
        complete(state, anna, old)
    new = acquire(state, boris)
    assert new.token > old.token
    with pytest.raises(FencedToken, match=f"granted again, to 'boris' under {new.token}"):
        complete(state, anna, old)
    complete(state, boris, new)
    with pytest.raises(FencedToken):
        complete(state, anna, old)


def test_a_fenced_write_is_refused_even_where_it_would_change_nothing(state: State) -> None:
    anna = joined(state, ANNA)
    carry_out(state, state.announce(anna, [placed("a", ANNA)], state.next_revision))
    old = acquire(state, anna)
    carry_out(state, state.expire({old.lease.id}, state.next_revision))
    with pytest.raises(FencedToken):
        complete(state, anna, old)


def test_even_a_completion_that_changes_nothing_needs_the_present_lease(state: State) -> None:
    anna = joined(state, ANNA)
    build = acquire(state, anna)
    complete(state, anna, build)
    assert complete(state, anna, build) == []
    with pytest.raises(LeaseRefused):
        complete(state, replace(anna, id=LeaseId(anna.id + 1)), build)


def test_a_release_needs_the_present_lease(state: State) -> None:
    anna = joined(state, ANNA)
    build = acquire(state, anna)
    with pytest.raises(LeaseRefused):
        state.release(replace(anna, id=LeaseId(anna.id + 1)), build.key, build.epoch, build.token, state.next_revision)


def test_an_announcement_may_not_bring_a_token(state: State) -> None:
    anna = joined(state, ANNA)
    build = acquire(state, anna)
    entry = replace(placed("a", ANNA), token=build.token)
    with pytest.raises(FencedToken, match=f"token {build.token}"):
        state.announce(anna, [entry], state.next_revision)
    complete(state, anna, build)
    assert carry_out(state, state.announce(anna, [replace(entry, heat=2)], state.next_revision)) == [Announced]
    with pytest.raises(FencedToken):
        state.announce(anna, [replace(entry, token=FencingToken(build.token + 1))], state.next_revision)
    again = joined(state, ANNA)
    with pytest.raises(LeaseRefused):
        state.announce(anna, [entry], state.next_revision)
    with pytest.raises(FencedToken):
        state.announce(again, [entry], state.next_revision)


def test_a_token_counts_only_for_its_own_member(state: State) -> None:
    build = acquire(state, joined(state, ANNA))
    with pytest.raises(FencedToken):
        complete(state, joined(state, BORIS), build)


def test_releasing_frees_the_build(state: State) -> None:
    anna, boris = joined(state, ANNA), joined(state, BORIS)
    build = acquire(state, anna)
    with pytest.raises(FencedToken):
        state.release(anna, build.key, build.epoch, FencingToken(build.token + 1), state.next_revision)
    assert carry_out(state, state.release(anna, build.key, build.epoch, build.token, state.next_revision)) == [Released]
    assert acquire(state, boris).replica == BORIS


@pytest.mark.parametrize("how", ["leaves", "lapses", "registers again"])
def test_a_members_builds_end_with_it(state: State, how: str) -> None:
    anna = joined(state, ANNA)
    acquire(state, anna)
    if how == "leaves":
        kinds = carry_out(state, state.leave(anna, state.next_revision))
    elif how == "lapses":
        kinds = carry_out(state, state.expire({anna.id}, state.next_revision))
    else:
        kinds = carry_out(state, state.register(ANNA, 5.0, state.next_revision))
    assert kinds[:2] == [Released, Left]
    assert len(state.builds) == 0


def test_a_lapsed_member_and_its_lapsed_build_end_once(state: State) -> None:
    anna = joined(state, ANNA)
    build = acquire(state, anna)
    lapsed = {anna.id, build.lease.id}
    assert carry_out(state, state.expire(lapsed, state.next_revision)) == [Released, Left]
    assert state.expire(lapsed, state.next_revision) == ()


def test_builds_of_an_old_epoch_end_with_the_edit(state: State) -> None:
    anna = joined(state, ANNA)
    made = state.contexts.create("m", "s", [1, 2], [], EditId("c"), ANNA, state.next_revision)
    carry_out(state, made)
    (context,) = state.contexts.all()
    carry_out(state, state.acquire(anna, context.key, context.epoch, context.id, 2.0, state.next_revision))
    build = state.builds.in_progress(context.key, context.epoch)
    edits = [Edit(0, 1, (5,))]
    events = state.edit(context.id, FIRST_EPOCH, edits, EditId("d"), BORIS, state.next_revision)
    assert carry_out(state, events) == [Edited, Released]
    entry = placed("", ANNA, key=context.key, context=context.id)
    with pytest.raises(StaleEpoch):
        state.complete(anna, build.token, entry, state.next_revision)
    with pytest.raises(StaleEpoch):
        state.acquire(anna, context.key, FIRST_EPOCH, context.id, 2.0, state.next_revision)


def test_an_entry_must_be_under_its_contexts_key(state: State) -> None:
    anna = joined(state, ANNA)
    made = state.contexts.create("m", "s", [1, 2], [], EditId("c"), ANNA, state.next_revision)
    carry_out(state, made)
    entry = placed("a", ANNA, context=state.contexts.all()[0].id)
    with pytest.raises(InvalidRequest, match="another key"):
        state.announce(anna, [entry], state.next_revision)
    with pytest.raises(InvalidRequest, match="without a context"):
        state.announce(anna, [placed("a", ANNA, epoch=1)], state.next_revision)


def test_replicas_that_are_no_members_may_neither_build_nor_report(state: State) -> None:
    anna = joined(state, ANNA)
    carry_out(state, state.leave(anna, state.next_revision))
    with pytest.raises(LeaseRefused):
        acquire(state, anna)
    with pytest.raises(LeaseRefused):
        state.report_drift(anna, [], state.next_revision)
    with pytest.raises(InvalidRequest, match="ttl_s of a build"):
        state.acquire(joined(state, ANNA), key("a"), FIRST_EPOCH, None, 0.0, state.next_revision)


def report(state: State, *reports: tuple[int, int]) -> dict[int, int]:
    """Report (depth table version, depth) pairs for one prefix and bucket; return the resulting depth by bucket."""
    lease = joined(state, ANNA)
    hold(state, "a")
    carry_out(state, state.announce(lease, [placed("a", ANNA)], state.next_revision))
    limits = [DepthLimit(key("a"), 60, depth, version) for version, depth in reports]
    carry_out(state, state.report_drift(lease, limits, state.next_revision))
    return {limit.bucket: limit.depth for limit in state.depths.lookup([key("a")])}


def hold(state: State, *names: str) -> Lease:
    """Have Boris, whose depth table is newer, hold prefixes that he never gives up, and return his lease."""
    lease = state.directory._members.get(BORIS) or joined(state, BORIS, version=2)
    carry_out(state, state.announce(lease, [placed(name, BORIS) for name in names], state.next_revision))
    return lease


def test_a_limit_ends_with_the_last_placement_of_its_key(state: State) -> None:
    anna = joined(state, ANNA)
    carry_out(state, state.announce(anna, [placed("a", ANNA), placed("b", ANNA)], state.next_revision))
    boris = hold(state, "a")
    limits = [DepthLimit(key(name), bucket, 2, 1) for name in "ab" for bucket in (50, 60)]
    carry_out(state, state.report_drift(anna, limits, state.next_revision))
    assert set(state.depths.all()) == set(limits)
    carry_out(state, state.leave(anna, state.next_revision))
    assert set(state.depths.all()) == set(limits[:2])
    carry_out(state, state.directory.withdraw(boris, [key("a")], state.next_revision))
    assert state.depths.all() == ()
    hold(state, "a")
    assert state.depths.all() == ()
    assert not state.depths._limits, "a key without limits takes memory"
    state.check_integrity()


@pytest.mark.parametrize(
    ("limit", "named"),
    [
        (DepthLimit(key("b"), 60, 2, 1), f"doesn't hold {key('b').hex()}"),
        (DepthLimit(key("a"), 60, 0, 10**6), "no member has version 1000000"),
        (DepthLimit(key("a"), 60, 2, 0), "no member has version 0"),
        (DepthLimit(key("a"), 60, 10, 1), "within 0 and the model's 9 layers, got 10"),
        (DepthLimit(key("a"), 60, -1, 1), "within 0 and the model's 9 layers, got -1"),
    ],
)
def test_a_report_of_what_its_member_cannot_know_is_refused_whole(state: State, limit: DepthLimit, named: str) -> None:
    hold(state, "b")
    anna = joined(state, ANNA)
    carry_out(state, state.announce(anna, [placed("a", ANNA)], state.next_revision))
    with pytest.raises(InvalidRequest, match=named):
        state.report_drift(anna, [DepthLimit(key("a"), 50, 9, 1), limit], state.next_revision)


def test_a_member_may_report_by_the_depth_table_of_another_one_while_that_lives(state: State) -> None:
    boris, anna = hold(state, "b"), joined(state, ANNA)
    carry_out(state, state.announce(anna, [placed("a", ANNA)], state.next_revision))
    newer = DepthLimit(key("a"), 60, 2, 2)
    assert carry_out(state, state.report_drift(anna, [newer], state.next_revision)) == [Limited]
    carry_out(state, state.leave(boris, state.next_revision))
    with pytest.raises(InvalidRequest, match="no member has version 2"):
        state.report_drift(anna, [replace(newer, depth=1)], state.next_revision)


def test_a_member_that_registered_without_a_depth_table_reports_nothing(state: State) -> None:
    joined(state, BORIS)
    carry_out(state, state.register(ANNA, 5.0, state.next_revision))
    anna = state.directory.lease_of(ANNA)
    carry_out(state, state.announce(anna, [placed("a", ANNA)], state.next_revision))
    with pytest.raises(InvalidRequest, match="the model's 0 layers"):
        state.report_drift(anna, [DepthLimit(key("a"), 60, 1, 1)], state.next_revision)


def test_a_limit_that_an_older_version_kept_without_a_placement_is_left_out(state: State) -> None:
    hold(state, "a")
    kept, orphan = DepthLimit(key("a"), 60, 2, 1), DepthLimit(key("b"), 60, 2, 1)
    snapshot = replace(state.snapshot(), limits=(kept, orphan))
    assert State.of(snapshot).depths.all() == (kept,)
    event = Limited(state.next_revision, BORIS, orphan)
    state.apply(event)
    assert state.depths.all() == ()


def test_under_one_depth_table_a_limit_only_falls(state: State) -> None:
    assert report(state, (1, 5)) == {60: 5}
    assert report(state, (1, 7)) == {60: 5}
    assert report(state, (1, 3), (1, 4)) == {60: 3}


def test_a_newer_depth_table_raises_a_limit_and_an_older_one_changes_nothing(state: State) -> None:
    assert report(state, (1, 2)) == {60: 2}
    assert report(state, (2, 9)) == {60: 9}
    assert report(state, (1, 1)) == {60: 9}


@pytest.mark.parametrize(
    ("limit", "named"), [(DepthLimit(key("a"), 101, 1, 1), "bucket"), (DepthLimit(PrefixKey(b""), 60, 1, 1), "key")]
)
def test_invalid_limits_are_refused(state: State, limit: DepthLimit, named: str) -> None:
    anna = joined(state, ANNA)
    carry_out(state, state.announce(anna, [placed("a", ANNA)], state.next_revision))
    with pytest.raises(InvalidRequest, match=named):
        state.report_drift(anna, [limit], state.next_revision)


@pytest.mark.parametrize(("built", "epoch", "named"), [(PrefixKey(b""), 0, "key"), (key("a"), 7, "epoch 0")])
def test_invalid_builds_are_refused(state: State, built: PrefixKey, epoch: int, named: str) -> None:
    with pytest.raises(InvalidRequest, match=named):
        state.acquire(joined(state, ANNA), built, Epoch(epoch), None, 2.0, state.next_revision)
