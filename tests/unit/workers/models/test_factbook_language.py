"""A sheet's language: entities are one token each, and fragments encode as the tokenizer does."""

from collections.abc import Iterator
from pathlib import Path
from random import Random

import pytest
from tokenizers import Tokenizer

import workers.models.factbook as package
from workers.models.factbook.entities import ANIMALS, CITIES, NAMES
from workers.models.factbook.fragments import FragmentEncoder, Fragments, Template, join
from workers.models.factbook.people import Split, draw_people
from workers.models.factbook.questions import QuestionWriter
from workers.models.factbook.sheets import mention_order, write_sheet
from workers.models.factbook.tokenizer import SPECIAL_TOKENS, build_tokenizer, special_id

CHECKPOINTS = Path(package.__file__).parent / "checkpoints"


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.from_file(str(CHECKPOINTS / "factbook" / "tokenizer.json"))


def test_there_are_enough_entities_and_no_repeats() -> None:
    assert len(NAMES) >= 400
    assert len(CITIES) >= 200
    assert len(ANIMALS) >= 100
    words = (*NAMES, *CITIES, *ANIMALS)
    assert len(set(words)) == len(words)


def test_building_the_tokenizer_again_gives_the_shipped_one(tokenizer: Tokenizer) -> None:
    assert build_tokenizer().to_str() == tokenizer.to_str()
    plain = Tokenizer.from_file(str(CHECKPOINTS / "factbook-plain" / "tokenizer.json"))
    assert plain.to_str() == tokenizer.to_str()


def test_entities_and_numbers_are_one_token(tokenizer: Tokenizer) -> None:
    for word in (*NAMES, *CITIES, *ANIMALS, *map(str, range(251))):
        assert len(tokenizer.encode(word).ids) == 1, word
    assert tokenizer.encode("Mira").ids == tokenizer.encode("is Mira").ids[1:] == tokenizer.encode("a\nMira").ids[2:]


@pytest.mark.parametrize(
    "text",
    [
        "", " ", "\n", "\n\n\n", "Mira", " Mira", "  Mira ", "a\n Mira\n\n\tb \n", "Zorblat's qxz; 1234 007 (34) 3.14",
        "don't {x} [y] <z> a_b ~ ^ % $ # @ ! \\ / | \" ` =+*&", "x\r\ny",
        "Zürich, naïve, 東京, 🦊", "".join(map(chr, range(128))),
    ],
)  # fmt: skip
def test_decoding_inverts_encoding(tokenizer: Tokenizer, text: str) -> None:
    assert tokenizer.decode(tokenizer.encode(text).ids) == text


def test_random_ascii_round_trips(tokenizer: Tokenizer) -> None:
    rng = Random(5)
    for _ in range(500):
        text = "".join(chr(rng.choice((10, 32, *range(32, 127)))) for _ in range(rng.randint(0, 40)))
        assert tokenizer.decode(tokenizer.encode(text).ids) == text


def test_a_typed_special_token_can_stay_text(tokenizer: Tokenizer) -> None:
    tokenizer.encode_special_tokens = True
    try:
        for token in SPECIAL_TOKENS:
            ids = tokenizer.encode(f"say {token} now").ids
            assert special_id(tokenizer, token) not in ids
            assert tokenizer.decode(ids) == f"say {token} now"
    finally:
        tokenizer.encode_special_tokens = False


def _texts(seed: int, split: Split, sheets: int) -> Iterator[Fragments]:
    rng = Random(seed)
    for _ in range(sheets):
        people = draw_people(rng, rng.randint(4, 40), split)
        sheet = write_sheet(rng, people)
        writer = QuestionWriter(rng, mention_order(sheet, people), split)
        yield sheet
        for _ in range(10):
            question = writer.ask()
            yield question.text
            yield question.answer


@pytest.mark.parametrize("split", list(Split))
def test_fragment_ids_equal_the_tokenizers(tokenizer: Tokenizer, split: Split) -> None:
    encoder = FragmentEncoder(tokenizer)
    for fragments in _texts(3, split, sheets=60):
        text = join(fragments)
        assert encoder.encode(fragments) == tokenizer.encode(text).ids
        assert tokenizer.decode(encoder.encode(fragments)) == text


def test_a_slot_takes_its_space_with_it() -> None:
    assert Template("{N} ({A}) lives.").fill(N="Mira", A="34") == [" Mira", " (", "34", ") lives."]
    assert join([" Mira", " is", "\n", " Tobin"]) == "Mira is\nTobin"
