"""The bounds of requests and messages, each at its edge."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace

import pytest

from cache_service.core.contexts import MAX_EDIT_ID_LENGTH, MAX_EDITS, MAX_TOKEN_ID, MAX_TOKENS
from cache_service.core.cursor import MAX_BATCH_TOKENS, batch_of
from cache_service.core.events import Created, Edited, Left
from cache_service.core.hashing import prefix_keys
from cache_service.core.leases import Leases
from cache_service.core.state import State
from cache_service.core.types import (
    FIRST_EPOCH,
    Context,
    ContextId,
    DepthLimit,
    DepthTable,
    Edit,
    EditId,
    LeaseId,
    PrefixKey,
    Revision,
    Version,
)
from cache_service.errors import InvalidRequest
from tests.unit.cache_service.builders import ANNA, key, placed


def accepted_or_refused(is_accepted: bool, named: str) -> AbstractContextManager[object]:
    return nullcontext() if is_accepted else pytest.raises(InvalidRequest, match=named)


def state_with_anna() -> State:
    state = State()
    for event in state.register(ANNA, 5.0, state.next_revision, DepthTable(1, num_layers=4)):
        state.apply(event)
    return state


@pytest.mark.parametrize(("ttl_s", "is_accepted"), [(0.09, False), (0.1, True), (3600.0, True), (3600.1, False)])
def test_a_members_lease_has_bounds(ttl_s: float, is_accepted: bool) -> None:
    with accepted_or_refused(is_accepted, "ttl_s"):
        State().register(ANNA, ttl_s, Revision(1))


@pytest.mark.parametrize(("ttl_s", "is_accepted"), [(0.09, False), (0.1, True), (600.0, True), (600.1, False)])
def test_a_builds_lease_has_bounds(ttl_s: float, is_accepted: bool) -> None:
    state = state_with_anna()
    with accepted_or_refused(is_accepted, "ttl_s of a build"):
        state.acquire(state.directory.lease_of(ANNA), key("a"), FIRST_EPOCH, None, ttl_s, state.next_revision)


@pytest.mark.parametrize(
    ("length", "is_accepted"), [(0, False), (1, True), (MAX_EDIT_ID_LENGTH, True), (MAX_EDIT_ID_LENGTH + 1, False)]
)
def test_the_id_of_a_change_has_bounds(length: int, is_accepted: bool) -> None:
    state = State()
    with accepted_or_refused(is_accepted, "commit_id"):
        state.contexts.create("m", "s", [1], [], EditId("x" * length), ANNA, state.next_revision)
    for event in state.contexts.create("m", "s", [1], [], EditId("c"), ANNA, state.next_revision):
        state.apply(event)
    (context,) = state.contexts.all()
    with accepted_or_refused(is_accepted, "commit_id"):
        state.edit(context.id, FIRST_EPOCH, [Edit(0, 0, (1,))], EditId("y" * length), ANNA, state.next_revision)


@pytest.mark.parametrize(("length", "is_accepted"), [(0, False), (1, True), (64, True), (65, False)])
def test_a_key_has_bounds(length: int, is_accepted: bool) -> None:
    state = state_with_anna()
    lease, wide = state.directory.lease_of(ANNA), PrefixKey(b"k" * length)
    with accepted_or_refused(is_accepted, "key needs 1 to 64 bytes"):
        state.announce(lease, [replace(placed("a", ANNA), key=wide)], state.next_revision)
    with accepted_or_refused(is_accepted, "key needs 1 to 64 bytes"):
        state.acquire(lease, wide, FIRST_EPOCH, None, 1.0, state.next_revision)


@pytest.mark.parametrize(("length", "is_accepted"), [(0, False), (1, True), (1024, True), (1025, False)])
def test_a_name_has_bounds(length: int, is_accepted: bool) -> None:
    with accepted_or_refused(is_accepted, "replica needs 1 to 1024"):
        State().register(type(ANNA)("n" * length), 5.0, Revision(1))


@pytest.mark.parametrize(
    ("bucket", "depth", "is_accepted"),
    [(0, 0, True), (100, 4, True), (-1, 0, False), (101, 0, False), (0, -1, False), (0, 5, False)],
)
def test_a_depth_limit_has_bounds(bucket: int, depth: int, is_accepted: bool) -> None:
    state = state_with_anna()
    lease = state.directory.lease_of(ANNA)
    for event in state.announce(lease, [placed("a", ANNA)], state.next_revision):
        state.apply(event)
    with accepted_or_refused(is_accepted, "within 0 and"):
        state.report_drift(lease, [DepthLimit(key("a"), bucket, depth, 1)], state.next_revision)


@pytest.mark.parametrize("lengths", [[3, 2], [4], [0, 4]])
def test_prefixes_that_do_not_ascend_within_the_tokens_have_no_keys(lengths: list[int]) -> None:
    with pytest.raises(ValueError, match="must ascend within 3 tokens"):
        prefix_keys("m", "s", [1, 2, 3], lengths)


def test_a_key_stays_the_same_from_version_to_version() -> None:
    """Stores keep keys, and workers of two versions may serve one cluster."""
    [found] = prefix_keys("model", "salt", [1, 2, 3], [3])
    assert found.hex() == "e4f73b3877e6bdaef39a085bdd4f8cdaf44905c5"


def test_fingerprint_and_salt_do_not_run_into_one_another() -> None:
    assert prefix_keys("ab", "c", [1], [1]) != prefix_keys("a", "bc", [1], [1])


def test_prefixes_may_be_empty_equal_or_whole() -> None:
    empty, again, whole = prefix_keys("m", "s", [1, 2, 3], [0, 0, 3])
    assert empty == again != whole


@pytest.mark.parametrize(("spare", "num_events"), [(0, 2), (-1, 1)])
def test_a_message_holds_exactly_so_many_tokens(spare: int, num_events: int) -> None:
    """A name weighs as many tokens as it has characters, and an edit two tokens more than it inserts."""
    num_tokens = MAX_BATCH_TOKENS - 2 * len(ANNA) - 2 - spare
    version = Version(FIRST_EPOCH, key("v"), EditId("e"))
    edited = Edited(Revision(2), ANNA, ContextId("c"), version, (Edit(0, 0, (1,) * num_tokens),))
    assert len(batch_of([Left(Revision(1), ANNA), edited])) == num_events


@pytest.mark.parametrize("field", ["token_ids", "masked", "salt", "fingerprint"])
@pytest.mark.parametrize(("spare", "num_events"), [(0, 2), (-1, 1)])
def test_every_part_of_a_created_context_has_its_weight(field: str, spare: int, num_events: int) -> None:
    version = Version(FIRST_EPOCH, key("v"), EditId("e"))
    small = Context(ContextId("c"), "m", "s", (1,), (0,), Revision(2), EditId("e"), version)
    length = MAX_BATCH_TOKENS - 2 * len(ANNA) - 3 - spare
    full = replace(small, **{field: "x" * length if field in ("salt", "fingerprint") else (1,) * length})
    assert len(batch_of([Left(Revision(1), ANNA), Created(Revision(2), ANNA, full)])) == num_events


@pytest.mark.parametrize(
    ("length", "is_accepted"), [(0, False), (1, True), (MAX_TOKENS, True), (MAX_TOKENS + 1, False)]
)
def test_a_context_has_bounds(length: int, is_accepted: bool) -> None:
    with accepted_or_refused(is_accepted, f"1 to {MAX_TOKENS} tokens"):
        State().contexts.create("m", "s", [1] * length, [], EditId("c"), ANNA, Revision(1))


@pytest.mark.parametrize(
    ("token", "is_accepted"), [(-1, False), (0, True), (MAX_TOKEN_ID, True), (MAX_TOKEN_ID + 1, False)]
)
def test_a_token_id_has_bounds(token: int, is_accepted: bool) -> None:
    with accepted_or_refused(is_accepted, f"within 0 and {MAX_TOKEN_ID}"):
        State().contexts.create("m", "s", [token], [], EditId("c"), ANNA, Revision(1))


@pytest.mark.parametrize(("hole", "is_accepted"), [(-1, False), (0, True), (2, True), (3, False)])
def test_a_hole_lies_within_its_context(hole: int, is_accepted: bool) -> None:
    with accepted_or_refused(is_accepted, "within the 3 tokens"):
        State().contexts.create("m", "s", [1, 2, 3], [hole], EditId("c"), ANNA, Revision(1))


@pytest.mark.parametrize(("number", "is_accepted"), [(0, False), (1, True), (MAX_EDITS, True), (MAX_EDITS + 1, False)])
def test_an_epoch_is_made_by_a_bounded_number_of_edits(number: int, is_accepted: bool) -> None:
    state = State()
    for event in state.contexts.create("m", "s", [1], [], EditId("c"), ANNA, state.next_revision):
        state.apply(event)
    assert len(state.contexts) == 1
    (context,) = state.contexts.all()
    with accepted_or_refused(is_accepted, f"1 to {MAX_EDITS} edits"):
        state.edit(context.id, FIRST_EPOCH, [Edit(0, 0, ())] * number, EditId("e"), ANNA, state.next_revision)


def test_leases_are_counted_until_they_are_revoked() -> None:
    leases = Leases()
    for number in range(3):
        leases.grant(LeaseId(number), 1.0, 0.0)
    leases.revoke(LeaseId(1))
    assert len(leases) == 2
