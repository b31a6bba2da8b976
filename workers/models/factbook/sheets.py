"""A fact sheet gives a person's facts in one sentence or several, in many phrasings and in any order."""

from collections.abc import Sequence
from random import Random

from workers.models.factbook.fragments import Fragments, Template
from workers.models.factbook.people import Person

_INTROS = (
    "Fact sheet:",
    "Here is the fact sheet.",
    "You answer questions about this sheet.",
    "Here are some people.",
    "People:",
)

_ALL = (
    "{N} is {A}, lives in {C} and has {X}.",
    "{N} is {A} years old, lives in {C} and has {X}.",
    "{N} is {A} and lives in {C} with {X}.",
    "{N} lives in {C}, is {A} and has {X}.",
    "{N} has {X}, lives in {C} and is {A}.",
    "{N} from {C} is {A} and has {X}.",
    "{N}, {A}, lives in {C} and has {X}.",
    "{N} ({A}) lives in {C} and owns {X}.",
    "{N} lives in {C} with {X} and is {A} years old.",
    "{N} is {A} years old, is from {C} and owns {X}.",
)
_LINE = ("{N}: {A}, {C}, {Y}.", "- {N}: {A}, {C}, {Y}", "{N}, {A}, {C}, {Y}", "{N} - age {A}, city {C}, animal {Y}")
_AGE_CITY = ("{N} is {A} and lives in {C}.", "{N} is {A} years old and lives in {C}.", "{N} ({A}) lives in {C}.",
             "{N} lives in {C} and is {A}.", "{N} from {C} is {A}.")  # fmt: skip
_AGE_ANIMAL = ("{N} is {A} and has {X}.", "{N} has {X} and is {A}.", "{N} ({A}) has {X}.",
               "{N} is {A} years old and owns {X}.")  # fmt: skip
_CITY_ANIMAL = ("{N} lives in {C} and has {X}.", "{N} lives in {C} with {X}.", "{N} has {X} and lives in {C}.",
                "{N} from {C} has {X}.", "{N} owns {X} and is from {C}.")  # fmt: skip
_AGE = ("{N} is {A}.", "{N} is {A} years old.", "{N}'s age is {A}.", "The age of {N} is {A}.")
_CITY = ("{N} lives in {C}.", "{N} is from {C}.", "{N}'s home is {C}.", "{N}'s home is in {C}.")
_ANIMAL = ("{N} has {X}.", "{N} owns {X}.", "{N}'s animal is {X}.", "{N} keeps {X}.")
_PRONOUN_AGE = ("{P} is {A}.", "{P} is {A} years old.")
_PRONOUN_CITY = ("{P} lives in {C}.", "{P} is from {C}.")
_PRONOUN_ANIMAL = ("{P} has {X}.", "{P} owns {X}.")


def _templates(*texts: str) -> tuple[Template, ...]:
    return tuple(Template(text) for text in texts)


# Phrasings by the set of facts that a sentence gives: (age, city, animal).
_PHRASINGS: dict[tuple[bool, bool, bool], tuple[Template, ...]] = {
    (True, True, True): _templates(*_ALL),
    (True, True, False): _templates(*_AGE_CITY),
    (True, False, True): _templates(*_AGE_ANIMAL),
    (False, True, True): _templates(*_CITY_ANIMAL),
    (True, False, False): _templates(*_AGE),
    (False, True, False): _templates(*_CITY),
    (False, False, True): _templates(*_ANIMAL),
}
_LINES = _templates(*_LINE)
_PRONOUNS = (_templates(*_PRONOUN_AGE), _templates(*_PRONOUN_CITY), _templates(*_PRONOUN_ANIMAL))
_INTRO_FRAGMENTS = tuple(Template(text).fill() for text in _INTROS)


def with_article(animal: str) -> Fragments:
    """Return the fragments of the animal after its article, such as a fox or an owl."""
    return [" an" if animal[0] in "aeiou" else " a", " " + animal]


def _values(person: Person) -> dict[str, str | Sequence[str]]:
    values: dict[str, str | Sequence[str]] = {"N": person.name}
    if person.age is not None:
        values["A"] = str(person.age)
    if person.city is not None:
        values["C"] = person.city
    if person.animal is not None:
        values["X"] = with_article(person.animal)
        values["Y"] = person.animal
    return values


def _one_sentence(rng: Random, person: Person) -> Fragments:
    given = (person.age is not None, person.city is not None, person.animal is not None)
    return rng.choice(_PHRASINGS[given]).fill_from(_values(person))


def _split_sentences(rng: Random, person: Person) -> list[Fragments]:
    """Spread the person's facts over several sentences, each of which names the person."""
    values = _values(person)
    facts = [i for i, fact in enumerate((person.age, person.city, person.animal)) if fact is not None]
    rng.shuffle(facts)
    cut = rng.randint(1, len(facts)) if len(facts) > 1 else 1
    groups = [facts[:cut], *([i] for i in facts[cut:])]
    return [rng.choice(_PHRASINGS[0 in group, 1 in group, 2 in group]).fill_from(values) for group in groups]


def _with_pronoun(rng: Random, person: Person) -> list[Fragments]:
    """Write one sentence that names the person, then one for each other fact that says He or She."""
    values = _values(person)
    values["P"] = rng.choice(("He", "She"))
    facts = [i for i, fact in enumerate((person.age, person.city, person.animal)) if fact is not None]
    rng.shuffle(facts)
    cut = rng.randint(1, len(facts))
    first = facts[:cut]
    sentence = rng.choice(_PHRASINGS[0 in first, 1 in first, 2 in first]).fill_from(values)
    for i in facts[cut:]:
        sentence = sentence + rng.choice(_PRONOUNS[i]).fill_from(values)
    return [sentence]


def write_sheet(rng: Random, people: Sequence[Person]) -> Fragments:
    """Write the sheet's text about the people in the given order, unless it shuffles split sentences.

    `mention_order` returns the order in which the text first names them.
    """
    separator = rng.choice(("", "", "\n"))
    table = rng.random() < 0.08
    split_fraction = rng.choice((0.0, 0.0, 0.15, 0.5))
    sentences: list[Fragments] = []
    for person in people:
        full = None not in (person.age, person.city, person.animal)
        if table and full:
            sentences.append(rng.choice(_LINES).fill_from(_values(person)))
        elif rng.random() < split_fraction:
            sentences.extend((_split_sentences if rng.random() < 0.6 else _with_pronoun)(rng, person))
        else:
            sentences.append(_one_sentence(rng, person))
    if split_fraction and rng.random() < 0.4:
        rng.shuffle(sentences)
    if rng.random() < 0.15:
        sentences.insert(0, rng.choice(_INTRO_FRAGMENTS))
    if table:
        separator = "\n"
    out: Fragments = []
    for i, sentence in enumerate(sentences):
        if i and separator:
            out.append(separator)
        out.extend(sentence)
    if rng.random() < 0.1:
        out.append("\n")
    return out


def mention_order(sheet: Sequence[str], people: Sequence[Person]) -> tuple[Person, ...]:
    """Return the people in the order in which the sheet first names them."""
    by_fragment = {" " + person.name: person for person in people}
    seen = {fragment: None for fragment in sheet if fragment in by_fragment}
    return tuple(by_fragment[fragment] for fragment in seen)


def template_texts() -> tuple[str, ...]:
    """Return every phrasing, for the tokenizer's word list."""
    groups = (_INTROS, _ALL, _LINE, _AGE_CITY, _AGE_ANIMAL, _CITY_ANIMAL, _AGE, _CITY, _ANIMAL)
    return (*(text for group in groups for text in group), "He She {P}")
