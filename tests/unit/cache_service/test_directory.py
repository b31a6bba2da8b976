from __future__ import annotations

from dataclasses import replace

import hypothesis.strategies as st
import pytest
from hypothesis import settings
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, rule

from cache_service.core.events import Event, Joined, Left
from cache_service.core.state import State
from cache_service.core.types import Lease, LeaseId, PrefixKey, ReplicaId, Revision
from cache_service.errors import CacheServiceError, InvalidRequest, LeaseRefused
from tests.unit.cache_service.builders import ANNA, BORIS, key, placed


def joined(state: State, replica: ReplicaId) -> Lease:
    for event in state.directory.register(replica, 3.0, state.next_revision):
        state.apply(event)
    return state.directory.lease_of(replica)


def announce(state: State, lease: Lease, *names: str) -> None:
    placements = [placed(name, lease.replica) for name in names]
    for event in state.directory.announce(lease, placements, state.next_revision):
        state.apply(event)


def test_a_decision_changes_nothing_until_it_is_applied() -> None:
    state = State()
    events = state.directory.register(ANNA, 3.0, Revision(1))
    assert events == (Joined(Revision(1), Lease(LeaseId(1), ANNA, 3.0)),)
    assert state.directory.members() == ()


def test_holders_are_found_by_key() -> None:
    state = State()
    announce(state, joined(state, ANNA), "a", "b")
    announce(state, joined(state, BORIS), "b")
    found = state.directory.lookup([key("a"), key("b"), key("nobody's")])
    assert {k: [p.replica for p in v] for k, v in found.items()} == {key("a"): [ANNA], key("b"): [ANNA, BORIS]}


def test_a_repeated_announcement_adds_no_event() -> None:
    state = State()
    lease = joined(state, ANNA)
    announce(state, lease, "a")
    assert state.directory.announce(lease, [placed("a", ANNA)], state.next_revision) == ()
    (lower,) = state.directory.announce(lease, [placed("a", ANNA, depth=2)], state.next_revision)
    assert lower.placement.safe_depth == 2


def test_a_second_registration_ends_the_first() -> None:
    state = State()
    old = joined(state, ANNA)
    announce(state, old, "a")
    new = joined(state, ANNA)
    assert new.id > old.id
    assert state.directory.num_placements == 0
    with pytest.raises(LeaseRefused, match="superseded"):
        state.directory.announce(old, [placed("a", ANNA)], state.next_revision)


def test_refusals_say_what_is_wrong() -> None:
    state = State()
    lease = joined(state, ANNA)
    with pytest.raises(LeaseRefused, match="'boris' is not a member"):
        state.directory.withdraw(Lease(LeaseId(9), BORIS, 3.0), [key("a")], state.next_revision)
    with pytest.raises(InvalidRequest, match="can't announce for 'boris'"):
        state.directory.announce(lease, [placed("a", BORIS)], state.next_revision)
    with pytest.raises(InvalidRequest, match="ttl_s"):
        state.directory.register(ANNA, 0.0, state.next_revision)
    for name in ("", "a" * 1025):
        with pytest.raises(InvalidRequest, match="replica needs 1 to 1024 characters"):
            state.directory.register(ReplicaId(name), 3.0, state.next_revision)
    for size in (0, 65, 3_000_000):
        entry = replace(placed("a", ANNA), key=PrefixKey(b"k" * size))
        with pytest.raises(InvalidRequest, match="key needs 1 to 64 bytes"):
            state.directory.announce(lease, [entry], state.next_revision)


def test_a_gap_in_the_log_is_refused() -> None:
    with pytest.raises(ValueError, match="can't follow"):
        State().apply(Left(Revision(2), ANNA))


replicas = st.sampled_from([ReplicaId(name) for name in "abc"])
keys = st.sampled_from([key(name) for name in "uvwxyz"])


class DirectoryMachine(RuleBasedStateMachine):
    """Checks random decisions against a model of one dict per member, and a copy that is fed by events."""

    leases: Bundle[Lease] = Bundle("leases")

    def __init__(self) -> None:
        super().__init__()
        self.state = State()
        self.copy = State()
        self.model: dict[LeaseId, dict[PrefixKey, int]] = {}

    def carry_out(self, events: tuple[Event, ...]) -> None:
        for event in events:
            self.state.apply(event)
            self.copy.apply(event)

    @rule(target=leases, replica=replicas)
    def register(self, replica: ReplicaId) -> Lease:
        for lease in self.state.directory.members():
            if lease.replica == replica:
                del self.model[lease.id]
        self.carry_out(self.state.directory.register(replica, 1.0, self.state.next_revision))
        lease = self.state.directory.lease_of(replica)
        self.model[lease.id] = {}
        return lease

    @rule(lease=leases, keys=st.lists(keys, max_size=4), depth=st.integers(0, 2))
    def announce(self, lease: Lease, keys: list[PrefixKey], depth: int) -> None:
        placements = [placed(k.decode(), lease.replica, depth=depth) for k in keys]
        try:
            self.carry_out(self.state.directory.announce(lease, placements, self.state.next_revision))
        except CacheServiceError:
            assert lease.id not in self.model
        else:
            self.model[lease.id] |= dict.fromkeys(keys, depth)

    @rule(lease=leases, keys=st.lists(keys, max_size=4))
    def withdraw(self, lease: Lease, keys: list[PrefixKey]) -> None:
        try:
            self.carry_out(self.state.directory.withdraw(lease, keys, self.state.next_revision))
        except LeaseRefused:
            assert lease.id not in self.model
        else:
            for k in keys:
                self.model[lease.id].pop(k, None)

    @rule(lease=consumes(leases))
    def expire(self, lease: Lease) -> None:
        self.carry_out(self.state.expire({lease.id}, self.state.next_revision))
        self.model.pop(lease.id, None)

    @invariant()
    def equals_the_model(self) -> None:
        replica_of = {lease.id: lease.replica for lease in self.state.directory.members()}
        assert set(replica_of) == set(self.model)
        listed = {(p.key, p.replica, p.safe_depth) for p in self.state.directory.placements()}
        assert listed == {(k, replica_of[i], depth) for i, held in self.model.items() for k, depth in held.items()}

    @invariant()
    def is_whole(self) -> None:
        self.state.directory.check_integrity()
        assert self.copy.snapshot() == self.state.snapshot()


TestDirectoryMachine = DirectoryMachine.TestCase
TestDirectoryMachine.settings = settings(deadline=None)
