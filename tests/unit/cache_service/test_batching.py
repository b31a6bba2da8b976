from __future__ import annotations

from collections.abc import Sequence

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings

from cache_service.core.events import Event
from cache_service.core.state import State
from cache_service.core.types import Lease, LeaseId, Placement, ReplicaId
from cache_service.errors import LeaseRefused
from cache_service.store.base import Decision
from cache_service.store.redis.batching import MAX_EVENTS, Proposal, batch_of
from tests.unit.cache_service.builders import ANNA, BORIS, key, placed


def state_with(*replicas: ReplicaId) -> State:
    state = State()
    for replica in replicas:
        apply(state, state.register(replica, 60.0, state.next_revision))
    return state


def apply(state: State, events: Sequence[Event]) -> None:
    for event in events:
        state.apply(event)


def announcing(lease: Lease, *placements: Placement) -> Proposal:
    return Proposal(lambda state, at: state.announce(lease, placements, at))


def withdrawing(lease: Lease, *names: str) -> Proposal:
    return Proposal(lambda state, at: state.directory.withdraw(lease, [key(name) for name in names], at))


def test_announcements_of_different_placements_go_together() -> None:
    state = state_with(ANNA, BORIS)
    anna, boris = state.directory.lease_of(ANNA), state.directory.lease_of(BORIS)
    proposals = [
        announcing(anna, placed("a", ANNA), placed("b", ANNA)),
        announcing(boris, placed("a", BORIS)),
        announcing(anna, placed("c", ANNA)),
    ]
    batch = batch_of(proposals, state)
    assert [proposal for proposal, _ in batch] == proposals
    assert [event.revision for _, events in batch for event in events] == [3, 4, 5, 6]


def test_a_decision_that_depends_on_an_earlier_one_waits() -> None:
    state = state_with(ANNA)
    anna = state.directory.lease_of(ANNA)
    first = announcing(anna, placed("a", ANNA))
    for second in (announcing(anna, placed("a", ANNA, depth=1)), withdrawing(anna, "a"), announcing(anna)):
        assert len(batch_of([first, second, announcing(anna, placed("b", ANNA))], state)) == 1


def test_a_refused_decision_waits_for_its_own_turn_and_then_raises() -> None:
    state = state_with(ANNA)
    anna = state.directory.lease_of(ANNA)
    refused = announcing(Lease(LeaseId(9), BORIS, 1.0), placed("a", BORIS))
    assert len(batch_of([announcing(anna, placed("a", ANNA)), refused], state)) == 1
    with pytest.raises(LeaseRefused):
        batch_of([refused], state)


def test_a_failing_decision_does_not_harm_the_others() -> None:
    state = state_with(ANNA)
    broken = Proposal(lambda state, at: state.announce(state.directory.lease_of(BORIS), [], at))
    assert len(batch_of([announcing(state.directory.lease_of(ANNA), placed("a", ANNA)), broken], state)) == 1
    with pytest.raises(KeyError):
        batch_of([broken], state)


def test_a_batch_is_bounded() -> None:
    state = state_with(ANNA)
    anna = state.directory.lease_of(ANNA)
    proposals = [announcing(anna, placed(f"{i}", ANNA)) for i in range(MAX_EVENTS + 5)]
    assert len(batch_of(proposals, state)) == MAX_EVENTS


replicas = st.sampled_from([ANNA, BORIS])
names = st.sampled_from("abc")
acts = st.tuples(st.sampled_from(["announce", "announce", "withdraw", "leave"]), replicas, names, st.integers(0, 1))


@settings(deadline=None)
@given(st.lists(acts, max_size=8))
def test_batches_end_in_the_same_state_as_single_decisions(sequence: list[tuple[str, ReplicaId, str, int]]) -> None:
    def decision(act: str, replica: ReplicaId, name: str, depth: int) -> Decision:
        lease = Lease(LeaseId(1 if replica == ANNA else 2), replica, 60.0)
        if act == "announce":
            return lambda state, at: state.announce(lease, [placed(name, replica, depth=depth)], at)
        if act == "withdraw":
            return lambda state, at: state.directory.withdraw(lease, [key(name)], at)
        return lambda state, at: state.leave(lease, at)

    alone, together = state_with(ANNA, BORIS), state_with(ANNA, BORIS)
    for act in sequence:
        try:
            apply(alone, decision(*act)(alone, alone.next_revision))
        except LeaseRefused:
            continue
    waiting = [Proposal(decision(*act)) for act in sequence]
    while waiting:
        try:
            batch = batch_of(waiting, together)
        except LeaseRefused:
            del waiting[0]
            continue
        apply(together, [event for _, events in batch for event in events])
        del waiting[: len(batch)]
    assert together.snapshot() == alone.snapshot()
