"""Each kind of question has one right answer, a function of the people in order of first mention."""

from collections import Counter
from collections.abc import Callable, Sequence

from workers.models.factbook.fragments import Fragments, Template, join
from workers.models.factbook.people import Person
from workers.models.factbook.sheets import with_article

UNKNOWN = Template("The sheet does not say.").fill()

_AGE = Template("{N} is {A} years old.")
_CITY = Template("{N} lives in {C}.")
_ANIMAL = Template("{N} has {X}.")
_AGES = Template("{Ns} are {A} years old.")
_CITIES = Template("{Ns} live in {C}.")
_ANIMALS = Template("{Ns} have {X}.")
_COMPARISON = {
    "older": Template("{N} ({A}) is older than {M} ({B})."),
    "younger": Template("{N} ({A}) is younger than {M} ({B})."),
}
_SAME_AGE = Template("{N} and {M} are both {A}.")
_EXTREME = {"oldest": Template("{N} ({A}) is the oldest."), "youngest": Template("{N} ({A}) is the youngest.")}
_EXTREMES = {"oldest": Template("{Ns} ({A}) are the oldest."), "youngest": Template("{Ns} ({A}) are the youngest.")}
_SUM = Template("{N} ({A}) and {M} ({B}) are {S} together.")
_COUNT_CITY = (Template("{K} person lives in {C}."), Template("{K} people live in {C}."))
_COUNT_ANIMAL = (Template("{K} person has {X}."), Template("{K} people have {X}."))


def conjunction(names: Sequence[str]) -> Fragments:
    """Join names as English does: A; A and B; A, B and C."""
    out: Fragments = []
    for i, name in enumerate(names):
        if i:
            out.append(" and" if i == len(names) - 1 else ",")
        out.append(" " + name)
    return out


def _find(people: Sequence[Person], name: str) -> Person | None:
    return next((person for person in people if person.name == name), None)


def _names_of(people: Sequence[Person], matches: Callable[[Person], bool]) -> list[str]:
    return [person.name for person in people if matches(person)]


def age_of(people: Sequence[Person], name: str) -> Fragments:
    """Answer "How old is NAME?"."""
    person = _find(people, name)
    return UNKNOWN if person is None or person.age is None else _AGE.fill(N=name, A=str(person.age))


def city_of(people: Sequence[Person], name: str) -> Fragments:
    """Answer "Where does NAME live?"."""
    person = _find(people, name)
    return UNKNOWN if person is None or person.city is None else _CITY.fill(N=name, C=person.city)


def animal_of(people: Sequence[Person], name: str) -> Fragments:
    """Answer "What animal does NAME have?"."""
    person = _find(people, name)
    if person is None or person.animal is None:
        return UNKNOWN
    return _ANIMAL.fill(N=name, X=with_article(person.animal))


def people_aged(people: Sequence[Person], age: int) -> Fragments:
    """Answer "Who is AGE years old?"."""
    names = _names_of(people, lambda person: person.age == age)
    if not names:
        return UNKNOWN
    return _AGE.fill(N=names[0], A=str(age)) if len(names) == 1 else _AGES.fill(Ns=conjunction(names), A=str(age))


def residents_of(people: Sequence[Person], city: str) -> Fragments:
    """Answer "Who lives in CITY?"."""
    names = _names_of(people, lambda person: person.city == city)
    if not names:
        return UNKNOWN
    return _CITY.fill(N=names[0], C=city) if len(names) == 1 else _CITIES.fill(Ns=conjunction(names), C=city)


def owners_of(people: Sequence[Person], animal: str) -> Fragments:
    """Answer "Who has an ANIMAL?"."""
    names = _names_of(people, lambda person: person.animal == animal)
    if not names:
        return UNKNOWN
    thing = with_article(animal)
    return _ANIMAL.fill(N=names[0], X=thing) if len(names) == 1 else _ANIMALS.fill(Ns=conjunction(names), X=thing)


def compare(people: Sequence[Person], first: str, second: str, relation: str) -> Fragments:
    """Answer "Who is older (or younger), FIRST or SECOND?"; name people of one age in the question's order."""
    a, b = _find(people, first), _find(people, second)
    if a is None or b is None or a.age is None or b.age is None:
        return UNKNOWN
    if a.age == b.age:
        return same_age(first, second, a.age)
    pair = (a.name, a.age), (b.name, b.age)
    return relation_of(relation, *(pair if (a.age > b.age) == (relation == "older") else pair[::-1]))


def same_age(first: str, second: str, age: int) -> Fragments:
    """State that two people are of one age."""
    return _SAME_AGE.fill(N=first, M=second, A=str(age))


def relation_of(relation: str, first: tuple[str, int], second: tuple[str, int]) -> Fragments:
    """State that the first person is older (or younger) than the second; each is a name with an age."""
    return _COMPARISON[relation].fill(N=first[0], A=str(first[1]), M=second[0], B=str(second[1]))


def extreme(people: Sequence[Person], relation: str) -> Fragments:
    """Answer "Who is the oldest (or youngest)?" by the ages that the sheet gives; name everyone in a tie."""
    ages = [person.age for person in people if person.age is not None]
    if not ages:
        return UNKNOWN
    best = max(ages) if relation == "oldest" else min(ages)
    names = _names_of(people, lambda person: person.age == best)
    if len(names) == 1:
        return _EXTREME[relation].fill(N=names[0], A=str(best))
    return _EXTREMES[relation].fill(Ns=conjunction(names), A=str(best))


def total_age(people: Sequence[Person], first: str, second: str) -> Fragments:
    """Answer "How old are FIRST and SECOND together?"."""
    a, b = _find(people, first), _find(people, second)
    if a is None or b is None or a.age is None or b.age is None:
        return UNKNOWN
    return _SUM.fill(N=first, A=str(a.age), M=second, B=str(b.age), S=str(a.age + b.age))


def count_in(people: Sequence[Person], city: str) -> Fragments:
    """Answer "How many people live in CITY?"."""
    num_people = Counter(person.city for person in people)[city]
    return _COUNT_CITY[num_people > 1].fill(K=str(num_people), C=city) if num_people else UNKNOWN


def count_with(people: Sequence[Person], animal: str) -> Fragments:
    """Answer "How many people have an ANIMAL?"."""
    num_people = Counter(person.animal for person in people)[animal]
    if not num_people:
        return UNKNOWN
    return _COUNT_ANIMAL[num_people > 1].fill(K=str(num_people), X=with_article(animal))


def template_texts() -> tuple[str, ...]:
    """Return every phrasing, for the tokenizer's word list."""
    groups = (*_COMPARISON.values(), *_EXTREME.values(), *_EXTREMES.values(), *_COUNT_CITY, *_COUNT_ANIMAL)
    single = (_AGE, _CITY, _ANIMAL, _AGES, _CITIES, _ANIMALS, _SAME_AGE, _SUM)
    return (join(UNKNOWN), *(template.text for template in (*groups, *single)))
