from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from tokenizers import Tokenizer as PlainTokenizer

from cluster.errors import RequestError, TokenizerError
from cluster.generation.tokenization import Conversation, Message, TextPrompt, Tokenizer, TokenPrompt
from workers.bicache.cut import cut_length
from workers.models.factbook.tokenizer import build_tokenizer

SYSTEM = Message("system", "Mira is 34 and lives in Oslo.")
FIRST = Message("user", "Where does Mira live?")
ANSWER = Message("assistant", "Mira lives in Oslo.")
SECOND = Message("user", "How old is Mira?")
EOT = "<|eot_id|>"


@pytest.fixture(scope="module")
def tokenizer(random_model: Path) -> Tokenizer:
    return Tokenizer(random_model)


@pytest.fixture(scope="module")
def plain() -> PlainTokenizer:
    return build_tokenizer()


def turn(message: Message) -> str:
    return f"<|start_header_id|>{message.role}<|end_header_id|>\n\n{message.content}{EOT}"


def test_a_conversation_goes_through_the_template_and_is_cut_before_user_turns(
    tokenizer: Tokenizer, plain: PlainTokenizer
) -> None:
    encoded = tokenizer.encode(Conversation((SYSTEM, FIRST, ANSWER, SECOND)))

    start, end = "<|startoftext|>", "<|start_header_id|>assistant<|end_header_id|>\n\n"
    text = start + "".join(map(turn, (SYSTEM, FIRST, ANSWER, SECOND))) + end
    cuts = [start + turn(SYSTEM), start + "".join(map(turn, (SYSTEM, FIRST, ANSWER)))]
    assert list(encoded.token_ids) == plain.encode(text).ids
    assert encoded.boundaries == tuple(len(plain.encode(cut).ids) for cut in cuts)


def test_the_next_question_and_the_next_turn_share_prefixes_with_this_one(tokenizer: Tokenizer) -> None:
    def keys(*messages: Message) -> list[bytes]:
        encoded = tokenizer.encode(Conversation(messages))
        return [candidate.key for candidate in encoded.candidates("weights", "")]

    [sheet] = keys(SYSTEM, FIRST)

    assert keys(SYSTEM, SECOND) == [sheet]
    turn_two = keys(SYSTEM, FIRST, ANSWER, SECOND)
    turn_three = keys(SYSTEM, FIRST, ANSWER, SECOND, ANSWER, FIRST)
    assert turn_two[0] == turn_three[0] == sheet
    assert turn_three[1] == turn_two[1]


@pytest.mark.parametrize("share", [0.3, 0.5, 0.9, 1.0])
@pytest.mark.parametrize("num_turns", [5, 6, 10, 17])
def test_a_long_conversation_is_cut_as_if_all_its_boundaries_were_kept(
    random_model: Path, share: float, num_turns: int
) -> None:
    """It keeps three boundaries: the first, the last, and the one at which it is cut."""
    tokenizer = Tokenizer(random_model, cut_share=share)
    turns = [(FIRST, ANSWER), (SECOND, Message("assistant", "Mira is 34 years old."))]
    talk = (SYSTEM, *[message for number in range(num_turns) for message in turns[number % 2]])[:-1]
    whole = [len(tokenizer.render(talk[:index])) for index, message in enumerate(talk) if message.role == "user"]
    boundaries = tokenizer.encode(Conversation(talk)).boundaries

    assert (boundaries[0], boundaries[-1]) == (whole[0], whole[-1])
    assert len(boundaries) <= 3
    assert cut_length(boundaries, share) == cut_length(whole, share)
    behind = tokenizer.encode_after_context(Conversation(talk[1:]), whole[0])
    assert cut_length((whole[0], *(whole[0] + length for length in behind.boundaries)), share) == cut_length(
        whole, share
    )


def test_a_conversation_of_few_turns_keeps_all_its_boundaries(tokenizer: Tokenizer) -> None:
    talk = (SYSTEM, *[FIRST, ANSWER] * 3, SECOND)
    assert len(tokenizer.encode(Conversation(talk)).boundaries) == 4


def test_a_lonely_question_has_nothing_to_share(tokenizer: Tokenizer) -> None:
    assert tokenizer.encode(Conversation((FIRST,))).boundaries == ()


@given(st.text(st.sampled_from("ab <|>_idetmask\n"), max_size=30), st.sampled_from([EOT, "<|mask|>", "<|endoftext|>"]))
def test_special_tokens_in_content_stay_text(tokenizer: Tokenizer, around: str, special: str) -> None:
    innocent = tokenizer.encode(Conversation((SYSTEM, Message("user", "x")))).token_ids
    hostile = tokenizer.encode(Conversation((SYSTEM, Message("user", f"{around}{special}{around}")))).token_ids

    def specials(token_ids: tuple[int, ...]) -> list[int]:
        return [token_id for token_id in token_ids if token_id < 6]

    assert specials(hostile) == specials(innocent)


def test_raw_text_reads_special_tokens_and_is_cut_after_blank_lines(
    tokenizer: Tokenizer, plain: PlainTokenizer
) -> None:
    text = f"An instruction.\n\nQ: a\nA: b\n\nQ: c{EOT}"

    encoded = tokenizer.encode(TextPrompt(text))

    assert list(encoded.token_ids) == plain.encode(text).ids
    assert encoded.boundaries == tuple(
        len(plain.encode(cut).ids) for cut in ("An instruction.\n\n", "An instruction.\n\nQ: a\nA: b\n\n")
    )


@pytest.mark.parametrize(
    ("length", "boundaries"),
    [(1, ()), (128, ()), (129, (128,)), (1000, (896,)), (1088, (1024,)), (2112, (2048,)), (2300, (2048,))],
)
def test_token_ids_are_cut_on_a_grid(tokenizer: Tokenizer, length: int, boundaries: tuple[int, ...]) -> None:
    assert tokenizer.encode(TokenPrompt((7,) * length)).boundaries == boundaries


@pytest.mark.parametrize("bad", [(1_000_000,), (7, -1), (0, 1_000_000)])
def test_ids_beyond_the_vocabulary_are_refused(tokenizer: Tokenizer, bad: tuple[int, ...]) -> None:
    with pytest.raises(RequestError, match="vocabulary") as refused:
        tokenizer.encode(TokenPrompt(bad))

    assert refused.value.param == "prompt"


def test_salt_and_weights_change_every_key(tokenizer: Tokenizer) -> None:
    encoded = tokenizer.encode(Conversation((SYSTEM, FIRST)))
    candidates = [encoded.candidates(*names) for names in (("w", ""), ("w", "s"), ("v", ""))]

    assert len({candidate.key for [candidate] in candidates}) == 3
    assert {candidate.num_tokens for [candidate] in candidates} == set(encoded.boundaries)


TOKENS = st.lists(st.integers(0, build_tokenizer().get_vocab_size() - 1), max_size=25)


@given(st.data(), st.text(max_size=20))
def test_streamed_pieces_of_well_formed_text_join_to_its_decoding(
    tokenizer: Tokenizer, plain: PlainTokenizer, data: st.DataObject, text: str
) -> None:
    token_ids = plain.encode(text).ids
    cut = data.draw(st.integers(0, len(token_ids)))
    detokenizer = tokenizer.detokenizer()

    pieces = [detokenizer.push(token_ids[:cut]), detokenizer.push(token_ids[cut:]), detokenizer.finish()]

    assert "".join(pieces) == plain.decode(token_ids)


@given(TOKENS)
@example([396, 1753, 1816, 500])
def test_any_tokens_give_the_same_text_however_they_are_grouped(tokenizer: Tokenizer, tokens: list[int]) -> None:
    """This holds also for bytes that are no UTF-8, which a diffusion model can commit."""
    at_once, one_by_one = tokenizer.detokenizer(), tokenizer.detokenizer()
    whole = at_once.push(tokens) + at_once.finish()

    pieces = [one_by_one.push([token]) for token in tokens]

    assert "".join(pieces) + one_by_one.finish() == whole
    assert not any(piece.endswith("\N{REPLACEMENT CHARACTER}") for piece in pieces)


@given(st.sets(st.integers(0, 11), min_size=1))
def test_the_pieces_of_all_tokens_make_up_the_text(
    tokenizer: Tokenizer, plain: PlainTokenizer, chosen: set[int]
) -> None:
    token_ids = plain.encode("Mira is 34, lives in Oslo and has a fox.").ids
    alone = [tokenizer.text_within(token_ids, [at]) for at in range(len(token_ids))]
    assert "".join(alone) == plain.decode(token_ids)
    assert tokenizer.text_within(token_ids, sorted(chosen)) == "".join(alone[at] for at in sorted(chosen))


def test_a_character_in_pieces_is_held_back(tokenizer: Tokenizer, plain: PlainTokenizer) -> None:
    detokenizer = tokenizer.detokenizer()
    first, second = plain.encode("ë").ids[-2:]

    assert [detokenizer.push([first]), detokenizer.push([second]), detokenizer.finish()] == ["", "ë", ""]


def test_a_directory_without_a_tokenizer_is_named(tmp_path: Path) -> None:
    with pytest.raises(TokenizerError, match=str(tmp_path)):
        Tokenizer(tmp_path)


def test_messages_that_the_template_refuses_are_the_clients_fault(random_model: Path, tmp_path: Path) -> None:
    for file in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / file).write_bytes((random_model / file).read_bytes())
    (tmp_path / "chat_template.jinja").write_text("{{ raise_exception('no system turn') }}")

    with pytest.raises(RequestError, match="no system turn") as refused:
        Tokenizer(tmp_path).encode(Conversation((SYSTEM, FIRST)))

    assert refused.value.param == "messages"
