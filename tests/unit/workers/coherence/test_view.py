"""Check the view of a replica against the service's own state."""

from __future__ import annotations

import random

from cache_service.core.events import Event
from cache_service.core.hashing import prefix_keys
from cache_service.core.mirror import Mirror, Moved, News
from cache_service.core.state import State
from cache_service.core.types import (
    Context,
    DepthLimit,
    DepthTable,
    Edit,
    EditId,
    Epoch,
    Placement,
    PrefixKey,
    ReplicaId,
)
from workers.api import ContextEpoch
from workers.coherence.view import ClusterView

A = ReplicaId("a")


class Service:
    """Holds a service's state, and a view that follows every event."""

    def __init__(self) -> None:
        self.state, self.mirror = State(), Mirror()
        self.view = ClusterView(self.mirror)
        self.mirror.take(self.state.snapshot())

    def carry_out(self, events: tuple[Event, ...]) -> list[News]:
        news = []
        for event in events:
            self.state.apply(event)
            news.append(self.mirror.take(event))
        return news

    def create(self, *token_ids: int, name: str = "c") -> Context:
        at = self.state.next_revision
        self.carry_out(self.state.contexts.create("f", "", token_ids, (), EditId(name), A, at))
        return self.state.contexts.find_by_edit(EditId(name))

    def edit(self, context: Context, *edits: Edit, name: str) -> list[Moved]:
        now = self.state.contexts.get(context.id)
        events = self.state.edit(context.id, now.epoch, edits, EditId(name), A, self.state.next_revision)
        return [moved for news in self.carry_out(events) for moved in news.moved]


def key(*token_ids: int) -> PrefixKey:
    return prefix_keys("f", "", token_ids, [len(token_ids)])[0]


def test_an_edit_makes_the_old_content_stale_and_names_the_new() -> None:
    service = Service()
    context = service.create(1, 2, 3)
    assert service.view.context_of(key(1, 2, 3)) == ContextEpoch(context.id, Epoch(0))
    [moved] = service.edit(context, Edit(0, 1, (9,)), name="x")
    assert (moved.old, moved.context) == (key(1, 2, 3), service.state.contexts.get(context.id))
    assert service.view.is_stale(key(1, 2, 3))
    assert service.view.context_of(key(9, 2, 3)) == ContextEpoch(context.id, Epoch(1))


def test_content_that_another_context_still_has_does_not_move() -> None:
    service = Service()
    first, second = service.create(1, 2, name="one"), service.create(1, 2, name="two")
    assert service.edit(first, Edit(0, 1, (9,)), name="x") == []
    assert service.view.context_of(key(1, 2)) == ContextEpoch(second.id, Epoch(0))
    assert [moved.old for moved in service.edit(second, Edit(0, 1, (8,)), name="y")] == [key(1, 2)]


def test_content_that_comes_back_is_current_again() -> None:
    service = Service()
    context = service.create(1, 2)
    service.edit(context, Edit(0, 1, (9,)), name="x")
    service.edit(context, Edit(0, 1, (1,)), name="y")
    assert not service.view.is_stale(key(1, 2))
    assert service.view.is_stale(key(9, 2))


def test_a_deleted_context_leaves_its_content_behind() -> None:
    service = Service()
    context = service.create(1, 2)
    [news] = service.carry_out(service.state.contexts.delete(context.id, A, service.state.next_revision))
    assert news.moved == (Moved(key(1, 2), None),)
    assert service.view.context_of(key(1, 2)) is None


def test_a_view_knows_holders_and_the_news_names_limits() -> None:
    service = Service()
    service.carry_out(service.state.register(A, 10.0, service.state.next_revision, DepthTable(0, 2)))
    lease = service.state.directory.lease_of(A)
    placement = Placement(key(1), A, 1, 2, 100)
    service.carry_out(service.state.announce(lease, [placement], service.state.next_revision))
    assert service.view.holders(key(1)) == {A}
    limit = DepthLimit(key(1), 60, 1, 0)
    [news] = service.carry_out(service.state.report_drift(lease, [limit], service.state.next_revision))
    assert news.limits == (limit,)
    late = Mirror()
    assert late.take(service.state.snapshot()).limits == (limit,)
    assert ClusterView(late).holders(key(1)) == {A}


def test_a_view_that_followed_all_events_equals_one_that_starts_now() -> None:
    rng = random.Random(7)
    service = Service()
    contexts = [service.create(number, 5, name=f"c{number}") for number in range(3)]
    for step in range(200):
        context = rng.choice(contexts)
        service.edit(context, Edit(0, 1, (rng.randrange(4),)), name=f"s{step}")
        mirror = Mirror()
        mirror.take(service.state.snapshot())
        late = ClusterView(mirror)
        for token in range(4):
            content = key(token, 5)
            assert service.view.context_of(content) == late.context_of(content)
            assert service.view.is_stale(content) == late.is_stale(content)
