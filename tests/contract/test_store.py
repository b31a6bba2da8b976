"""Every store must pass these tests."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from typing import get_args

import pytest

from cache_service.core.events import Created, Deleted, Event, Granted, Joined, Released
from cache_service.core.lifetimes import Renewal
from cache_service.core.quotas import ContextQuotas, Usage
from cache_service.core.state import State
from cache_service.core.types import (
    FIRST_EPOCH,
    Context,
    ContextId,
    DepthLimit,
    DepthTable,
    Edit,
    EditId,
    Epoch,
    Lease,
    Placement,
    ReplicaId,
    Revision,
    TenantId,
)
from cache_service.errors import (
    CacheServiceError,
    Compacted,
    LeaseRefused,
    StaleEpoch,
    TenantQuotaExceeded,
    TotalQuotaExceeded,
)
from cache_service.store.base import Store
from tests.contract.conftest import Backend
from tests.unit.cache_service.builders import ANNA, BORIS, key, placed


async def joined(store: Store, replica: ReplicaId, ttl_s: float = 60.0) -> Lease:
    events = await store.append(lambda state, at: state.register(replica, ttl_s, at, DepthTable(1, 8)))
    assert isinstance(events[-1], Joined)
    return events[-1].lease


async def created(store: Store, edit_id: str, author: ReplicaId = ANNA) -> Context:
    events = await store.append(
        lambda state, at: state.contexts.create("model", "salt", [1, 2, 3], [1], EditId(edit_id), author, at)
    )
    assert isinstance(events[-1], Created)
    return events[-1].context


async def announce(store: Store, lease: Lease, *placements: Placement) -> None:
    await store.append(lambda state, at: state.announce(lease, placements, at))


def facts(state: State) -> tuple[object, ...]:
    """Return all that `state` holds, without regard to order."""
    view = state.snapshot()
    return (
        view.revision,
        {lease.replica: lease for lease in state.directory.members()},
        frozenset(view.placements),
        frozenset(view.draining),
        view.contexts,
        frozenset(view.builds),
        frozenset(view.limits),
    )


async def test_events_get_consecutive_revisions_and_reach_state_and_feed(backend: Backend) -> None:
    store = await backend.open()
    start = store.state.revision
    lease = await joined(store, ANNA)
    await announce(store, lease, placed("a", ANNA), placed("b", ANNA))
    assert store.state.revision == start + 3
    assert [e.revision for e in store.feed.read(start, 9)] == [start + 1, start + 2, start + 3]
    assert store.state.directory.lookup([key("b")]) == {key("b"): (placed("b", ANNA),)}


async def test_a_refusal_leaves_no_trace(backend: Backend) -> None:
    store = await backend.open()
    lease = await joined(store, ANNA)
    before = facts(store.state)
    with pytest.raises(CacheServiceError, match="can't announce for"):
        await announce(store, lease, placed("a", ANNA), placed("a", BORIS))
    await store.sync()
    assert facts(store.state) == before


async def test_one_instance_reads_what_another_appends(backend: Backend) -> None:
    one, two = await backend.open(), await backend.open()
    lease = await joined(one, ANNA)
    await announce(two, lease, placed("a", ANNA))
    await one.sync()
    assert key("a") in one.state.directory.lookup([key("a")])
    assert one.incarnation == two.incarnation


async def test_a_refusal_is_never_from_an_old_copy(backend: Backend) -> None:
    one, two = await backend.open(), await backend.open()
    for i in range(20):
        lease = await joined(one, ReplicaId(f"r{i}"))
        await announce(two, lease, placed("a", lease.replica))


async def test_of_two_edits_to_one_epoch_one_is_accepted(backend: Backend) -> None:
    stores = [await backend.open(), await backend.open()]
    context = await created(stores[0], "make")

    async def edit(store: Store, epoch: int, name: str) -> str:
        try:
            await store.append(
                lambda state, at: state.edit(
                    context.id, Epoch(epoch), [Edit(1, 2, (9,))], EditId(name), ReplicaId(name), at
                )
            )
        except StaleEpoch:
            return "stale"
        return "accepted"

    for epoch in range(20):
        outcomes = await asyncio.gather(*(edit(stores[i % 2], epoch, f"{epoch}.{i}") for i in range(4)))
        assert Counter(outcomes) == {"accepted": 1, "stale": 3}
    await stores[1].sync()
    assert stores[1].state.contexts.get(context.id).epoch == 20


async def test_instances_that_create_and_edit_at_once_exceed_no_quota(backend: Backend) -> None:
    """Each of two instances has writers of two tenants; together they ask for more than there is room for."""
    stores = [await backend.open(), await backend.open()]
    quotas = ContextQuotas(max_per_tenant=5, max_tokens_per_tenant=14, max_total=8, max_total_tokens=25)
    outcomes: Counter[str] = Counter()

    async def write(store: Store, tenant: TenantId, name: str) -> None:
        tokens, edit_id = [1, 2], EditId(name)
        try:
            events = await store.append(
                lambda state, at: state.create("m", "s", tokens, [], edit_id, ANNA, at, tenant=tenant, quotas=quotas)
            )
            assert isinstance(events[0], Created)
            context, grown = events[0].context, [Edit(0, 0, (7,))]
            for epoch in range(2):
                growth_id = EditId(f"{name}.{epoch}")
                await store.append(
                    lambda state, at, epoch=epoch, growth_id=growth_id: state.edit(  # type: ignore[misc]
                        context.id, Epoch(epoch), grown, growth_id, ANNA, at, quotas=quotas
                    )
                )
        except (TenantQuotaExceeded, TotalQuotaExceeded) as refusal:
            outcomes[refusal.reason] += 1
        total = store.state.contexts.usage.total
        assert total.num_contexts <= quotas.max_total
        assert total.num_tokens <= quotas.max_total_tokens

    tenants = [TenantId("red"), TenantId("blue")]
    await asyncio.gather(*(write(stores[i % 2], tenants[i % 3 == 0], f"c{i}") for i in range(24)))

    assert set(outcomes) == {"tenant-quota-exceeded", "total-quota-exceeded"}
    late = await backend.open()
    for store in (*stores, late):
        await store.sync()
        contexts, usage = store.state.contexts.all(), store.state.contexts.usage
        assert usage.total == Usage(len(contexts), sum(len(context.token_ids) for context in contexts))
        assert usage.total == late.state.contexts.usage.total
        for tenant in tenants:
            assert usage.of(tenant).num_contexts <= quotas.max_per_tenant
            assert usage.of(tenant).num_tokens <= quotas.max_tokens_per_tenant


async def test_an_instance_that_starts_later_refuses_by_what_others_created(backend: Backend) -> None:
    store, quotas, tenant = await backend.open(), ContextQuotas(max_per_tenant=1), TenantId("red")

    async def create(store: Store, name: str) -> Sequence[Event]:
        edit_id = EditId(name)
        return await store.append(
            lambda state, at: state.create("m", "s", [1], [], edit_id, ANNA, at, tenant=tenant, quotas=quotas)
        )

    await create(store, "first")
    late = await backend.open()
    with pytest.raises(TenantQuotaExceeded, match="max_per_tenant"):
        await create(late, "second")
    assert await create(late, "first") == ()


async def test_of_several_instances_one_ends_a_context_whose_time_has_passed(backend: Backend) -> None:
    stores = [await backend.open(), await backend.open()]
    events = await stores[0].append(
        lambda state, at: state.create("m", "s", [1], [], EditId("c"), ANNA, at, renewal=Renewal(100.0, 5.0))
    )
    assert isinstance(events[0], Created)
    context_id = events[0].context.id

    async def end(store: Store) -> Sequence[Event]:
        await store.sync()
        return await store.append(lambda state, at: state.expire_context(context_id, 105.0, at))

    ends = await asyncio.gather(*(end(stores[i % 2]) for i in range(6)))
    assert [type(event) for events in ends for event in events] == [Deleted]
    for store in (*stores, await backend.open()):
        await store.sync()
        assert store.state.contexts.find(context_id) is None
        assert store.state.contexts.usage.total == Usage()


async def test_a_late_instance_knows_when_contexts_end(backend: Backend) -> None:
    store = await backend.open()
    renewal = Renewal(100.0, 5.0)
    await store.append(lambda state, at: state.create("m", "s", [1], [], EditId("c"), ANNA, at, renewal=renewal))
    late = await backend.open()
    [context] = late.state.contexts.all()
    assert late.state.contexts.expired(104.0) == []
    assert late.state.contexts.expired(105.0) == [context.id]


async def test_a_lease_lapses_for_all_instances_and_for_good(backend: Backend) -> None:
    one, two = await backend.open(), await backend.open()
    lease = await joined(one, ANNA, ttl_s=0.3)
    steady = await joined(one, BORIS, ttl_s=60.0)
    await backend.pass_time(0.4)
    await two.sync()
    assert await one.lapsed() == await two.lapsed() == {lease.id}
    assert not await one.renew(lease)
    await two.append(lambda state, at: state.expire({lease.id}, at))
    assert await two.lapsed() == frozenset()
    await one.sync()
    assert [member.replica for member in one.state.directory.members()] == [steady.replica]


async def test_any_instance_can_renew_a_lease(backend: Backend) -> None:
    one, two = await backend.open(), await backend.open()
    lease = await joined(one, ANNA, ttl_s=2.0)
    assert await two.renew(replace(lease, ttl_s=60.0))
    await backend.pass_time(2.1)
    assert await one.lapsed() == frozenset()
    assert await one.renew(lease)


async def test_all_members_renew_at_once(backend: Backend) -> None:
    store = await backend.open()
    leases = [await joined(store, ReplicaId(f"r{i}")) for i in range(150)]
    assert all(await asyncio.gather(*map(store.renew, leases)))


async def test_a_superseded_lease_ends_with_its_successors_beginning(backend: Backend) -> None:
    store = await backend.open()
    old, new = await joined(store, ANNA), await joined(store, ANNA)
    assert not await store.renew(old)
    assert await store.renew(new)
    with pytest.raises(LeaseRefused):
        await announce(store, old, placed("a", ANNA))


async def test_a_build_has_a_lease_of_its_own(backend: Backend) -> None:
    store = await backend.open()
    lease = await joined(store, ANNA)
    events = await store.append(lambda state, at: state.acquire(lease, key("a"), FIRST_EPOCH, None, 0.3, at))
    assert isinstance(events[0], Granted)
    build = events[0].build
    await backend.pass_time(0.4)
    assert await store.lapsed() == {build.lease.id}
    events = await store.append(lambda state, at: state.expire({build.lease.id}, at))
    assert [type(event) for event in events] == [Released]


async def test_many_instances_and_writers_keep_one_history(backend: Backend) -> None:
    stores = [await backend.open() for _ in range(3)]
    start = stores[0].state.revision
    leases = [await joined(stores[i], ReplicaId(f"r{i}")) for i in range(3)]

    async def write(i: int, worker: int) -> None:
        for n in range(8):
            await announce(stores[i], leases[i], placed(f"{worker}.{n}", leases[i].replica))

    await asyncio.gather(*(write(i, worker) for i in range(3) for worker in range(3)))
    for store in stores:
        await store.sync()
        assert [e.revision for e in store.feed.read(start, 999)] == list(range(start + 1, start + 4 + 72))
        assert facts(store.state) == facts(stores[0].state)


async def test_a_follower_receives_the_events_of_others(backend: Backend) -> None:
    one, two = await backend.open(), await backend.open()
    revision = two.state.revision
    waiting = asyncio.create_task(two.feed.wait(revision))
    await joined(one, ANNA)
    async with asyncio.timeout(10):
        await waiting
    assert [type(e) for e in two.feed.read(revision, 9)] == [Joined]


async def test_a_late_instance_knows_what_the_others_know(backend: Backend) -> None:
    """After many events of every kind in random order, a copy from facts must equal the copy from events."""
    store = await backend.open()
    rng = random.Random(7)
    kinds = {type(event) for i in range(500) for event in await act(store, rng, i)}
    assert kinds == set(get_args(Event)), "the random actions must reach every kind"
    late = await backend.open()
    assert facts(late.state) == facts(store.state)
    late.state.check_integrity()


async def act(store: Store, rng: random.Random, i: int) -> Sequence[Event]:
    """Try one random decision; it may be refused."""
    replica = ReplicaId(rng.choice("abc"))
    members = {lease.replica: lease for lease in store.state.directory.members()}
    lease = members.get(replica)
    if lease is None:
        return await store.append(lambda state, at: state.register(replica, 60.0, at, DepthTable(i // 50, 8)))
    name, epoch = rng.choice("uvwxyz"), FIRST_EPOCH
    context = rng.choice([*store.state.contexts.all(), None])
    entry = placed(name, replica, depth=rng.randrange(4))
    if context is not None:
        epoch = context.epoch
        entry = Placement(context.key, replica, 3, 1, 99, epoch, context.id, heat=i)
    build = rng.choice([*store.state.builds.all(), None])
    context_id = context.id if context else ContextId("none")
    decisions = [
        lambda state, at: state.announce(lease, [entry], at),
        lambda state, at: state.announce(lease, [entry], at),
        lambda state, at: state.directory.withdraw(lease, [entry.key], at),
        lambda state, at: state.acquire(lease, entry.key, epoch, entry.context, 60.0, at),
        lambda state, at: state.report_drift(lease, [DepthLimit(entry.key, 50, rng.randrange(9), i // 50)], at),
        lambda state, at: state.edit(context_id, epoch, [Edit(0, 1, (i,))], EditId(f"c{i}"), replica, at),
        lambda state, at: state.contexts.renew(context_id, Renewal(float(i), 60.0), replica, at),
    ]
    if rng.random() < 0.1:
        decisions.append(lambda state, at: state.contexts.create("m", "s", [i, 2], [], EditId(f"n{i}"), replica, at))
    if rng.random() < 0.1:
        decisions.append(lambda state, at: state.delete(context_id, replica, at))
        decisions.append(lambda state, at: state.leave(lease, at))
        decisions.append(lambda state, at: state.directory.drain(lease, at))
    if build is not None and build.replica == replica:
        made = placed("u", replica) if build.context else Placement(build.key, replica, 1, 1, 1)
        decisions.append(lambda state, at: state.complete(lease, build.token, made, at))
        decisions.append(lambda state, at: state.release(lease, build.key, build.epoch, build.token, at))
    with suppress(CacheServiceError):
        return await store.append(decisions[rng.randrange(len(decisions))])
    return ()


async def test_a_late_instance_knows_no_limit_whose_last_placements_ended_in_one_decision(backend: Backend) -> None:
    store = await backend.open()
    leases = [await joined(store, ANNA), await joined(store, BORIS)]
    for lease in leases:
        await announce(store, lease, placed("a", lease.replica))
    limit = DepthLimit(key("a"), 60, 2, 1)
    await store.append(lambda state, at: state.report_drift(leases[0], [limit], at))
    assert (await backend.open()).state.depths.all() == (limit,)
    await store.append(lambda state, at: state.expire({lease.id for lease in leases}, at))
    again = await joined(store, ANNA)
    await announce(store, again, placed("a", ANNA))
    assert [instance.state.depths.all() for instance in (store, await backend.open())] == [(), ()]


async def test_history_is_bounded(backend: Backend) -> None:
    store = await backend.open()
    start = store.state.revision
    lease = await joined(store, ANNA)
    for n in range(10):
        await announce(store, lease, *(placed(f"{n}.{i}", ANNA) for i in range(100)))
    with pytest.raises(Compacted):
        store.feed.read(start, 1)
    assert len(store.feed.read(Revision(store.state.revision - 256), 999)) == 256
