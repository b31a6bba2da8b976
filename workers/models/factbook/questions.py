"""Questions of every kind ask about a sheet in many phrasings, each with its one right answer."""

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

from workers.models.factbook import answers
from workers.models.factbook.entities import ANIMALS, CITIES, NAMES
from workers.models.factbook.fragments import Fragments, Template
from workers.models.factbook.people import MAX_AGE, MAX_SHARING, Person, Split, uncommon_word
from workers.models.factbook.sheets import with_article
from workers.models.factbook.statements import STATEMENT_TEXTS, Fact, judge


@dataclass(frozen=True, slots=True)
class Question:
    """A question comes with its answer; `words` are the names, cities and animals in both."""

    kind: str
    text: Fragments
    answer: Fragments
    words: tuple[str, ...]


# How often each kind is asked: the kinds that a model learns late come more often.
KIND_WEIGHTS: dict[str, float] = {
    "age": 6,
    "city": 6,
    "animal": 6,
    "who_age": 6,
    "who_city": 8,
    "who_animal": 8,
    "comparison": 16,
    "extreme": 7,
    "sum": 16,
    "count": 11,
    "list": 10,
    "statement": 16,
}
_UNANSWERABLE_FRACTION = 0.1
_OFF_TOPIC_FRACTION = 0.015

_TEXTS: dict[str, tuple[str, ...]] = {
    "age": (
        "How old is {N}?", "What is {N}'s age?", "What is the age of {N}?", "Tell me {N}'s age.", "What age is {N}?",
        "Tell me how old {N} is.",
    ),
    "city": (
        "Where does {N} live?", "In which city does {N} live?", "What city does {N} live in?", "Where is {N} from?",
        "Where is {N}'s home?", "Tell me where {N} lives.", "Which city is {N} from?",
    ),
    "animal": (
        "What animal does {N} have?", "Which animal does {N} have?", "What pet does {N} have?", "What is {N}'s animal?",
        "Which animal does {N} own?", "Tell me {N}'s animal.", "What is {N}'s pet?",
    ),
    "who_age": ("Who is {A}?", "Who is {A} years old?", "Which person is {A} years old?", "Whose age is {A}?"),
    "who_city": ("Who lives in {C}?", "Which person lives in {C}?", "Who is from {C}?", "Whose home is {C}?"),
    "who_animal": ("Who has {X}?", "Who owns {X}?", "Which person has {X}?", "Whose animal is {X}?",
                   "Who has the {Y}?"),
    "older": (
        "Who is older, {N} or {M}?", "Who is older: {N} or {M}?", "Which of {N} and {M} is older?",
        "Is {N} or {M} older?", "Of {N} and {M}, who is older?",
    ),
    "younger": (
        "Who is younger, {N} or {M}?", "Who is younger: {N} or {M}?", "Which of {N} and {M} is younger?",
        "Is {N} or {M} younger?", "Of {N} and {M}, who is younger?",
    ),
    "oldest": (
        "Who is the oldest?", "Who is the oldest person?", "Which person is the oldest?",
        "Name the oldest person.",
    ),
    "youngest": (
        "Who is the youngest?", "Who is the youngest person?", "Which person is the youngest?",
        "Name the youngest person.",
    ),
    "sum": (
        "How old are {N} and {M} together?", "What is the sum of the ages of {N} and {M}?",
        "Add the ages of {N} and {M}.",
        "What do the ages of {N} and {M} add up to?", "What is {N}'s age plus {M}'s age?",
    ),
    "count_city": ("How many people live in {C}?", "How many of them live in {C}?", "Count the people in {C}."),
    "count_animal": ("How many people have {X}?", "How many people own {X}?", "Count the people with {X}."),
    "list_city": (
        "List everyone who lives in {C}.", "Which people live in {C}?", "Name all people in {C}.",
        "List the people from {C}.",
    ),
    "list_animal": (
        "List everyone who has {X}.", "Which people have {X}?", "Name all people with {X}.",
        "List the people who own {X}.",
    ),
    "off_topic": (
        "What is {N}'s job?", "What does {N} do?", "How tall is {N}?", "When was {N} born?", "Who is {N} married to?",
        "What is {N}'s favourite colour?", "What food does {N} like?", "Does {N} have a car?", "Is {N} happy?",
        "What is the capital of {C}?", "What is the weather in {C}?", "How many people are there in the world?", "Why?",
        "Who wrote this sheet?", "What time is it?", "What is the name of {N}'s brother?",
        "What language does {N} speak?",
    ),
}  # fmt: skip
_TEMPLATES = {
    kind: tuple(Template(text) for text in texts) for kind, texts in (*_TEXTS.items(), *STATEMENT_TEXTS.items())
}


class QuestionWriter:
    """Writes questions about one sheet. `people` are in the order in which the sheet first names them."""

    def __init__(self, rng: Random, people: Sequence[Person], split: Split) -> None:
        self._rng = rng
        self._people = people
        self._split = split
        self._names = [p.name for p in people]
        self._aged = [p.name for p in people if p.age is not None]
        self._ages = [p.age for p in people if p.age is not None]
        self._cities = [p.city for p in people if p.city is not None]
        self._animals = [p.animal for p in people if p.animal is not None]

    def ask(self) -> Question:
        """Write a question of a kind drawn by weight; about one in eight has no answer on the sheet."""
        draw = self._rng.random()
        if draw < _OFF_TOPIC_FRACTION:
            return self._off_topic()
        kind = self._rng.choices(list(KIND_WEIGHTS), list(KIND_WEIGHTS.values()))[0]
        return self.ask_kind(kind, unanswerable=draw < _OFF_TOPIC_FRACTION + _UNANSWERABLE_FRACTION)

    def ask_kind(self, kind: str, *, unanswerable: bool = False) -> Question:
        """Write a question of one kind; an `unanswerable` one is about something that is not on the sheet."""
        match kind:
            case "age" | "city" | "animal":
                question = self._about_person(kind, unanswerable)
            case "who_age":
                question = self._about_age(unanswerable)
            case "who_city" | "who_animal" | "count" | "list":
                question = self._about_value(kind, unanswerable)
            case "comparison" | "sum":
                question = self._about_pair(kind, unanswerable)
            case "extreme":
                question = self._extreme()
            case "statement":
                question = self._statement(unanswerable)
            case _:
                raise ValueError(kind)
        if question.answer is answers.UNKNOWN:
            return Question("unanswerable", question.text, question.answer, question.words)
        return question

    def _phrase(self, key: str, **values: str | Sequence[str]) -> Fragments:
        template = self._rng.choice(_TEMPLATES[key])
        text = template.fill_from(values)
        draw = self._rng.random()
        if draw < 0.08 and text[-1][-1] in "?.":
            text[-1] = text[-1][:-1]
            text = text if text[-1] else text[:-1]
        elif draw < 0.13 and not template.text.startswith("{"):
            text[0] = text[0][:2].lower() + text[0][2:]
        return text

    def _draw_absent(self, listed: tuple[str, ...], present: Sequence[str], *, capital: bool) -> str:
        while True:
            if self._rng.random() < 0.12:
                word = uncommon_word(self._rng, self._split)
                word = word.capitalize() if capital else word
            else:
                word = self._rng.choice(listed)
            if word not in present:
                return word

    def _about_person(self, kind: str, unanswerable: bool) -> Question:
        name = self._draw_absent(NAMES, self._names, capital=True) if unanswerable else self._rng.choice(self._names)
        answer = {"age": answers.age_of, "city": answers.city_of, "animal": answers.animal_of}[kind]
        person = next((p for p in self._people if p.name == name), Person(name))
        words = {"age": (name,), "city": (name, person.city or ""), "animal": (name, person.animal or "")}[kind]
        return Question(kind, self._phrase(kind, N=name), answer(self._people, name), words)

    def _about_age(self, unanswerable: bool) -> Question:
        usable = [age for age in self._ages if self._ages.count(age) <= MAX_SHARING]
        age = self._rng.choice(usable) if usable and not unanswerable else self._rng.randint(1, MAX_AGE)
        words = tuple(p.name for p in self._people if p.age == age)
        return Question("who_age", self._phrase("who_age", A=str(age)), answers.people_aged(self._people, age), words)

    def _about_value(self, kind: str, unanswerable: bool) -> Question:
        """Write a reverse look-up, a count or a list for a city or an animal."""
        of_city = kind == "who_city" or (kind != "who_animal" and self._rng.random() < 0.5)
        present = self._cities if of_city else self._animals
        if unanswerable or not present:
            word = self._draw_absent(CITIES if of_city else ANIMALS, present, capital=of_city)
        else:
            word = self._rng.choice(present)
        key = kind if kind.startswith("who") else f"{kind}_{'city' if of_city else 'animal'}"
        text = self._phrase(key, **({"C": word} if of_city else {"X": with_article(word), "Y": word}))
        if kind == "count":
            answer = answers.count_in(self._people, word) if of_city else answers.count_with(self._people, word)
            return Question(kind, text, answer, (word,))
        answer = answers.residents_of(self._people, word) if of_city else answers.owners_of(self._people, word)
        names = [p.name for p in self._people if word == (p.city if of_city else p.animal)]
        return Question(kind, text, answer, (word, *names))

    def _about_pair(self, kind: str, unanswerable: bool) -> Question:
        names = self._aged if len(self._aged) > 1 and self._rng.random() < 0.97 else self._names
        first, second = self._rng.sample(names, 2)
        if unanswerable:
            stranger = self._draw_absent(NAMES, self._names, capital=True)
            first, second = (stranger, second) if self._rng.random() < 0.5 else (first, stranger)
        if kind == "sum":
            text = self._phrase("sum", N=first, M=second)
            return Question(kind, text, answers.total_age(self._people, first, second), (first, second))
        relation = self._rng.choice(("older", "younger"))
        text = self._phrase(relation, N=first, M=second)
        return Question(kind, text, answers.compare(self._people, first, second, relation), (first, second))

    def _extreme(self) -> Question:
        relation = self._rng.choice(("oldest", "youngest"))
        answer = answers.extreme(self._people, relation)
        best = (max if relation == "oldest" else min)(self._ages, default=None)
        words = tuple(p.name for p in self._people if p.age is not None and p.age == best)
        return Question("extreme", self._phrase(relation), answer, words)

    def _statement(self, unanswerable: bool) -> Question:
        """Write a statement about one person or two to confirm or to correct; it is true half of the time."""
        relation = self._rng.choice(("older", "younger"))
        if len(self._aged) > 1 and not unanswerable and self._rng.random() < 0.2:
            first, second = self._rng.sample(self._aged, 2)
            text = self._phrase(f"is_{relation}", N=first, M=second)
            return Question("statement", text, judge(self._people, first, (relation, second)), (first, second))
        person = self._rng.choice(self._people)
        name = self._draw_absent(NAMES, self._names, capital=True) if unanswerable else person.name
        fact: Fact = self._rng.choice(("age", "city", "animal"))
        other = self._rng.choice(self._people)  # the same value in about half of all statements
        source = person if self._rng.random() < 0.5 else other
        value = self._rng.choice(CITIES) if fact == "city" else self._rng.choice(ANIMALS)
        match fact:
            case "age":
                value = str(source.age or self._rng.randint(1, MAX_AGE))
                text = self._phrase("is_age", N=name, A=value)
            case "city":
                value = source.city or value
                text = self._phrase("is_city", N=name, C=value)
            case "animal":
                value = source.animal or value
                text = self._phrase("is_animal", N=name, X=with_article(value))
        return Question("statement", text, judge(self._people, name, (fact, value)), (name, value))

    def _off_topic(self) -> Question:
        values = {"N": self._rng.choice(self._names), "C": self._rng.choice(CITIES)}
        return Question("unanswerable", self._phrase("off_topic", **values), answers.UNKNOWN, tuple(values.values()))


def template_texts() -> tuple[str, ...]:
    """Return every phrasing, for the tokenizer's word list."""
    return tuple(text for texts in _TEXTS.values() for text in texts)
