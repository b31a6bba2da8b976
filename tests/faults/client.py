"""Simulate one replica as a client of the service."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Generator
from typing import Any

from cache_service.core.events import Created, Edited, Joined, Renewed
from cache_service.core.lifetimes import Renewal
from cache_service.core.types import (
    FIRST_EPOCH,
    Build,
    Context,
    ContextId,
    DepthLimit,
    DepthTable,
    EditId,
    Lease,
    LeaseId,
    Lifetime,
    Placement,
    PrefixKey,
    ReplicaId,
    Revision,
    TenantId,
    Version,
)
from cache_service.errors import (
    CacheServiceError,
    FencedToken,
    LeaseRefused,
    StaleEpoch,
    TenantQuotaExceeded,
    TotalQuotaExceeded,
    UnknownContext,
)
from tests.faults.edits import some_edits
from tests.faults.world import STRAYS_S, World, run

TIMEOUT_S = 0.02
NUM_TRIES = 3
"""Number of times that a change with an id is sent while no answer comes."""
MEMBER_TTL_S = 2.0
BUILD_TTL_S = 0.1
TICK_S = 0.1
KEYS = [PrefixKey(bytes([i]) * 20) for i in range(12)]
LASTING_KEYS = KEYS[:4]
"""Keys that are seldom withdrawn."""
SALTS = ("red", "blue")
"""Each is the salt of a tenant of that name."""
TTLS_S = (None, 2.0, 2.0, 10.0)
"""Times to live that contexts are created with."""
TABLE = DepthTable(version=1, num_layers=8)

Request = Callable[[], Coroutine[Any, Any, Any]]
Script = Generator[Request, Any, None]


class Client:
    """Announces, reads, builds and edits like a replica, one request at a time, until it dies.

    A request carries the values of the time at which it was sent, however late it arrives.
    """

    def __init__(self, world: World, on_death: Callable[[Client], None]) -> None:
        self._world, self._on_death = world, on_death
        self._service, self._checker, self._rng = world.service, world.checker, world.rng
        self.replica = ReplicaId(world.name())
        self._lease = Lease(LeaseId(0), self.replica, MEMBER_TTL_S)
        self._safe_until = 0.0
        self._unsure_until = 0.0
        self._build: Build | None = None
        self._waiting_for = 0
        self._script = self._live()

    def resume(self, outcome: Any) -> None:
        """Go on with the answer, or with None where none came in time."""
        if self._world.is_quiet:
            return
        try:
            request = self._script.send(outcome)
        except StopIteration:
            self._on_death(self)
            return
        self._waiting_for += 1
        number = self._waiting_for
        self._world.network.send(lambda: self._serve(request, number))
        self._world.network.after(TIMEOUT_S, lambda: self._receive(None, number))

    def _serve(self, request: Request, number: int) -> None:
        try:
            outcome = run(request())
        except CacheServiceError as refusal:
            outcome = refusal
        self._world.network.send(lambda: self._receive(outcome, number))

    def _receive(self, outcome: Any, number: int) -> None:
        if number == self._waiting_for:
            self._waiting_for += 1
            self.resume(outcome)

    def _live(self) -> Script:
        actions = [self._look_up] * 4 + [self._announce] * 3 + [self._build_entry] * 3 + [self._edit] * 3
        actions += [self._withdraw, self._report, self._read, self._look_up_limits, self._renew]
        while self._rng.random() > 0.0005:
            if self._world.service_time() > self._safe_until - MEMBER_TTL_S * 2 / 3:
                yield from self._keep_alive()
            yield from self._rng.choice(actions)()
        if self._rng.random() < 0.5:
            yield from self._leave()

    # Membership

    def _keep_alive(self) -> Script:
        lease, began = self._lease, self._world.service_time()
        self._checker.begin()
        outcome = yield lambda: self._service.keep_alive(lease)
        if isinstance(outcome, Lease):
            self._safe_until = began + MEMBER_TTL_S
            self._checker.entries.end_keep_alive(lease, self._safe_until)
        elif isinstance(outcome, LeaseRefused):
            yield from self._register()

    def _register(self) -> Script:
        """Register; a straggling copy of this request ends what was begun under the lease that it brought."""
        self._lose_build()
        began = self._world.service_time()
        self._unsure_until = self._world.time() + STRAYS_S
        self._checker.begin_register(self.replica)
        events = yield lambda: self._service.append(lambda s, at: s.register(self.replica, MEMBER_TTL_S, at, TABLE))
        if isinstance(events, tuple):
            self._lease = next(event.lease for event in events if isinstance(event, Joined))
            self._safe_until = began + MEMBER_TTL_S
            self._checker.end_register(self._lease, self._safe_until)

    def _leave(self) -> Script:
        self._lose_build()
        lease = self._lease
        self._checker.begin_register(self.replica)
        events = yield lambda: self._service.append(lambda s, at: s.leave(lease, at))
        if isinstance(events, tuple):
            self._checker.entries.end_leave(self.replica)

    def _lose_build(self) -> None:
        if self._build is not None:
            self._checker.builds.give_up(self._build)
            self._build = None

    # Entries and limits

    def _entry(self, key: PrefixKey, context: Context | None = None) -> Placement:
        if context is None:
            return Placement(key, self.replica, 64, self._rng.randrange(4), 4096)
        return Placement(context.key, self.replica, 64, 2, 4096, context.epoch, context.id)

    def _announce(self) -> Script:
        context = yield from self._some_context()
        lease, entry = self._lease, self._entry(self._rng.choice(KEYS), context)
        self._checker.entries.begin_announce([entry])
        outcome = yield lambda: self._service.append(lambda s, at: s.announce(lease, [entry], at))
        if isinstance(outcome, tuple):
            self._checker.entries.end_announce([entry])

    def _withdraw(self) -> Script:
        lease = self._lease
        keys = self._rng.sample(KEYS if self._rng.random() < 0.05 else KEYS[len(LASTING_KEYS) :], 3)
        self._checker.entries.begin_withdraw(self.replica, keys)
        outcome = yield lambda: self._service.append(lambda s, at: s.directory.withdraw(lease, keys, at))
        if isinstance(outcome, tuple):
            self._checker.entries.end_withdraw(self.replica, keys)

    def _look_up(self) -> Script:
        context = yield from self._some_context()
        keys = [context.key if context else self._rng.choice(KEYS)]
        staleness = self._rng.choice([0, 0, 1, 3])
        began = self._checker.begin()
        found = yield lambda: self._synced(lambda: self._world.store.state.lookup(keys, staleness))
        if isinstance(found, dict):
            self._checker.entries.end_lookup(began, keys, found, staleness)

    def _report(self) -> Script:
        """Report drift of an entry that this replica has just announced."""
        lease, entry = self._lease, self._entry(self._rng.choice(KEYS))
        self._checker.entries.begin_announce([entry])
        outcome = yield lambda: self._service.append(lambda s, at: s.announce(lease, [entry], at))
        if not isinstance(outcome, tuple):
            return
        self._checker.entries.end_announce([entry])
        limits = [DepthLimit(entry.key, self._rng.choice([50, 60]), self._rng.randrange(9), 1)]
        began = self._checker.entries.begin_report(limits)
        outcome = yield lambda: self._service.append(lambda s, at: s.report_drift(lease, limits, at))
        if isinstance(outcome, tuple):
            self._checker.entries.end_report(began, self.replica, limits)
        elif isinstance(outcome, (StaleEpoch, UnknownContext)):
            raise AssertionError(f"a report is only ever refused for its lease or its entry, not {outcome}")

    def _look_up_limits(self) -> Script:
        began = self._checker.begin()
        limits = yield lambda: self._synced(lambda: self._world.store.state.depths.lookup(KEYS))
        if isinstance(limits, tuple):
            self._checker.entries.end_limits(began, KEYS, limits)

    async def _synced(self, read: Callable[[], Any]) -> Any:
        await self._world.store.sync()
        return read()

    # Contexts

    def _read(self) -> Script:
        """Read one context, or the list of a tenant's."""
        if self._rng.random() < 0.5:
            yield from self._some_context()
            return
        salt = self._rng.choice(SALTS)
        began = self._checker.begin()
        page = yield lambda: self._synced(lambda: self._world.store.state.contexts.page(salt, Revision(0), 1000))
        if isinstance(page, tuple):
            self._checker.contexts.end_list(began, salt, page)
            known = self._world.contexts
            known.extend(context.id for context in page if context.id not in known)  # its creator got no answer

    def _some_context(self) -> Generator[Request, Any, Context | None]:
        contexts = self._world.contexts
        if not contexts or self._rng.random() < 0.3:
            return None
        context_id = self._rng.choice(contexts)
        began = self._checker.begin()
        context = yield lambda: self._synced(lambda: self._world.store.state.contexts.get(context_id))
        if isinstance(context, UnknownContext):
            self._checker.contexts.end_unknown(began, context_id)
            self._forget(context_id)
        if not isinstance(context, Context):
            return None
        self._checker.contexts.end_get(began, context)
        return context

    def _edit(self) -> Script:
        """Edit a context; now and then create or delete one. What gets no answer is sent again under the same id."""
        context = yield from self._some_context()
        edit_id = EditId(self._world.name())
        if context is None:
            if len(self._world.contexts) < 8:
                yield from self._create(edit_id)
        elif self._rng.random() < 0.08:
            yield from self._delete(context.id)
        else:
            edits, ttl_s = some_edits(self._rng, len(context.token_ids)), self._other_ttl()
            for _ in range(NUM_TRIES):
                self._checker.contexts.begin_edit(context.id, context.epoch, edits, edit_id, ttl_s=ttl_s)
                outcome = yield lambda: self._committed(context, edits, edit_id, ttl_s)
                if isinstance(outcome, tuple):
                    version, lifetime = outcome
                    self._checker.contexts.end_edit(context.id, edit_id, version, lifetime)
                self._note_refusal(outcome)
                if outcome is not None:
                    return

    async def _committed(
        self, context: Context, edits: Any, edit_id: EditId, ttl_s: float | None
    ) -> tuple[Version, Lifetime | None]:
        quotas, renewal = self._service.quotas, Renewal(self._service.wall_clock(), ttl_s)
        events = await self._service.append(
            lambda s, at: s.edit(
                context.id, context.epoch, edits, edit_id, self.replica, at, quotas=quotas, renewal=renewal
            )
        )
        made = next((event for event in events if isinstance(event, Edited)), None)
        if made is not None:
            return made.version, made.lifetime
        known = self._world.store.state.contexts
        return known.version_of_edit(context.id, edit_id), known.get(context.id).lifetime

    def _other_ttl(self) -> float | None:
        """Return None, by which a context keeps its time to live, or now and then another one."""
        return self._rng.choice(TTLS_S) if self._rng.random() < 0.02 else None

    def _note_refusal(self, outcome: Any) -> None:
        if isinstance(outcome, (TenantQuotaExceeded, TotalQuotaExceeded)):
            self._checker.contexts.tenants.end_refused()

    def _create(self, edit_id: EditId) -> Script:
        salt, ttl_s = self._rng.choice(SALTS), self._rng.choice(TTLS_S)
        for _ in range(NUM_TRIES):
            self._checker.contexts.begin_create(edit_id, [1, 2, 3], [1], tenant=TenantId(salt))
            outcome = yield lambda: self._created(salt, edit_id, ttl_s)
            if isinstance(outcome, Context):
                self._checker.contexts.end_create(edit_id, outcome)
                self._world.contexts.append(outcome.id)
            self._note_refusal(outcome)
            if outcome is not None:
                return

    async def _created(self, salt: str, edit_id: EditId, ttl_s: float | None) -> Context:
        tenant, quotas, renewal = TenantId(salt), self._service.quotas, Renewal(self._service.wall_clock(), ttl_s)
        events = await self._service.append(
            lambda s, at: s.create(
                "model",
                salt,
                [1, 2, 3],
                [1],
                edit_id,
                self.replica,
                at,
                tenant=tenant,
                quotas=quotas,
                renewal=renewal,
            )
        )
        made = next((event.context for event in events if isinstance(event, Created)), None)
        return made or self._world.store.state.contexts.find_by_edit(edit_id)

    def _renew(self) -> Script:
        context = yield from self._some_context()
        if context is None:
            return
        renewal, ttl_s = EditId(self._world.name()), self._other_ttl()
        self._checker.contexts.begin_renew(context.id, renewal, ttl_s)
        outcome = yield lambda: self._renewed(context.id, ttl_s)
        if isinstance(outcome, Lifetime):
            self._checker.contexts.end_renew(context.id, renewal, outcome)

    async def _renewed(self, context: ContextId, ttl_s: float | None) -> Lifetime | None:
        renewal = Renewal(self._service.wall_clock(), ttl_s)
        events = await self._service.append(lambda s, at: s.contexts.renew(context, renewal, self.replica, at))
        return next((event.lifetime for event in events if isinstance(event, Renewed)), None)

    def _forget(self, context: ContextId) -> None:
        if context in self._world.contexts:
            self._world.contexts.remove(context)

    def _delete(self, context: ContextId) -> Script:
        self._forget(context)
        self._checker.contexts.begin_delete(context)
        outcome = yield lambda: self._service.append(lambda s, at: s.delete(context, self.replica, at))
        if isinstance(outcome, tuple):
            self._checker.contexts.end_delete(context)

    # Builds

    def _build_entry(self) -> Script:
        """Acquire, work for a while (now and then for too long), and complete, or give up."""
        context = yield from self._some_context()
        key, epoch = (context.key, context.epoch) if context else (self._rng.choice(KEYS), FIRST_EPOCH)
        context_id = context.id if context else None
        lease, moment, began = self._lease, self._checker.begin(), self._world.service_time()
        build = yield lambda: self._service.acquire(lease, key, epoch, context_id, BUILD_TTL_S)
        if not isinstance(build, Build):
            return
        if build.replica != self.replica:
            self._checker.builds.see(moment, build)
            return
        self._build = build
        self._checker.builds.end_acquire(moment, build, self._guaranteed(began))
        if self._rng.random() < 0.03:  # as a replica that was started again
            yield from self._register()
            return
        for _ in range(self._rng.choice([0, 0, 1, 2, 2, 30])):
            yield from self._look_up()
        if self._rng.random() < 0.3:
            began, moment = self._world.service_time(), self._checker.begin()
            answer = yield lambda: self._extended(lease, build)
            if answer == "extended":
                self._checker.builds.end_extend(moment, build, self._guaranteed(began))
        end = self._release(build) if self._rng.random() < 0.1 else self._complete(build, self._entry(key, context))
        yield from end

    def _release(self, build: Build) -> Script:
        self._lose_build()
        lease = self._lease
        self._checker.begin()
        outcome = yield lambda: self._service.append(
            lambda s, at: s.release(lease, build.key, build.epoch, build.token, at)
        )
        if isinstance(outcome, tuple):
            self._checker.builds.end_release(build)

    def _complete(self, build: Build, entry: Placement) -> Script:
        lease = self._lease
        self._checker.entries.begin_announce([entry])
        self._checker.builds.begin_complete(build)
        outcome = yield lambda: self._service.append(lambda s, at: s.complete(lease, build.token, entry, at))
        self._build = None
        if isinstance(outcome, tuple):
            self._checker.builds.end_complete(build)
            self._checker.entries.end_announce([entry])
        elif isinstance(outcome, FencedToken):
            self._checker.builds.end_fenced()

    async def _extended(self, lease: Lease, build: Build) -> str:
        await self._service.extend(lease, build)
        return "extended"

    def _guaranteed(self, began: float) -> float:
        """Return until when a build can't end by itself that a request sent at `began` has begun or extended."""
        if self._world.time() < self._unsure_until:
            return 0.0
        return min(began + BUILD_TTL_S, self._safe_until)
