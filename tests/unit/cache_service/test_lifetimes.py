"""Contexts with a time to live: when it begins, begins again, and ends."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from cache_service.client.client import CacheClient
from cache_service.config import ServerConfig
from cache_service.core.events import Created, Deleted, Event, Released, Renewed, Withdrawn
from cache_service.core.lifetimes import MAX_TTL_S, Renewal
from cache_service.core.mirror import Mirror, Moved
from cache_service.core.quotas import ContextQuotas
from cache_service.core.state import State
from cache_service.core.types import FIRST_EPOCH, Context, Edit, EditId, Lifetime
from cache_service.errors import InvalidRequest, UnknownContext
from cache_service.rpc.server import CacheServer
from cache_service.store.memory import MemoryStore
from cache_service.testing import FakeClock
from tests.unit.cache_service.builders import ANNA, BORIS, placed

NOW = 1_000.0


def carry_out(state: State, events: Sequence[Event]) -> Sequence[Event]:
    for event in events:
        state.apply(event)
    return events


def created(state: State, ttl_s: float | None = 60.0) -> Context:
    events = state.create("m", "s", [1, 2], [], EditId("c"), ANNA, state.next_revision, renewal=Renewal(NOW, ttl_s))
    (event,) = carry_out(state, events)
    assert isinstance(event, Created)
    return event.context


def lifetime_of(state: State, context: Context) -> Lifetime | None:
    return state.contexts.get(context.id).lifetime


def edit(state: State, context: Context, renewal: Renewal | None, epoch: int = 0) -> None:
    edits, edit_id, at = [Edit(0, 1, (9,))], EditId(f"e{epoch}"), state.next_revision
    newest = state.contexts.get(context.id).epoch
    carry_out(state, state.edit(context.id, newest, edits, edit_id, BORIS, at, renewal=renewal))


def test_a_context_ends_once_its_time_to_live_has_passed() -> None:
    state = State()
    context = created(state)
    assert context.lifetime == Lifetime(60.0, NOW + 60)
    assert state.contexts.expired(NOW + 59) == []
    assert state.expire_context(context.id, NOW + 59, state.next_revision) == ()
    assert state.contexts.expired(NOW + 60) == [context.id]
    assert [type(e) for e in state.expire_context(context.id, NOW + 60, state.next_revision)] == [Deleted]


def test_a_context_without_a_time_to_live_stays() -> None:
    state = State()
    context = created(state, ttl_s=None)
    assert context.lifetime is None
    assert state.contexts.expired(1e12) == []
    assert state.expire_context(context.id, 1e12, state.next_revision) == ()


def test_an_edit_begins_the_time_to_live_again_and_may_replace_it() -> None:
    state = State()
    context = created(state)
    edit(state, context, Renewal(NOW + 30))
    assert lifetime_of(state, context) == Lifetime(60.0, NOW + 90)
    edit(state, context, Renewal(NOW + 40, 5.0), 1)
    assert lifetime_of(state, context) == Lifetime(5.0, NOW + 45)
    assert state.contexts.expired(NOW + 45) == [context.id]


def test_a_renewal_makes_no_epoch_and_leaves_builds_and_entries_alone() -> None:
    state = State()
    context = created(state, ttl_s=None)
    events = carry_out(state, state.contexts.renew(context.id, Renewal(NOW, 9.0), ANNA, state.next_revision))
    assert [type(event) for event in events] == [Renewed]
    assert (state.contexts.get(context.id).epoch, lifetime_of(state, context)) == (0, Lifetime(9.0, NOW + 9))
    assert state.contexts.get(context.id).key == context.key


def test_what_was_renewed_or_deleted_meanwhile_does_not_expire() -> None:
    state = State()
    context = created(state)
    carry_out(state, state.contexts.renew(context.id, Renewal(NOW + 59), ANNA, state.next_revision))
    assert state.expire_context(context.id, NOW + 60, state.next_revision) == ()
    carry_out(state, state.delete(context.id, ANNA, state.next_revision))
    assert state.expire_context(context.id, 1e12, state.next_revision) == ()
    assert state.contexts.expired(1e12) == []


def test_an_expired_context_leaves_with_its_builds_and_entries_and_frees_its_quota() -> None:
    state = State()
    carry_out(state, state.register(ANNA, 5.0, state.next_revision))
    lease, context = state.directory.lease_of(ANNA), created(state)
    mirror = Mirror()
    mirror.take(state.snapshot())
    entry = placed("", ANNA, key=context.key, context=context.id)
    for events in (
        state.announce(lease, [entry], state.next_revision),
        state.acquire(lease, context.key, FIRST_EPOCH, context.id, 5.0, state.next_revision + 1),  # type: ignore[arg-type]
    ):
        for event in carry_out(state, events):
            mirror.take(event)
    gone = carry_out(state, state.expire_context(context.id, NOW + 60, state.next_revision))
    assert [type(event) for event in gone] == [Deleted, Released, Withdrawn]
    assert (state.directory.num_placements, len(state.builds), state.contexts.usage.total.num_contexts) == (0, 0, 0)
    assert mirror.take(gone[0]).moved == (Moved(context.key, None),)


@pytest.mark.parametrize("ttl_s", [0.0, -1.0, 0.5, MAX_TTL_S + 1, float("nan"), float("inf")])
def test_a_time_to_live_out_of_bounds_is_refused(ttl_s: float) -> None:
    with pytest.raises(InvalidRequest, match="ttl_s of a context must lie within 1 and 31536000"):
        created(State(), ttl_s)
    with pytest.raises(InvalidRequest, match=r"contexts\.default_ttl_s must lie within"):
        ContextQuotas(default_ttl_s=ttl_s)


async def test_the_service_applies_its_default_and_deletes_what_has_expired(clock: FakeClock) -> None:
    config = ServerConfig(port=0, grace_s=0.0, tick_s=3600.0, contexts=ContextQuotas(default_ttl_s=60))
    async with (
        CacheServer(config, MemoryStore(clock=clock), wall_clock=clock) as server,
        CacheClient(f"127.0.0.1:{server.port}", timeout_s=10.0) as client,
    ):
        began = clock.now
        usual = await client.create_context("m", "s", [1], author=ANNA)
        brief = await client.create_context("m", "s", [2], author=ANNA, ttl_s=5.0)
        assert usual.lifetime == Lifetime(60.0, began + 60)
        assert brief.lifetime == Lifetime(5.0, began + 5)
        clock.advance(5.0)
        await server.service.tick()
        with pytest.raises(UnknownContext):
            await client.get_context(brief.id)
        assert await client.renew_context(usual.id, author=ANNA) == Lifetime(60.0, began + 65)
        edited = await client.edit_known_context(usual, [Edit(0, 1, (3,))], author=ANNA, ttl_s=7.0)
        assert edited == await client.get_context(usual.id)
        assert edited.lifetime == Lifetime(7.0, began + 12)
        clock.advance(7.0)
        await server.service.tick()
        assert (await client.list_contexts("s")).contexts == ()
        lapses = server.service.metrics.registry.get_sample_value("palimpsest_cache_lapses_total", {"what": "context"})
        assert lapses == 2


async def test_a_repeated_edit_reports_the_lifetime_without_renewing_it(clock: FakeClock) -> None:
    config = ServerConfig(port=0, grace_s=0.0, tick_s=3600.0)
    async with (
        CacheServer(config, MemoryStore(clock=clock), wall_clock=clock) as server,
        CacheClient(f"127.0.0.1:{server.port}", timeout_s=10.0) as client,
    ):
        made = await client.create_context("m", "s", [1], author=ANNA, ttl_s=60.0)
        edits, edit_id = [Edit(0, 1, (3,))], EditId("once")
        first = await client.edit_known_context(made, edits, author=ANNA, edit_id=edit_id)
        clock.advance(10.0)
        assert await client.edit_known_context(made, edits, author=ANNA, edit_id=edit_id) == first
