from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cache_service.core.contexts import splice
from cache_service.core.types import Context, ContextId, EditId, Epoch, PrefixKey, Revision, Version
from cluster.errors import RequestError
from cluster.generation.contexts.drafting import (
    ContextDrafter,
    ContextTurn,
    Draft,
    Hole,
    TextContent,
    TokenContent,
    TurnsContent,
)
from cluster.generation.tokenization import Conversation, Message, TextPrompt, Tokenizer, TokenPrompt

MASK = 1
SHEET = "Mira is 34, lives in Oslo and has a fox."


@pytest.fixture(scope="module")
def tokenizer(random_model: Path) -> Tokenizer:
    return Tokenizer(random_model)


@pytest.fixture(scope="module")
def drafter(tokenizer: Tokenizer) -> ContextDrafter:
    return ContextDrafter(tokenizer, MASK)


def sheet(*parts: str | Hole) -> TurnsContent:
    return TurnsContent((ContextTurn("system", parts),))


def test_a_hole_stands_where_the_words_would(drafter: ContextDrafter) -> None:
    whole = drafter.draft_whole(sheet(SHEET))
    holed = drafter.draft_whole(sheet("Mira is 34, lives in", Hole(1), " and has a", Hole(1), "."))

    differ = [index for index, (a, b) in enumerate(zip(whole.token_ids, holed.token_ids, strict=True)) if a != b]
    assert whole.masked == ()
    assert holed.masked == tuple(differ)
    assert len(differ) == 2
    assert {holed.token_ids[index] for index in differ} == {MASK}


@pytest.mark.parametrize("text", ["<|mask|>", "<|eot_id|>", "<hole 00>"])
def test_text_stays_text(drafter: ContextDrafter, tokenizer: Tokenizer, text: str) -> None:
    for content in (sheet(text), TextContent((text,))):
        draft = drafter.draft_whole(content)
        assert draft.masked == ()
        assert text in tokenizer.text_of(draft.token_ids)


def test_holes_may_stand_anywhere_and_alone(drafter: ContextDrafter) -> None:
    assert drafter.draft_whole(TextContent((Hole(3),))) == Draft((MASK,) * 3, (0, 1, 2))
    assert drafter.draft_whole(TokenContent((7, Hole(2), MASK))) == Draft((7, MASK, MASK, MASK), (1, 2))
    both = drafter.draft_whole(TextContent((Hole(1), Hole(2), "...", Hole(1))))
    assert both.masked[:3] == (0, 1, 2)
    assert both.masked[-1] == len(both.token_ids) - 1


def test_foreign_token_ids_are_refused(drafter: ContextDrafter, tokenizer: Tokenizer) -> None:
    with pytest.raises(RequestError) as refusal:
        drafter.draft_whole(TokenContent((tokenizer.vocab_size,)))
    assert refusal.value.param == "token_ids"


@pytest.mark.parametrize(
    ("found", "instead"),
    [("Oslo", "Lima"), ("Mira", "Tobin"), ("34", "29"), ("a fox", "an owl"), ("Mira is", "Nela was"), (SHEET, "None.")],
)
def test_replaced_text_encodes_as_if_it_had_been_there_from_the_start(
    drafter: ContextDrafter, tokenizer: Tokenizer, found: str, instead: str
) -> None:
    before = drafter.draft_whole(sheet(SHEET))
    start, end, left, right = drafter.locate_text(before.token_ids, (), found)
    put = drafter.draft_after(before.token_ids[:start], TextContent((left + instead + right,)))

    after = (*before.token_ids[:start], *put.token_ids, *before.token_ids[end:])
    assert after == drafter.draft_whole(sheet(SHEET.replace(found, instead))).token_ids


@pytest.mark.parametrize(
    ("found", "rest"),
    [("ü", "Z{}rich 日本 😀."), ("Zürich", "{} 日本 😀."), ("日本", "Zürich {} 😀."), ("😀", "Zürich 日本 {}.")],
)
def test_characters_of_several_tokens_are_replaced_whole(
    drafter: ContextDrafter, tokenizer: Tokenizer, found: str, rest: str
) -> None:
    before = drafter.draft_whole(sheet(rest.format(found))).token_ids
    start, end, left, right = drafter.locate_text(before, (), found)
    put = drafter.draft_after(before[:start], TextContent((left, "an owl", right))).token_ids

    expected = tokenizer.text_of(drafter.draft_whole(sheet(rest.format("an owl"))).token_ids)
    assert tokenizer.text_of((*before[:start], *put, *before[end:])) == expected


@pytest.mark.parametrize("text", ["i", "Bern", "in Oslo and", "ana"])
def test_text_that_does_not_stand_there_once_is_refused(drafter: ContextDrafter, text: str) -> None:
    holed = drafter.draft_whole(sheet("Mira lives in", Hole(1), "Oslo and", " so on, if she has a banana."))
    with pytest.raises(RequestError) as refusal:
        drafter.locate_text(holed.token_ids, holed.masked, text)
    assert refusal.value.param == "edits"


@given(
    old=st.lists(st.tuples(st.integers(5, 50), st.booleans()), min_size=1, max_size=12),
    parts=st.lists(st.one_of(st.integers(5, 50), st.integers(1, 3).map(Hole)), max_size=6),
    data=st.data(),
)
def test_the_edits_of_a_draft_insert_the_draft(
    drafter: ContextDrafter, old: list[tuple[int, bool]], parts: list[int | Hole], data: st.DataObject
) -> None:
    start = data.draw(st.integers(0, len(old)))
    end = data.draw(st.integers(start, len(old)))
    masked = tuple(index for index, (_, hole) in enumerate(old) if hole)
    version = Version(Epoch(0), PrefixKey(b""), EditId("c"))
    tokens = tuple(token for token, _ in old)
    context = Context(ContextId("x"), "", "", tokens, masked, Revision(1), EditId("c"), version)
    draft = drafter.draft_whole(TokenContent(tuple(parts)))

    after, holes = splice(context, draft.edits(start, end))

    shift = len(draft.token_ids) - (end - start)
    kept = [hole if hole < start else hole + shift for hole in masked if not start <= hole < end]
    assert after == (*tokens[:start], *draft.token_ids, *tokens[end:])
    assert holes == tuple(sorted([*kept, *(start + hole for hole in draft.masked)]))


def test_turns_behind_a_context_are_those_of_the_whole_conversation(tokenizer: Tokenizer) -> None:
    turns = tuple(Message(role, text) for role, text in (("user", "Who?"), ("assistant", "Mira."), ("user", "Where?")))
    whole = tokenizer.encode(Conversation((Message("system", SHEET), *turns)))
    context = tokenizer.render([Message("system", SHEET)])

    behind = tokenizer.encode_after_context(Conversation(turns), 30)

    assert context + behind.token_ids == whole.token_ids
    assert [len(context) + length for length in (0, *behind.boundaries)] == list(whole.boundaries)


def test_text_and_tokens_behind_a_context_continue_it(tokenizer: Tokenizer) -> None:
    assert tokenizer.encode_after_context(TextPrompt(" and"), 30).token_ids == tokenizer.encode_suffix(" and")
    assert tokenizer.encode_after_context(TokenPrompt((7, 8)), 30).token_ids == (7, 8)
    assert tokenizer.encode_after_context(TextPrompt(""), 30).token_ids == ()
