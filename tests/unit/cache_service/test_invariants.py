"""Any calls in any order break no invariant of the protocol: the history checker sees what the service accepts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

import hypothesis.strategies as st
from hypothesis import settings
from hypothesis.stateful import Bundle, RuleBasedStateMachine, invariant, multiple, rule

from cache_service.core.contexts import MAX_STALENESS
from cache_service.core.cursor import Cursor, Update, batch_of, parts_of
from cache_service.core.events import Created, Edited, Event, Joined
from cache_service.core.mirror import Mirror
from cache_service.core.state import State
from cache_service.core.types import (
    Build,
    Context,
    Edit,
    EditId,
    Lease,
    Placement,
    PrefixKey,
    ReplicaId,
)
from cache_service.errors import CacheServiceError, Compacted, FencedToken, LeaseRefused
from cache_service.rpc.service import CacheService
from cache_service.store.memory import MemoryStore
from cache_service.testing import FakeClock, HistoryChecker, WatchChecker, require_same_view
from tests.faults.world import run
from tests.unit.cache_service.builders import key

MEMBER_TTL_S, BUILD_TTL_S = 3.0, 1.0


class ServiceMachine(RuleBasedStateMachine):
    """Makes calls with leases, builds and contexts that may have ended without their holders' knowledge."""

    leases, builds, contexts = Bundle("leases"), Bundle("builds"), Bundle("contexts")
    replicas = st.sampled_from([ReplicaId(name) for name in "ab"])
    seldom = st.sampled_from([False, False, False, True])

    def __init__(self) -> None:
        super().__init__()
        self.clock = FakeClock()
        self.store = MemoryStore(clock=self.clock, history=6)
        self.service = CacheService(self.store)
        self.checker, self.watch = HistoryChecker(self.clock), WatchChecker()
        self.cursor, self.mirror = Cursor(), Mirror()
        self.newest: dict[ReplicaId, Lease] = {}
        self.alive_until: dict[ReplicaId, float] = {}
        self.given: dict[ReplicaId, list[Build]] = {}
        self.keys: dict[PrefixKey, None] = {key("plain"): None}
        self.num_edits = 0

    def append(self, decide: Callable[[State, Any], Sequence[Event]]) -> Sequence[Event]:
        self.checker.begin()
        return run(self.service.append(decide))  # type: ignore[no-any-return]

    def next_edit_id(self) -> EditId:
        self.num_edits += 1
        return EditId(f"c{self.num_edits}")

    def lease_of(self, replica: ReplicaId) -> Lease:
        return self.newest.get(replica) or self.register(replica)

    def newest_of(self, context: Context | None) -> Context | None:
        return context and self.store.state.contexts.find(context.id)

    @rule(target=leases, replica=replicas, is_done=seldom)
    def register_again(self, replica: ReplicaId, is_done: bool) -> Any:
        return self.register(replica) if is_done else multiple()

    def register(self, replica: ReplicaId) -> Lease:
        for build in self.given.pop(replica, ()):
            self.checker.builds.give_up(build)
        self.checker.begin_register(replica)
        events = self.append(lambda state, at: state.register(replica, MEMBER_TTL_S, at))
        self.alive_until[replica] = self.clock.now + MEMBER_TTL_S
        self.newest[replica] = next(event.lease for event in events if isinstance(event, Joined))
        self.checker.end_register(self.newest[replica], self.alive_until[replica])
        return self.newest[replica]

    @rule(lease=leases)
    def keep_alive(self, lease: Lease) -> None:
        with suppress(CacheServiceError):
            run(self.service.keep_alive(lease))
            self.alive_until[lease.replica] = self.clock.now + MEMBER_TTL_S
            self.checker.entries.end_keep_alive(lease, self.alive_until[lease.replica])

    @rule(seconds=st.sampled_from([0.4, 1.1, 3.0]))
    def pass_time(self, seconds: float) -> None:
        self.clock.advance(seconds)
        run(self.service.tick())
        alive = {replica for replica, until in self.alive_until.items() if until > self.clock.now}
        assert {placement.replica for placement in self.store.state.directory.placements()} <= alive, "a dead one's"

    @rule(target=contexts, salt=st.sampled_from(["red", "blue"]), replica=replicas)
    def create(self, salt: str, replica: ReplicaId) -> Context:
        edit_id = self.next_edit_id()
        self.checker.contexts.begin_create(edit_id, [1, 2])
        events = self.append(lambda state, at: state.contexts.create("m", salt, [1, 2], [], edit_id, replica, at))
        made = next(event.context for event in events if isinstance(event, Created))
        self.checker.contexts.end_create(edit_id, made)
        self.keys[made.key] = None
        return made

    @rule(target=contexts, context=contexts, token=st.integers(1, 2), replica=replicas, is_behind=seldom)
    def edit(self, context: Context, token: int, replica: ReplicaId, is_behind: bool) -> Any:
        """Edit an epoch that the author has read, and that another author may have edited before."""
        edits, edit_id = [Edit(0, 1, (token,))], self.next_edit_id()
        context = context if is_behind else self.newest_of(context) or context
        self.checker.contexts.begin_edit(context.id, context.epoch, edits, edit_id)
        try:
            events = self.append(lambda state, at: state.edit(context.id, context.epoch, edits, edit_id, replica, at))
        except CacheServiceError:
            return multiple()
        version = next(event.version for event in events if isinstance(event, Edited))
        self.checker.contexts.end_edit(context.id, edit_id, version)
        newest = self.store.state.contexts.get(context.id)
        self.keys[newest.key] = None
        return newest

    @rule(context=contexts, replica=replicas, is_done=seldom)
    def delete(self, context: Context, replica: ReplicaId, is_done: bool) -> None:
        if not is_done:
            return
        self.checker.contexts.begin_delete(context.id)
        with suppress(CacheServiceError):
            self.append(lambda state, at: state.delete(context.id, replica, at))
            self.checker.contexts.end_delete(context.id)

    @rule(replica=replicas, context=st.none() | contexts, is_behind=seldom)
    def announce(self, replica: ReplicaId, context: Context | None, is_behind: bool) -> None:
        lease, entry = self.lease_of(replica), entry_of(replica, context if is_behind else self.newest_of(context))
        self.checker.entries.begin_announce([entry])
        with suppress(CacheServiceError):
            self.append(lambda state, at: state.announce(lease, [entry], at))
            self.checker.entries.end_announce([entry])

    @rule(target=builds, replica=replicas, context=st.none() | contexts)
    def acquire(self, replica: ReplicaId, context: Context | None) -> Any:
        lease, entry = self.lease_of(replica), entry_of(replica, self.newest_of(context))
        moment = self.checker.begin()
        try:
            build = run(self.service.acquire(lease, entry.key, entry.epoch, entry.context, BUILD_TTL_S))
        except LeaseRefused:
            self.register(replica)
            return multiple()
        self.checker.builds.see(moment, build)
        if build.replica != replica:
            return multiple()
        safe_until = min(self.clock.now + BUILD_TTL_S, self.alive_until[replica])
        self.checker.builds.end_acquire(moment, build, safe_until)
        self.checker.builds.end_extend(moment, build, safe_until)
        self.given.setdefault(replica, []).append(build)
        return build

    @rule(build=builds, lease=leases, context=st.none() | contexts)
    def complete(self, build: Build, lease: Lease, context: Context | None) -> None:
        entry = entry_of(lease.replica, context)
        self.checker.entries.begin_announce([entry])
        self.checker.builds.begin_complete(build)
        try:
            self.append(lambda state, at: state.complete(lease, build.token, entry, at))
        except FencedToken:
            self.checker.builds.end_fenced()
        except CacheServiceError:
            pass
        else:
            assert lease.replica == build.replica, "a build of another member's was completed"
            self.checker.builds.end_complete(build)
            self.checker.entries.end_announce([entry])

    @rule(context=contexts)
    def read(self, context: Context) -> None:
        began = self.checker.begin()
        with suppress(CacheServiceError):
            self.checker.contexts.end_get(began, self.store.state.contexts.get(context.id))

    @rule(num_lost=st.sampled_from([0, 0, 1]))
    def catch_up(self, num_lost: int) -> None:
        """A watcher comes back; the log may no longer reach back to it, or an event gets lost on the way."""
        try:
            self._listen(num_lost)
        except Compacted:
            self.cursor.reset()
            self._listen(0)
        require_same_view(self.mirror.state.snapshot(), self.store.state.snapshot())
        require_same_view(self.watch.view(), self.store.state.snapshot())

    def _listen(self, num_lost: int) -> None:
        for update in self._updates(num_lost):
            for item in self.cursor.take(update):
                self.watch.take(item)
                self.mirror.take(item)

    def _updates(self, num_lost: int) -> list[Update]:
        after, revision, incarnation = self.cursor.resume(), self.store.state.revision, self.store.incarnation
        if after is None:
            return [Update(incarnation, revision, part=part) for part in parts_of(self.store.state.snapshot())]
        return [Update(incarnation, revision, events=batch_of(self.store.feed.read(after, 6)[num_lost:]))]

    @invariant()
    def no_read_is_stale(self) -> None:
        for max_staleness in range(MAX_STALENESS + 1):
            began = self.checker.begin()
            found = self.store.state.lookup(list(self.keys), max_staleness)
            self.checker.entries.end_lookup(began, list(self.keys), found, max_staleness)

    @invariant()
    def is_whole(self) -> None:
        self.store.state.check_integrity()


def entry_of(replica: ReplicaId, context: Context | None) -> Placement:
    if context is None:
        return Placement(key("plain"), replica, 64, 2, 4096)
    return Placement(context.key, replica, 64, 2, 4096, context.epoch, context.id)


TestServiceMachine = ServiceMachine.TestCase
TestServiceMachine.settings = settings(deadline=None, max_examples=60, stateful_step_count=40)
