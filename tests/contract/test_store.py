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

from cache_service.core.events import Created, Event, Granted, Joined, Released
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
)
from cache_service.errors import CacheServiceError, Compacted, LeaseRefused, StaleEpoch
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
