"""The contents that a replica keeps follow the watch, or are forgotten."""

from __future__ import annotations

import random

from cache_service.core.events import Created, Edited
from cache_service.core.state import State
from cache_service.core.types import Context, Edit, EditId, ReplicaId
from workers.coherence.contents import ContextContents

ME = ReplicaId("me")


class Service:
    """Holds a service's state, and makes changes to it."""

    def __init__(self) -> None:
        self.state = State()

    def create(self, *token_ids: int) -> Context:
        at = self.state.next_revision
        (event,) = self.state.contexts.create("f", "", token_ids, (), EditId(f"c{at}"), ME, at)
        self.state.apply(event)
        return event.context

    def edit(self, context: Context, *edits: Edit) -> Edited:
        at, newest = self.state.next_revision, self.state.contexts.get(context.id)
        (event,) = self.state.contexts.edit(context.id, newest.epoch, edits, EditId(f"e{at}"), ME, at)
        self.state.apply(event)
        return event


def test_what_is_kept_follows_the_edits() -> None:
    rng, service, contents = random.Random(3), Service(), ContextContents()
    context = service.create(*range(9))
    contents.put(context)
    for _ in range(50):
        start = rng.randrange(9)
        contents.take(service.edit(context, Edit(start, start + 1, (rng.randrange(99),) * rng.randrange(1, 4))))
        assert contents.find(context.id) == service.state.contexts.get(context.id)


def test_what_is_not_read_is_not_kept() -> None:
    service, contents = Service(), ContextContents()
    context = service.create(1, 2)
    contents.take(Created(context.created, ME, context))
    contents.take(service.edit(context, Edit(0, 1, (5,))))
    contents.take(service.state.snapshot())
    assert len(contents) == 0


def test_a_missing_edit_ends_what_is_kept_and_a_known_one_does_not() -> None:
    service, contents = Service(), ContextContents()
    context = service.create(1, 2)
    first, second = (service.edit(context, Edit(0, 1, (number,))) for number in (5, 6))
    newest = service.state.contexts.get(context.id)
    contents.put(newest)
    contents.take(first)
    contents.take(second)
    assert contents.find(context.id) == newest
    contents.put(context)
    assert contents.find(context.id) == newest, "an older epoch replaces no newer one"
    service.edit(context, Edit(0, 1, (7,)))
    contents.take(service.edit(context, Edit(0, 1, (8,))))
    assert contents.find(context.id) is None


def test_a_snapshot_ends_what_it_does_not_confirm() -> None:
    service, contents = Service(), ContextContents()
    same, moved, gone = (service.create(number) for number in (1, 2, 3))
    for context in (same, moved, gone):
        contents.put(context)
    service.edit(moved, Edit(0, 1, (9,)))
    for event in service.state.delete(gone.id, ME, service.state.next_revision):
        service.state.apply(event)
    contents.take(service.state.snapshot())
    assert [contents.find(context.id) for context in (same, moved, gone)] == [same, None, None]


def test_a_deletion_ends_what_is_kept() -> None:
    service, contents = Service(), ContextContents()
    context = service.create(1)
    contents.put(context)
    (deleted,) = service.state.delete(context.id, ME, service.state.next_revision)
    contents.take(deleted)
    assert len(contents) == 0


def test_those_used_least_recently_make_room() -> None:
    service, contents = Service(), ContextContents(max_tokens=5)
    one, two, three = (service.create(number, number) for number in (1, 2, 3))
    contents.put(one)
    contents.put(two)
    assert contents.find(one.id) == one
    contents.put(three)
    assert [contents.find(context.id) for context in (one, two, three)] == [one, None, three]
    contents.take(service.edit(one, Edit(0, 0, (7, 7, 7, 7))))
    assert [contents.find(context.id) is not None for context in (one, three)] == [True, False]
