"""Simulate clients and watchers of one service over a faulty network, with the real cores, store and cursor."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Generator
from typing import Any

from cache_service.core.events import Created, Edited, Joined
from cache_service.core.types import (
    FIRST_EPOCH,
    Build,
    Context,
    ContextId,
    DepthLimit,
    Edit,
    EditId,
    Lease,
    LeaseId,
    Placement,
    PrefixKey,
    ReplicaId,
)
from cache_service.errors import (
    CacheServiceError,
    FencedToken,
    InvalidRequest,
    LeaseRefused,
    StaleEpoch,
    UnknownContext,
)
from cache_service.rpc.service import CacheService
from cache_service.store.memory import MemoryStore
from cache_service.testing import Faults, HistoryChecker, Network, require_same_view
from tests.faults.watcher import Watcher

FAULTS = Faults(drop=0.02, duplicate=0.02, straggle=0.03, delay_s=0.002, straggle_s=1.0)
TIMEOUT_S = 0.02
MEMBER_TTL_S = 2.0
BUILD_TTL_S = 0.1
TICK_S = 0.1
KEYS = [PrefixKey(bytes([i]) * 20) for i in range(12)]

Request = Callable[[], Coroutine[Any, Any, Any]]
Script = Generator[Request, Any, None]


def run(work: Coroutine[Any, Any, Any]) -> Any:
    """Return what `work` returns, given that it never waits, as is the case with the memory store."""
    try:
        work.send(None)
    except StopIteration as done:
        return done.value
    raise RuntimeError("the memory store must not wait")


class Simulation:
    """Simulates one cluster. `run` raises Violation where an invariant breaks."""

    def __init__(self, seed: int, *, num_clients: int = 12, num_watchers: int = 4) -> None:
        self.network = Network(seed, FAULTS)
        self.rng = self.network.rng
        self.checker = HistoryChecker()
        self.skipped_s = 0.0
        self.store = MemoryStore(clock=self.service_time, history=512)
        self.service = CacheService(self.store)
        self.contexts: list[ContextId] = []
        self._names = 0
        self._quiet = False
        self.watchers = [Watcher(self.network, self.store) for _ in range(num_watchers)]
        for _ in range(num_clients):
            self.start_client()
        self._tick()
        self._jump()

    def service_time(self) -> float:
        return self.network.now + self.skipped_s

    def name(self) -> str:
        self._names += 1
        return f"n{self._names}"

    def start_client(self) -> None:
        Client(self).resume(None)

    def run(self, num_operations: int) -> None:
        """Carry out so many operations under faults; then heal the network and require that all views become one."""
        self.network.run(until=lambda: self.checker.num_operations >= num_operations)
        self.network.faults = Faults()
        self._quiet = True
        healed = self.network.now + 10.0
        self.network.run(until=lambda: self.network.now > healed)
        self.store.state.check_integrity()
        for watcher in self.watchers:
            watcher.mirror.state.check_integrity()
            require_same_view(watcher.mirror.state.snapshot(), self.store.state.snapshot())

    @property
    def quiet(self) -> bool:
        """Return True once clients make no more requests."""
        return self._quiet

    def _tick(self) -> None:
        if self._quiet:
            return
        run(self.service.tick())
        self.store.state.check_integrity()
        self.network.after(TICK_S, self._tick)

    def _jump(self) -> None:
        """Let the service's clock leap ahead: leases lapse early, and only tokens still protect."""
        self.skipped_s += self.rng.random() * MEMBER_TTL_S
        self.network.after(self.rng.expovariate(1 / 5.0), self._jump)


class Client:
    """Announces, reads, builds and edits like a replica, one request at a time, until it dies."""

    def __init__(self, simulation: Simulation) -> None:
        self._sim = simulation
        self._replica = ReplicaId(simulation.name())
        self._lease = Lease(LeaseId(0), self._replica, MEMBER_TTL_S)
        self._safe_until = 0.0
        self._unsure_until = 0.0
        self._build: Build | None = None
        self._waiting_for = 0
        self._script = self._live()

    def resume(self, outcome: Any) -> None:
        """Go on with the answer, or with None where none came in time."""
        if self._sim.quiet:
            return
        try:
            request = self._script.send(outcome)
        except StopIteration:
            stragglers_s = self._sim.network.faults.straggle_s
            gone_by = self._sim.network.now + stragglers_s + MEMBER_TTL_S + 2 * TICK_S
            self._sim.checker.died(self._replica, gone_by)
            self._sim.start_client()
            return
        self._waiting_for += 1
        number = self._waiting_for
        self._sim.network.send(lambda: self._serve(request, number))
        self._sim.network.after(TIMEOUT_S, lambda: self._receive(None, number))

    def _serve(self, request: Request, number: int) -> None:
        try:
            outcome = run(request())
        except CacheServiceError as refusal:
            outcome = refusal
        self._sim.network.send(lambda: self._receive(outcome, number))

    def _receive(self, outcome: Any, number: int) -> None:
        if number == self._waiting_for:
            self._waiting_for += 1
            self.resume(outcome)

    def _live(self) -> Script:
        rng = self._sim.rng
        actions = [self._look_up] * 4 + [self._announce] * 3 + [self._build_entry] * 3 + [self._edit] * 3
        actions += [self._withdraw, self._report, self._read]
        while rng.random() > 0.0005:
            if self._sim.service_time() > self._safe_until - MEMBER_TTL_S / 2:
                yield from self._keep_alive()
            yield from rng.choice(actions)()

    def _keep_alive(self) -> Script:
        service, began = self._sim.service, self._sim.service_time()
        self._sim.checker.begin()
        outcome = yield lambda: service.keep_alive(self._lease)
        if isinstance(outcome, Lease):
            self._safe_until = began + MEMBER_TTL_S
        elif isinstance(outcome, LeaseRefused):
            yield from self._register()

    def _register(self) -> Script:
        """Register; a straggling copy of this request ends what was begun under the lease that it brought."""
        self._lose_build()
        sim, began = self._sim, self._sim.service_time()
        self._unsure_until = sim.network.now + sim.network.faults.straggle_s
        sim.checker.begin()
        events = yield lambda: sim.service.append(lambda s, at: s.register(self._replica, MEMBER_TTL_S, at))
        if isinstance(events, tuple):
            self._lease = next(event.lease for event in events if isinstance(event, Joined))
            self._safe_until = began + MEMBER_TTL_S

    def _lose_build(self) -> None:
        if self._build is not None:
            self._sim.checker.give_up(self._build)
            self._build = None

    def _entry(self, key: PrefixKey, context: Context | None = None) -> Placement:
        if context is None:
            return Placement(key, self._replica, 64, self._sim.rng.randrange(4), 4096)
        return Placement(context.key, self._replica, 64, 2, 4096, context.epoch, context.id)

    def _announce(self) -> Script:
        context = yield from self._some_context()
        entry = self._entry(self._sim.rng.choice(KEYS), context)
        self._sim.checker.begin()
        yield lambda: self._sim.service.append(lambda s, at: s.announce(self._lease, [entry], at))

    def _withdraw(self) -> Script:
        keys = self._sim.rng.sample(KEYS, 3)
        self._sim.checker.begin()
        yield lambda: self._sim.service.append(lambda s, at: s.directory.withdraw(self._lease, keys, at))

    def _look_up(self) -> Script:
        context = yield from self._some_context()
        keys = [context.key if context else self._sim.rng.choice(KEYS)]
        staleness = self._sim.rng.choice([0, 0, 1, 3])
        began = self._sim.checker.begin()
        found = yield lambda: self._lookup(keys, staleness)
        if isinstance(found, dict):
            holders = [placement for placements in found.values() for placement in placements]
            self._sim.checker.end_lookup(began, holders, staleness, self._sim.network.now)

    async def _lookup(self, keys: list[PrefixKey], staleness: int) -> dict[PrefixKey, tuple[Placement, ...]]:
        await self._sim.store.sync()
        return self._sim.store.state.lookup(keys, staleness)

    async def _get(self, context_id: ContextId) -> Context:
        await self._sim.store.sync()
        return self._sim.store.state.contexts.get(context_id)

    def _read(self) -> Script:
        yield from self._some_context()

    def _some_context(self) -> Generator[Request, Any, Context | None]:
        sim = self._sim
        if not sim.contexts or sim.rng.random() < 0.3:
            return None
        context_id = sim.rng.choice(sim.contexts)
        began = sim.checker.begin()
        context = yield lambda: self._get(context_id)
        if not isinstance(context, Context):
            return None
        sim.checker.end_get(began, context)
        return context

    def _edit(self) -> Script:
        """Edit a context; now and then create or delete one."""
        sim, rng = self._sim, self._sim.rng
        context = yield from self._some_context()
        edit_id = EditId(sim.name())
        if context is None:
            if len(sim.contexts) < 6:
                yield from self._create(edit_id)
            return
        if rng.random() < 0.01:
            sim.contexts.remove(context.id) if context.id in sim.contexts else None
            sim.checker.begin()
            events = yield lambda: sim.service.append(lambda s, at: s.delete(context.id, self._replica, at))
            if isinstance(events, tuple):
                sim.checker.end_delete(context.id)
            return
        edits = [Edit(0, 1, (rng.randrange(1000),))]
        sim.checker.begin()
        events = yield lambda: sim.service.append(
            lambda s, at: s.edit(context.id, context.epoch, edits, edit_id, self._replica, at)
        )
        if isinstance(events, tuple):
            for event in events:
                if isinstance(event, Edited):
                    sim.checker.end_edit(context.id, event.version)

    def _create(self, edit_id: EditId) -> Script:
        sim, salt = self._sim, self._sim.rng.choice(["red", "blue"])
        sim.checker.begin()
        events = yield lambda: sim.service.append(
            lambda s, at: s.contexts.create("model", salt, [1, 2, 3], [1], edit_id, self._replica, at)
        )
        if isinstance(events, tuple) and events and isinstance(events[0], Created):
            sim.checker.end_create(events[0].context)
            sim.contexts.append(events[0].context.id)

    def _build_entry(self) -> Script:
        """Acquire, work for a while (now and then for too long), and complete."""
        sim, rng = self._sim, self._sim.rng
        context = yield from self._some_context()
        key, epoch = (context.key, context.epoch) if context else (rng.choice(KEYS), FIRST_EPOCH)
        context_id = context.id if context else None
        moment, began = sim.checker.begin(), sim.service_time()
        build = yield lambda: sim.service.acquire(self._lease, key, epoch, context_id, BUILD_TTL_S)
        if not isinstance(build, Build) or build.replica != self._replica:
            return
        self._build = build
        sim.checker.end_acquire(moment, build, self._guaranteed(began), sim.service_time())
        for _ in range(rng.choice([0, 0, 1, 2, 2, 30])):
            yield from self._look_up()
        if rng.random() < 0.3:
            began = sim.service_time()
            sim.checker.begin()
            answer = yield lambda: self._extend(build)
            if answer == "extended":
                sim.checker.end_extend(build, self._guaranteed(began))
        sim.checker.begin_complete(build)
        entry = self._entry(key, context)
        outcome = yield lambda: sim.service.append(lambda s, at: s.complete(self._lease, build.token, entry, at))
        self._build = None
        if isinstance(outcome, tuple):
            sim.checker.end_complete(build)
        elif isinstance(outcome, FencedToken):
            sim.checker.end_fenced()

    async def _extend(self, build: Build) -> str:
        await self._sim.service.extend(self._lease, build)
        return "extended"

    def _guaranteed(self, began: float) -> float:
        """Return until when a build can't end by itself that a request sent at `began` has begun or extended."""
        if self._sim.network.now < self._unsure_until:
            return 0.0
        return min(began + BUILD_TTL_S, self._safe_until)

    def _report(self) -> Script:
        limits = [DepthLimit(self._sim.rng.choice(KEYS), 50, self._sim.rng.randrange(9), 1)]
        self._sim.checker.begin()
        outcome = yield lambda: self._sim.service.append(lambda s, at: s.report_drift(self._lease, limits, at))
        if isinstance(outcome, (InvalidRequest, StaleEpoch, UnknownContext)):
            raise AssertionError(f"a report is only ever refused for its lease, not {outcome}")
