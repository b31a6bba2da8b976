"""Statements are confirmed or corrected, and any answer that is one word has a short form."""

from collections.abc import Mapping, Sequence
from typing import Literal

from workers.models.factbook import answers
from workers.models.factbook.fragments import Fragments
from workers.models.factbook.people import Person

Fact = Literal["age", "city", "animal"]
UNKNOWN_WORD = "unknown"

STATEMENT_TEXTS: Mapping[str, tuple[str, ...]] = {
    "is_age": (
        "{N} is {A}. Is that right?", "Is {N} {A} years old?", "Is {N} {A}?", "Is it true that {N} is {A}?",
        "{N} is {A} years old. Is that true?", "{N} is {A} years old, right?",
    ),
    "is_city": (
        "{N} lives in {C}. Is that right?", "Does {N} live in {C}?", "Is {N} from {C}?", "Is {N}'s home in {C}?",
        "Is it true that {N} lives in {C}?", "{N} is from {C}. Is that correct?", "{N} lives in {C}, right?",
    ),
    "is_animal": (
        "{N} has {X}. Is that right?", "Does {N} have {X}?", "Does {N} own {X}?", "Is it true that {N} has {X}?",
        "{N} owns {X}. Is that true?", "{N} has {X}, correct?",
    ),
    "is_older": (
        "Is {N} older than {M}?", "{N} is older than {M}. Is that right?", "Is it true that {N} is older than {M}?",
    ),
    "is_younger": (
        "Is {N} younger than {M}?", "{N} is younger than {M}. Is that right?",
        "Is it true that {N} is younger than {M}?",
    ),
}  # fmt: skip
ONE_WORD_REQUESTS = (
    " Answer with one word.", " Reply with one word.", " Answer in one word.", " Just one word.",
    " Only one word, please.",
)  # fmt: skip
"""These follow a question whose answer shall be its short form."""
ANSWER_LABEL: Fragments = [" Answer", ":"]
"""These words stand before a short answer that is a slot of a template."""
QUESTION_LABEL: Fragments = [" Question", ":"]

# Where the short form stands in an answer's fragments, and what follows it in an answer about one person.
_SLOTS: Mapping[str, tuple[int, str | None]] = {
    "age": (2, None),
    "city": (2, None),
    "animal": (3, None),
    "who_age": (0, " is"),
    "who_city": (0, " lives in"),
    "who_animal": (0, " has"),
    "comparison": (0, " ("),
    "extreme": (0, " ("),
    "sum": (-2, " ("),
    "count": (0, None),
    "statement": (0, None),
}


def judge(people: Sequence[Person], name: str, claim: tuple[Fact | str, str]) -> Fragments:
    """Answer "Is it true that NAME is, lives in, has VALUE?" or, with a relation, "Is NAME older than OTHER?"."""
    kind, value = claim
    person = next((person for person in people if person.name == name), None)
    match kind:
        case "age":
            truth = answers.age_of(people, name)
            is_true = person is not None and str(person.age) == value
        case "city":
            truth = answers.city_of(people, name)
            is_true = person is not None and person.city == value
        case "animal":
            truth = answers.animal_of(people, name)
            is_true = person is not None and person.animal == value
        case _:
            other = next((person for person in people if person.name == value), None)
            return _judge_relation(person, other, kind)
    return truth if truth is answers.UNKNOWN else [" Yes" if is_true else " No", ",", *truth]


def _judge_relation(person: Person | None, other: Person | None, relation: str) -> Fragments:
    if person is None or other is None or person.age is None or other.age is None:
        return answers.UNKNOWN
    if person.age == other.age:
        return [" No", ",", *answers.same_age(person.name, other.name, person.age)]
    actual = "older" if person.age > other.age else "younger"
    truth = answers.relation_of(actual, (person.name, person.age), (other.name, other.age))
    return [" Yes" if actual == relation else " No", ",", *truth]


def short_answer(kind: str, answer: Sequence[str]) -> str | None:
    """Return the word that the answer to a question of this kind amounts to; None if it takes several words.

    It is yes or no to a statement, and UNKNOWN_WORD where the sheet does not say.
    """
    if kind == "unanswerable":
        return UNKNOWN_WORD
    index, follower = _SLOTS.get(kind, (0, ""))
    if follower is not None and answer[1] != follower:
        return None
    word = answer[index].removeprefix(" ")
    return word.lower() if kind == "statement" else word


def added_texts() -> tuple[str, ...]:
    """Return the phrasings whose words end the tokenizer's word list."""
    texts = (text for group in STATEMENT_TEXTS.values() for text in group)
    return (*texts, *ONE_WORD_REQUESTS, "".join((*ANSWER_LABEL, *QUESTION_LABEL)), "Yes No yes no unknown Unknown")
