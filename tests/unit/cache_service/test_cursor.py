from __future__ import annotations

from dataclasses import replace

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings

from cache_service.core.cursor import MAX_BATCH_TOKENS, MAX_PART_PLACEMENTS, Cursor, Part, Update, batch_of, parts_of
from cache_service.core.events import Created, Deleted, Edited, Event, Left
from cache_service.core.types import (
    Context,
    ContextId,
    DepthLimit,
    Edit,
    EditId,
    PrefixKey,
    ReplicaId,
    Revision,
    Snapshot,
    Version,
)
from cache_service.errors import Compacted
from tests.unit.cache_service.builders import ANNA, BORIS, key, placed


def event(revision: int, context: Context | None = None) -> Event:
    return Created(Revision(revision), ANNA, context) if context else Left(Revision(revision), ANNA)


def events(*revisions: int, incarnation: str = "one") -> Update:
    return Update(incarnation, Revision(revisions[-1]), events=tuple(map(event, revisions)))


def snapshot(revision: int) -> Update:
    return Update("one", Revision(revision), part=Part(Snapshot(Revision(revision), (), ()), last=True))


def context(length: int) -> Context:
    version = Version(0, PrefixKey(b"k"), EditId("c"))  # type: ignore[arg-type]
    return Context(ContextId("c"), "m", "s", (1,) * length, (), Revision(1), EditId("c"), version)


@pytest.fixture
def cursor() -> Cursor:
    cursor = Cursor()
    cursor.take(snapshot(5))
    return cursor


def test_events_after_the_snapshot_are_taken_once_and_in_order(cursor: Cursor) -> None:
    assert cursor.take(events(4, 5, 6, 7)) == (event(6), event(7))
    assert cursor.take(events(6, 7)) == ()
    assert cursor.resume() == 7


@pytest.mark.parametrize("update", [events(7), events(6, 8), events(6, incarnation="two"), Update("one", Revision(6))])
def test_a_gap_is_noticed(cursor: Cursor, update: Update) -> None:
    with pytest.raises(Compacted):
        cursor.take(update)
    cursor.reset()
    assert cursor.resume() is None


def test_events_without_a_snapshot_are_refused() -> None:
    with pytest.raises(Compacted, match="without their snapshot"):
        Cursor().take(events(1))


def test_an_idle_service_at_the_same_revision_is_no_gap(cursor: Cursor) -> None:
    assert cursor.take(Update("one", Revision(5))) == ()


def test_half_a_snapshot_is_dropped_with_its_stream(cursor: Cursor) -> None:
    half = Snapshot(Revision(9), (ANNA,), ())
    assert cursor.take(Update("two", Revision(9), part=Part(half, last=False))) == ()
    assert cursor.resume() == 5
    whole = Snapshot(Revision(9), (BORIS,), ())
    assert cursor.take(Update("two", Revision(9), part=Part(whole, last=True))) == (whole,)
    assert (cursor.incarnation, cursor.resume()) == ("two", 9)


def test_a_snapshot_has_nothing_of_one_before_it(cursor: Cursor) -> None:
    first, second = Snapshot(Revision(6), (ANNA,), ()), Snapshot(Revision(7), (BORIS,), ())
    assert cursor.take(Update("one", Revision(6), part=Part(first, last=True))) == (first,)
    assert cursor.take(Update("one", Revision(7), part=Part(second, last=True))) == (second,)
    assert cursor.take(Update("one", Revision(8), part=Part(replace(first, revision=Revision(8)), last=False))) == ()
    cursor.reset()
    assert cursor.take(Update("one", Revision(7), part=Part(second, last=True))) == (second,)


@settings(deadline=None)
@given(
    num_placements=st.sampled_from([0, 1, MAX_PART_PLACEMENTS, MAX_PART_PLACEMENTS + 1]),
    num_contexts=st.integers(0, 2),
    num_limits=st.sampled_from([0, 1, MAX_PART_PLACEMENTS + 1]),
)
def test_a_snapshot_survives_being_cut_in_parts(num_placements: int, num_contexts: int, num_limits: int) -> None:
    whole = Snapshot(
        Revision(3),
        (ANNA, BORIS),
        tuple(placed(f"{i}", ANNA) for i in range(num_placements)),
        draining=(BORIS,),
        contexts=(context(3),) * num_contexts,
        limits=tuple(DepthLimit(key("a"), i % 100, 1, i) for i in range(num_limits)),
    )
    cursor = Cursor()
    parts = list(parts_of(whole))
    taken = [cursor.take(Update("one", Revision(3), part=part)) for part in parts]
    assert taken == [()] * (len(parts) - 1) + [(whole,)]
    assert all(len(part.snapshot.placements) + len(part.snapshot.limits) <= MAX_PART_PLACEMENTS for part in parts)


def test_a_message_is_full_when_its_contexts_are() -> None:
    large = event(1, context(MAX_BATCH_TOKENS))
    small = event(2, context(1))
    assert batch_of([large, small]) == (large,)
    assert batch_of([small, small, large]) == (small, small)
    assert batch_of([small] * 3) == (small,) * 3
    assert batch_of([]) == ()


@pytest.mark.parametrize(
    "large",
    [
        event(1, replace(context(1), salt="s" * MAX_BATCH_TOKENS)),
        event(1, replace(context(1), masked=(0,) * MAX_BATCH_TOKENS)),
        Deleted(Revision(1), ReplicaId("a" * MAX_BATCH_TOKENS), ContextId("c")),
        Edited(Revision(1), ANNA, ContextId("c"), context(1).version, (Edit(0, 0, ()),) * MAX_BATCH_TOKENS),
    ],
    ids=["salt", "holes", "author", "edits"],
)
def test_a_message_is_full_whatever_fills_it(large: Event) -> None:
    assert batch_of([large, event(2)]) == (large,)
