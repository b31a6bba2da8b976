"""The splits share no sheet and no made-up word, and every answer is right and fits its canvas."""

from pathlib import Path
from random import Random

import pytest
from tokenizers import Tokenizer

import workers.models.factbook as package
from workers.models.factbook import answers
from workers.models.factbook.fragments import Fragments, join
from workers.models.factbook.people import MAX_PEOPLE, Person, Split, draw_people, made_up_word, sheet_split, word_split
from workers.models.factbook.questions import KIND_WEIGHTS, QuestionWriter
from workers.models.factbook.samples import CANVAS, MAX_PREFIX, MAX_SUFFIX, SampleWriter
from workers.models.factbook.sheets import mention_order, write_sheet

PEOPLE = (
    Person("Mira", 34, "Oslo", "fox"),
    Person("Tobin", 29, "Bern", "owl"),
    Person("Anna", 34, "Oslo", "fox"),
    Person("Leo", None, "Oslo", None),
    Person("Zorb", 7, None, "owl"),
)


def test_training_and_evaluation_never_share_a_sheet_or_a_made_up_word() -> None:
    sheets = {split: set() for split in Split}
    words = {split: set() for split in Split}
    for split in Split:
        rng = Random(1)
        for _ in range(300):
            people = draw_people(rng, rng.randint(4, 8), split)
            assert sheet_split(people) is split
            sheets[split].add(frozenset(people))
            word = made_up_word(rng, split)
            assert word_split(word) is split
            words[split].add(word)
    assert not sheets[Split.TRAIN] & sheets[Split.EVALUATION]
    assert not words[Split.TRAIN] & words[Split.EVALUATION]


def test_the_split_ignores_the_order_of_people() -> None:
    assert sheet_split(PEOPLE) is sheet_split(PEOPLE[::-1])


def test_a_seed_gives_the_same_sheet_again() -> None:
    first, second = (
        join(write_sheet(rng, draw_people(rng, MAX_PEOPLE, Split.TRAIN))) for rng in (Random(9), Random(9))
    )
    assert first == second


def test_a_sheet_first_names_people_in_mention_order() -> None:
    rng = Random(4)
    for _ in range(40):
        people = draw_people(rng, rng.randint(4, 20), Split.TRAIN)
        sheet = write_sheet(rng, people)
        order = mention_order(sheet, people)
        assert set(order) == set(people)
        positions = [sheet.index(" " + person.name) for person in order]
        assert positions == sorted(positions)


@pytest.mark.parametrize(
    ("answer", "text"),
    [
        (answers.age_of(PEOPLE, "Mira"), "Mira is 34 years old."),
        (answers.age_of(PEOPLE, "Leo"), "The sheet does not say."),
        (answers.age_of(PEOPLE, "Stranger"), "The sheet does not say."),
        (answers.city_of(PEOPLE, "Tobin"), "Tobin lives in Bern."),
        (answers.animal_of(PEOPLE, "Tobin"), "Tobin has an owl."),
        (answers.people_aged(PEOPLE, 29), "Tobin is 29 years old."),
        (answers.people_aged(PEOPLE, 34), "Mira and Anna are 34 years old."),
        (answers.residents_of(PEOPLE, "Oslo"), "Mira, Anna and Leo live in Oslo."),
        (answers.residents_of(PEOPLE, "Rome"), "The sheet does not say."),
        (answers.owners_of(PEOPLE, "owl"), "Tobin and Zorb have an owl."),
        (answers.compare(PEOPLE, "Mira", "Tobin", "older"), "Mira (34) is older than Tobin (29)."),
        (answers.compare(PEOPLE, "Mira", "Tobin", "younger"), "Tobin (29) is younger than Mira (34)."),
        (answers.compare(PEOPLE, "Anna", "Mira", "older"), "Anna and Mira are both 34."),
        (answers.compare(PEOPLE, "Mira", "Leo", "older"), "The sheet does not say."),
        (answers.extreme(PEOPLE, "oldest"), "Mira and Anna (34) are the oldest."),
        (answers.extreme(PEOPLE, "youngest"), "Zorb (7) is the youngest."),
        (answers.total_age(PEOPLE, "Tobin", "Mira"), "Tobin (29) and Mira (34) are 63 together."),
        (answers.count_in(PEOPLE, "Oslo"), "3 people live in Oslo."),
        (answers.count_in(PEOPLE, "Bern"), "1 person lives in Bern."),
        (answers.count_with(PEOPLE, "fox"), "2 people have a fox."),
    ],
)
def test_answers_on_a_small_sheet(answer: Fragments, text: str) -> None:
    assert join(answer) == text


def test_every_kind_of_question_can_have_an_answer_or_none() -> None:
    writer = QuestionWriter(Random(2), PEOPLE, Split.TRAIN)
    for kind in KIND_WEIGHTS:
        assert {writer.ask_kind(kind).kind for _ in range(30)} <= {kind, "unanswerable"}
        if kind != "extreme":
            assert kind not in {writer.ask_kind(kind, unanswerable=True).kind for _ in range(5)} - {"who_age"}


def test_samples_fit_their_slots() -> None:
    tokenizer = Tokenizer.from_file(str(Path(package.__file__).parent / "checkpoints" / "factbook" / "tokenizer.json"))
    for split in Split:
        writer = SampleWriter(tokenizer, 0, split)
        for _ in range(60):
            sample = writer.draw(16)
            assert len(sample.prefix) <= MAX_PREFIX
            assert max(map(len, sample.suffixes)) <= MAX_SUFFIX
            assert max(map(len, sample.answers)) < CANVAS
