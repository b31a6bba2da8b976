from __future__ import annotations

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings

from cache_service.core.contexts import MAX_EDITS, MAX_STALENESS, splice
from cache_service.core.events import Deleted, Edited, Event, Released, Withdrawn
from cache_service.core.hashing import prefix_keys
from cache_service.core.state import State
from cache_service.core.types import (
    FIRST_EPOCH,
    Context,
    ContextId,
    Edit,
    EditId,
    Epoch,
    PrefixKey,
    Revision,
    Version,
)
from cache_service.errors import InvalidRequest, StaleEpoch, UnknownContext
from tests.unit.cache_service.builders import ANNA, BORIS, placed

MASK = 99


def context_of(token_ids: tuple[int, ...], masked: tuple[int, ...] = ()) -> Context:
    version = Version(FIRST_EPOCH, PrefixKey(b"k"), EditId("c"))
    return Context(ContextId("ctx-c"), "model", "salt", token_ids, masked, Revision(1), EditId("c"), version)


def carry_out(state: State, events: tuple[Event, ...]) -> tuple[Event, ...]:
    for event in events:
        state.apply(event)
    return events


def created(state: State, *token_ids: int, edit_id: str = "make", masked: tuple[int, ...] = ()) -> Context:
    events = state.contexts.create("model", "salt", token_ids, masked, EditId(edit_id), ANNA, state.next_revision)
    carry_out(state, events)
    return state.contexts.all()[-1]


def edit(state: State, context: Context, epoch: int, *edits: Edit, name: str | None = None) -> tuple[Event, ...]:
    edit_id = EditId(name or f"edit-{state.revision}")
    return carry_out(state, state.edit(context.id, Epoch(epoch), edits, edit_id, BORIS, state.next_revision))


def test_an_edit_fills_a_hole_and_makes_a_key_of_its_own() -> None:
    state = State()
    context = created(state, 1, MASK, MASK, 4, masked=(1, 2))
    edit(state, context, 0, Edit(1, 2, (7,)))
    after = state.contexts.get(context.id)
    assert (after.token_ids, after.masked, after.epoch) == ((1, 7, MASK, 4), (2,), 1)
    assert [after.key] == prefix_keys("model", "salt", [1, 7, MASK, 4], [4])
    assert after.past == (context.version,)


def test_a_mask_id_in_text_is_not_a_hole() -> None:
    state = State()
    context = created(state, 1, MASK, 3)
    edit(state, context, 0, Edit(0, 1, (MASK,)))
    assert state.contexts.get(context.id).masked == ()


def test_edits_move_what_follows_them() -> None:
    context = context_of((0, 1, 2, 3, MASK, 5), masked=(4,))
    edits = [Edit(0, 0, (MASK, MASK), masked=True), Edit(1, 3, ()), Edit(5, 6, (8, 9))]
    assert splice(context, edits) == ((MASK, MASK, 0, 3, MASK, 8, 9), (0, 1, 4))


@st.composite
def contexts_and_edits(draw: st.DrawFn) -> tuple[Context, list[Edit]]:
    length = draw(st.integers(1, 12))
    masked = draw(st.sets(st.integers(0, length - 1)))
    cuts = draw(st.lists(st.integers(0, length), max_size=6).map(sorted))
    edits = [
        Edit(start, end, tuple(draw(st.lists(st.integers(100, 200), max_size=3))), draw(st.booleans()))
        for start, end in zip(cuts[::2], cuts[1::2], strict=False)
    ]
    return context_of(tuple(range(length)), tuple(sorted(masked))), edits


@settings(deadline=None)
@given(contexts_and_edits())
def test_splices_equal_slices_made_from_the_back(case: tuple[Context, list[Edit]]) -> None:
    context, edits = case
    want = [(token, i in context.masked) for i, token in enumerate(context.token_ids)]
    for edit in reversed(edits):
        want[edit.start : edit.end] = [(token, edit.masked) for token in edit.token_ids]
    tokens, masked = splice(context, edits)
    assert list(tokens) == [token for token, _ in want]
    assert list(masked) == [i for i, (_, hole) in enumerate(want) if hole]


@pytest.mark.parametrize(
    "edits", [[Edit(2, 1, ())], [Edit(0, 9, ())], [Edit(1, 2, ()), Edit(0, 1, ())], [Edit(0, 2, ()), Edit(1, 3, ())]]
)
def test_edits_out_of_order_or_range_are_refused(edits: list[Edit]) -> None:
    with pytest.raises(InvalidRequest, match="must come after position"):
        splice(context_of((1, 2, 3)), edits)


def test_of_two_edits_to_one_epoch_the_second_is_refused() -> None:
    state = State()
    context = created(state, 1, 2)
    edit(state, context, 0, Edit(0, 1, (5,)))
    with pytest.raises(StaleEpoch, match="at epoch 1, the edit was made for 0"):
        edit(state, context, 0, Edit(1, 2, (6,)))


def test_a_repeated_edit_changes_nothing_while_it_is_remembered() -> None:
    state = State()
    context = created(state, 1, 2)
    edit(state, context, 0, Edit(0, 1, (5,)), name="mine")
    for epoch in range(1, 1 + MAX_STALENESS):
        assert edit(state, context, 0, Edit(0, 1, (5,)), name="mine") == ()
        assert state.contexts.version_of_edit(context.id, EditId("mine")).epoch == 1
        edit(state, context, epoch, Edit(0, 1, (5 + epoch,)))
    edit(state, context, 1 + MAX_STALENESS, Edit(0, 1, (1,)))
    with pytest.raises(StaleEpoch):
        edit(state, context, 0, Edit(0, 1, (5,)), name="mine")


def test_a_repeated_creation_makes_no_second_context() -> None:
    state = State()
    created(state, 1, edit_id="once")
    assert state.contexts.create("m", "s", [1], [], EditId("once"), ANNA, state.next_revision) == ()


def test_a_late_copy_of_a_creation_makes_no_deleted_context_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cache_service.core.contexts.MAX_REMEMBERED_DELETIONS", 2)
    state = State()
    for name in "abc":
        context = created(state, 1, edit_id=name)
        carry_out(state, state.delete(context.id, ANNA, state.next_revision))
    for name, is_remembered in (("a", False), ("b", True), ("c", True)):
        events = state.contexts.create("m", "s", [1], [], EditId(name), ANNA, state.next_revision)
        assert (events == ()) == is_remembered
    with pytest.raises(UnknownContext, match="created under 'c'"):
        state.contexts.find_by_edit(EditId("c"))


@pytest.mark.parametrize("num_edits", [0, MAX_EDITS + 1])
def test_an_epoch_of_no_edits_or_too_many_is_refused(num_edits: int) -> None:
    state = State()
    with pytest.raises(InvalidRequest, match=f"1 to {MAX_EDITS} edits"):
        edit(state, created(state, 1), 0, *[Edit(0, 0, ())] * num_edits)


def test_a_store_that_lost_its_memory_repeats_no_id() -> None:
    """Otherwise a reader of an older context would get another one."""
    one, two = created(State(), 1, edit_id="before"), created(State(), 2, edit_id="after")
    assert one.created == two.created
    assert one.id != two.id


@pytest.mark.parametrize(
    ("token_ids", "masked", "named"),
    [((), (), "tokens"), ((-1,), (), "token ids"), ((2**31,), (), "token ids"), ((1,), (1,), "masked")],
)
def test_invalid_contexts_are_refused(token_ids: tuple[int, ...], masked: tuple[int, ...], named: str) -> None:
    with pytest.raises(InvalidRequest, match=named):
        created(State(), *token_ids, masked=masked)


def test_a_deleted_context_is_unknown() -> None:
    state = State()
    context = created(state, 1)
    (deleted,) = carry_out(state, state.delete(context.id, ANNA, state.next_revision))
    assert type(deleted) is Deleted
    with pytest.raises(UnknownContext, match=context.id):
        state.contexts.get(context.id)


def test_pages_list_one_tenants_contexts_in_order_of_creation() -> None:
    state = State()
    for i in range(5):
        created(state, i + 1, edit_id=f"{i}")
    foreign = state.contexts.create("model", "other", [1], [], EditId("x"), ANNA, state.next_revision)
    carry_out(state, foreign)
    first = state.contexts.page("salt", Revision(0), 2)
    rest = state.contexts.page("salt", first[-1].created, 99)
    assert [context.token_ids for context in first + rest] == [(1,), (2,), (3,), (4,), (5,)]


def test_no_key_is_shared_between_salts() -> None:
    state = State()
    events = [
        state.contexts.create("model", salt, [1, 2], [], EditId(salt), ANNA, state.next_revision)[0]
        for salt in ("one", "two")
    ]
    assert len({event.context.key for event in events}) == 2


def test_entries_of_old_epochs_are_hidden_at_once_and_withdrawn_in_the_end() -> None:
    state = State()
    carry_out(state, state.register(ANNA, 5.0, state.next_revision))
    lease = state.directory.lease_of(ANNA)
    context = created(state, 1, 2)
    entry = placed("", ANNA, key=context.key, context=context.id)
    carry_out(state, state.announce(lease, [entry], state.next_revision))
    for epoch in range(MAX_STALENESS):
        assert state.lookup([context.key], epoch) == {context.key: (entry,)}
        edit(state, context, epoch, Edit(0, 1, (10 + epoch,)))
        assert state.lookup([context.key], epoch) == {}
    assert state.lookup([context.key], MAX_STALENESS) == {context.key: (entry,)}
    events = edit(state, context, MAX_STALENESS, Edit(0, 1, (1,)))
    assert [type(event) for event in events] == [Edited, Withdrawn]
    assert state.directory.num_placements == 0
    with pytest.raises(StaleEpoch, match="the entry is of 0"):
        state.announce(lease, [entry], state.next_revision)


def test_content_that_comes_back_does_not_bring_its_old_entries_back() -> None:
    state = State()
    carry_out(state, state.register(ANNA, 5.0, state.next_revision))
    context = created(state, 1, 2)
    entry = placed("", ANNA, key=context.key, context=context.id)
    carry_out(state, state.announce(state.directory.lease_of(ANNA), [entry], state.next_revision))
    edit(state, context, 0, Edit(0, 1, (5,)))
    edit(state, context, 1, Edit(0, 1, (1,)))
    assert state.contexts.get(context.id).key == context.key
    assert state.lookup([context.key], 0) == {}
    assert state.lookup([context.key], 2) == {context.key: (entry,)}


def test_deleting_a_context_ends_its_builds_and_entries() -> None:
    state = State()
    carry_out(state, state.register(ANNA, 5.0, state.next_revision))
    lease = state.directory.lease_of(ANNA)
    context = created(state, 1, 2)
    entry = placed("", ANNA, key=context.key, context=context.id)
    carry_out(state, state.announce(lease, [entry], state.next_revision))
    carry_out(state, state.acquire(lease, context.key, FIRST_EPOCH, context.id, 5.0, state.next_revision))
    events = carry_out(state, state.delete(context.id, BORIS, state.next_revision))
    assert [type(event) for event in events] == [Deleted, Released, Withdrawn]
    assert (state.directory.num_placements, len(state.builds)) == (0, 0)


def test_a_content_is_current_or_stale_or_neither() -> None:
    state = State()
    first, twin = created(state, 1, 2, edit_id="a"), created(state, 1, 2, edit_id="b")
    old = first.key
    assert state.contexts.with_content(old) == first
    assert not state.contexts.is_stale(old)
    edit(state, first, 0, Edit(0, 1, (7,)))
    assert state.contexts.with_content(old) == twin
    assert not state.contexts.is_stale(old)
    edit(state, twin, 0, Edit(0, 1, (8,)))
    assert state.contexts.with_content(old) is None
    assert state.contexts.is_stale(old)
    assert not state.contexts.is_stale(PrefixKey(b"never seen"))
    for context in (first, twin):
        carry_out(state, state.delete(context.id, ANNA, state.next_revision))
    assert not state.contexts.is_stale(old)
    assert state.contexts.with_content(old) is None


def test_only_the_latest_edits_are_remembered_by_their_ids() -> None:
    state = State()
    context = created(state, 1)
    for epoch in range(MAX_STALENESS + 1):
        edit(state, context, epoch, Edit(0, 1, (epoch,)), name=f"e{epoch}")
    assert state.contexts.version_of_edit(context.id, EditId("e0")).epoch == 1
    with pytest.raises(StaleEpoch, match="edited too often since edit 'make'"):
        state.contexts.version_of_edit(context.id, EditId("make"))


def test_a_context_that_does_not_exist_can_be_neither_read_nor_deleted() -> None:
    contexts = State().contexts
    for call in (contexts.get, lambda unknown: contexts.delete(unknown, ANNA, Revision(1))):
        with pytest.raises(UnknownContext, match="there is no context 'ctx-0'"):
            call(ContextId("ctx-0"))
    assert contexts.find(ContextId("ctx-0")) is None


def test_an_edit_that_was_accepted_before_has_no_events() -> None:
    state = State()
    context = created(state, 1)
    edit(state, context, 0, Edit(0, 1, (5,)), name="mine")
    again = state.contexts.edit(context.id, FIRST_EPOCH, [Edit(0, 1, (5,))], EditId("mine"), BORIS, state.next_revision)
    assert again == ()
