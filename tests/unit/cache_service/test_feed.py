from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest

from cache_service.core.events import Created, Deleted, Event, Left
from cache_service.core.state import State
from cache_service.core.types import EditId, Revision
from cache_service.errors import CacheServiceUnavailable, Compacted
from cache_service.store.feed import Feed
from tests.unit.cache_service.builders import ANNA


def event(revision: int) -> Event:
    return Left(Revision(revision), ANNA)


def filled(num_events: int, capacity: int) -> Feed:
    feed = Feed(capacity)
    feed.append(event(revision) for revision in range(1, num_events + 1))
    return feed


@pytest.mark.parametrize("after", range(4, 11))
@pytest.mark.parametrize("limit", [1, 3, 100])
def test_reads_follow_the_cursor_from_any_revision_in_the_history(after: int, limit: int) -> None:
    revisions = [e.revision for e in filled(10, capacity=6).read(Revision(after), limit)]
    assert revisions == list(range(after + 1, 11))[:limit]


@pytest.mark.parametrize("after", [3, 11])
def test_a_cursor_beyond_the_history_gets_an_error(after: int) -> None:
    with pytest.raises(Compacted, match=r"4\.\.10"):
        filled(10, capacity=6).read(Revision(after), 1)


def test_the_content_of_the_history_is_bounded() -> None:
    """Contexts are made and deleted: few exist at a time, but a history by number of events would hold them all."""
    state, feed = State(), Feed(1_000, max_content=100)
    for number in range(50):
        made = state.create("m", "s", [1] * 30, [], EditId(f"{number}"), ANNA, state.next_revision)
        carry_out(state, feed, made)
        [context] = state.contexts.all()
        carry_out(state, feed, state.delete(context.id, ANNA, state.next_revision))
    kept = feed.read(Revision(state.revision - len(feed)), 1_000)
    assert [type(event) for event in kept] == [Deleted, *[Created, Deleted] * 3]
    with pytest.raises(Compacted):
        feed.read(Revision(0), 1)


def carry_out(state: State, feed: Feed, events: Sequence[Event]) -> None:
    for event in events:
        state.apply(event)
    feed.append(events)


async def test_a_waiter_wakes_at_the_next_event() -> None:
    feed = Feed(4)
    waiter = asyncio.create_task(feed.wait(Revision(0)))
    await asyncio.sleep(0)
    assert not waiter.done()
    feed.append([event(1)])
    await waiter


async def test_closing_ends_every_wait() -> None:
    feed = Feed(4)
    waiter = asyncio.create_task(feed.wait(Revision(0)))
    await asyncio.sleep(0)
    feed.close()
    with pytest.raises(CacheServiceUnavailable, match="shutting down"):
        await waiter


def test_history_restarts_after_a_new_head() -> None:
    feed = filled(3, capacity=6)
    feed.restart(Revision(40))
    feed.append([event(41)])
    assert [e.revision for e in feed.read(Revision(40), 9)] == [41]
    with pytest.raises(Compacted):
        feed.read(Revision(3), 9)
