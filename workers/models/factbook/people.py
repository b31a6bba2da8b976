"""Draw people, their facts and made-up words from a seed, for training or for evaluation."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from random import Random

from workers.models.factbook.entities import ANIMALS, CITIES, NAMES

MAX_AGE = 99
MIN_PEOPLE = 4
MAX_PEOPLE = 40
MAX_SHARING = 5  # people who may share one city or one animal
MAX_LETTERS = 12  # of a made-up word

_EVALUATION_SHEETS = 8  # one sheet in eight is for evaluation
_EVALUATION_WORDS = 4  # one made-up word in four is for evaluation
_ONSETS = (
    "b bl br c ch cl cr d dr f fl fr g gl gr h j k kl kr l m n p pl pr qu r s sh sk sl st t th tr v w x y z".split()
)
_VOWELS = "a a a e e e i i i o o o u u ae ai ea ei ia io oa oo ou y".split()
_CODAS = ["", "", "", *"b ck d f g k l ll ld m n nd ng nt p r rd rk rn s ss st t th x z".split()]
_LETTERS = "abcdefghijklmnopqrstuvwxyz"
_ALL_LISTED = (*NAMES, *CITIES, *ANIMALS)
_LISTED = frozenset(word.lower() for word in _ALL_LISTED)
_UNCOMMON_FRACTIONS = (0.05, 0.12, 0.2, 0.4, 0.8)  # parts of a sheet's words that are made up
_MANY_PEOPLE = 20  # sheets with more people have fewer made-up words, since these take many tokens


class Split(Enum):
    """Names the two splits of the data. A hash assigns every sheet and every made-up word to one of them."""

    TRAIN = "train"
    EVALUATION = "evaluation"


@dataclass(frozen=True, slots=True)
class Person:
    """A person has an age in years, a city and an animal; a fact that the sheet does not give is None."""

    name: str
    age: int | None = None
    city: str | None = None
    animal: str | None = None


def _bucket(text: str, num_buckets: int) -> int:
    digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") % num_buckets


def sheet_split(people: tuple[Person, ...]) -> Split:
    """Return the split of a sheet, which depends on its facts and not on their order and wording."""
    facts = sorted((p.name, p.age or 0, p.city or "", p.animal or "") for p in people)
    return Split.EVALUATION if _bucket(repr(facts), _EVALUATION_SHEETS) == 0 else Split.TRAIN


def word_split(word: str) -> Split:
    """Return the split of a made-up word, whatever its case."""
    return Split.EVALUATION if _bucket(word.lower(), _EVALUATION_WORDS) == 0 else Split.TRAIN


def made_up_word(rng: Random, split: Split) -> str:
    """Draw a lower-case word of 3 to 9 letters that no list holds, from the given split."""
    while True:
        if rng.random() < 0.15:
            word = "".join(rng.choices(_LETTERS, k=rng.randint(3, 6)))
        else:
            word = ""
            for _ in range(rng.choice((1, 2, 2, 2, 3))):
                word += rng.choice(_ONSETS) + rng.choice(_VOWELS) + rng.choice(_CODAS)
        if 3 <= len(word) <= 9 and word not in _LISTED and word_split(word) is split:
            return word


def uncommon_word(rng: Random, split: Split) -> str:
    """Draw a lower-case word of 3 to MAX_LETTERS letters that no list holds, from the given split.

    It is one that `made_up_word` draws, syllables up to a length, two halves of listed words, or random letters.
    """
    while True:
        draw = rng.random()
        if draw < 0.35:
            return made_up_word(rng, split)
        num_letters = rng.randint(4, MAX_LETTERS)
        if draw < 0.65:
            word = ""
            while len(word) < num_letters:
                word += rng.choice(_ONSETS) + rng.choice(_VOWELS) + rng.choice(_CODAS)
            word = word[:num_letters]
        elif draw < 0.85:
            first, second = (word.lower() for word in rng.sample(_ALL_LISTED, 2))
            word = (first[: rng.randint(2, len(first))] + second[rng.randrange(len(second) - 1) :])[:num_letters]
        else:
            word = "".join(rng.choices(_LETTERS, k=num_letters))
        if len(word) >= 3 and word not in _LISTED and word_split(word) is split:
            return word


def _draw_distinct(
    rng: Random, num_words: int, listed: tuple[str, ...], make: Callable[[], str], fraction: float
) -> list[str]:
    """Draw distinct words; about a `fraction` of them is made up, the others are listed."""
    chosen = rng.sample(listed, num_words)
    seen = set(chosen)
    for i in range(num_words):
        if rng.random() < fraction:
            word = make()
            if word not in seen:
                chosen[i] = word
                seen.add(word)
    return chosen


def _draw_shared(
    rng: Random, num_people: int, listed: tuple[str, ...], make: Callable[[], str], fraction: float
) -> list[str]:
    """Draw a word for each person; up to MAX_SHARING people share one."""
    weights = rng.choice(((10, 2, 1, 0, 0), (5, 3, 2, 1, 1), (2, 3, 3, 2, 1)))
    sizes: list[int] = []
    while sum(sizes) < num_people:
        sizes.append(rng.choices(range(1, MAX_SHARING + 1), weights)[0])
    words = _draw_distinct(rng, len(sizes), listed, make, fraction)
    spread = [word for word, size in zip(words, sizes, strict=True) for _ in range(size)][:num_people]
    rng.shuffle(spread)
    return spread


def _draw(rng: Random, num_people: int, split: Split) -> tuple[Person, ...]:
    fraction = rng.choice(_UNCOMMON_FRACTIONS[:3] if num_people > _MANY_PEOPLE else _UNCOMMON_FRACTIONS)
    names = _draw_distinct(rng, num_people, NAMES, lambda: uncommon_word(rng, split).capitalize(), fraction)
    cities = _draw_shared(rng, num_people, CITIES, lambda: uncommon_word(rng, split).capitalize(), fraction)
    animals = _draw_shared(rng, num_people, ANIMALS, lambda: uncommon_word(rng, split), fraction)
    missing = rng.choice((0.0, 0.0, 0.1, 0.3))
    people = []
    for name, city, animal in zip(names, cities, animals, strict=True):
        given = [rng.random() >= missing for _ in range(3)]
        if not any(given):
            given[rng.randrange(3)] = True
        age = rng.randint(1, MAX_AGE)
        people.append(Person(name, age if given[0] else None, city if given[1] else None, animal if given[2] else None))
    return tuple(people)


def draw_people(rng: Random, num_people: int, split: Split) -> tuple[Person, ...]:
    """Draw people whose sheet is in the given split."""
    while True:
        people = _draw(rng, num_people, split)
        if sheet_split(people) is split:
            return people
