"""The evaluation's suites ask held-out questions in every form that the model is trained for."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from random import Random

from tokenizers import Tokenizer

from workers.models.factbook.branches import MAX_LENGTH
from workers.models.factbook.decode import DEFAULT_SCHEDULE, Reuse, Schedule
from workers.models.factbook.entities import ANIMALS, CITIES, NAMES
from workers.models.factbook.mixture import Branch, Form, MixtureWriter, sample_of
from workers.models.factbook.people import Split
from workers.models.factbook.questions import Question, QuestionWriter
from workers.models.factbook.samples import (
    ConversationSample,
    Sample,
    SampleWriter,
    evaluation_conversations,
    evaluation_samples,
)

LISTED = frozenset((*NAMES, *CITIES, *ANIMALS))
NUM_TURNS = 4
CANVASES = (64, 128, 256, 512, 768, 1024, 1536, MAX_LENGTH)
"""Lengths of canvases; the last one ends with the context."""
_SIZES = ((4, 10), (11, 20), (21, 30), (31, 40))
_WORDS: Mapping[str, tuple[str, ...]] = {
    "yes or no": ("statement",),
    "who": ("who_age", "who_city", "who_animal", "comparison", "extreme"),
    "where": ("city",),
    "how many": ("count",),
}
"""Kinds of questions by the word that answers them."""

NO_REUSE = (Reuse(),)


@dataclass(frozen=True)
class Suite:
    """A suite holds samples of one form, their groups, and the ways to decode them."""

    name: str
    samples: Sequence[Sample]
    groups: Mapping[str, Sequence[str]]
    """Names of groups, one a sample, by grouping."""
    schedule: Schedule = DEFAULT_SCHEDULE
    reuses: Sequence[Reuse] = NO_REUSE
    batch_size: int = 128
    words: Sequence[Sequence[list[int]]] = ()
    """Token ids of the made-up words in each sample's answer; empty if they aren't of interest."""


def size_of(sample: Sample) -> str:
    return next(f"{low}-{high}" for low, high in _SIZES if low <= sample.num_people <= high)


def words_of(sample: Sample) -> str:
    return "listed" if LISTED.issuperset(filter(None, sample.questions[0].words)) else "made up"


def suites(tokenizer: Tokenizer, num_layers: int, num_questions: int, only: Sequence[str] = ()) -> Iterator[Suite]:
    """Yield the suites whose names contain one of `only`, or all; the others are not drawn.

    All but the first two have fewer samples than `num_questions`.
    """
    for name, draw in suite_drawers(tokenizer, num_layers, num_questions).items():
        if not only or any(part in name for part in only):
            yield draw(name)


def suite_drawers(tokenizer: Tokenizer, num_layers: int, num_questions: int) -> dict[str, Callable[[str], Suite]]:
    """Return what draws each suite, by the suite's name."""
    half, interval = num_layers // 2, 16
    naive = [Reuse(), Reuse(half, interval), Reuse(num_layers, interval)]
    depths = [*(Reuse(depth, interval) for depth in range(half + 1)), Reuse(half, 1)]
    served = [Reuse(), Reuse(num_layers, interval)]
    chat_reuses = [Reuse(), *(Reuse(depth, interval) for depth in (2, 4, half, num_layers))]
    forms: tuple[Form, ...] = ("sentence", "one word", "slot")
    end = Branch([], [], Question("end of text", [], [], ()))

    def share(divisor: int) -> int:
        return max(1, num_questions // divisor)

    return {
        "questions": lambda name: questions(tokenizer, name, num_questions, naive),
        "questions by depth": lambda name: questions(tokenizer, name, share(4), depths),
        "made-up names": lambda name: names(tokenizer, name, share(4), served),
        **{f"canvas {canvas}": partial(long_canvas, tokenizer, share(40), canvas) for canvas in CANVASES},
        "turns, cut behind the sheet": lambda name: turns(tokenizer, name, share(10), chat_reuses, is_inner=False),
        "turns, cut behind an earlier turn": lambda name: turns(tokenizer, name, share(10), chat_reuses, is_inner=True),
        **{f"one-word questions, {form}": partial(words, tokenizer, share(10), form, served) for form in forms},
        "raw text": lambda name: raw(tokenizer, name, share(8), MixtureWriter.raw_question, served),
        "holes": lambda name: raw(tokenizer, name, share(8), MixtureWriter.hole, served),
        "end of text": lambda name: raw(tokenizer, name, share(20), lambda _mixture, _asked: end, served),
    }


def questions(tokenizer: Tokenizer, name: str, number: int, reuses: Sequence[Reuse]) -> Suite:
    """Return first questions about held-out sheets, as the model card reports them."""
    samples = list(evaluation_samples(tokenizer, number))
    return Suite(name, samples, question_groups(samples), reuses=reuses)


def question_groups(samples: Sequence[Sample]) -> dict[str, list[str]]:
    """Group samples by kind, made-up words and size of the sheet."""
    kinds = [sample.questions[0].kind for sample in samples]
    return {"by_kind": kinds, "by_words": list(map(words_of, samples)), "by_people": list(map(size_of, samples))}


def draw_branch(
    writer: SampleWriter, draw: Callable[[QuestionWriter], Branch], *, max_people: int = 40, is_raw: bool = False
) -> Sample:
    """Draw a sheet, as a chat's first turn or as raw text, with one branch."""
    people, sheet, prefix = writer.draw_sheet(max_people)
    branch = draw(writer.questions_about(people, sheet))
    return sample_of(writer.encode(sheet) if is_raw else prefix, [branch], len(people), sheet)


def names(tokenizer: Tokenizer, name: str, number: int, reuses: Sequence[Reuse]) -> Suite:
    """Return questions whose answers hold a made-up name, city or animal, by the letters of the longest one."""
    writer = SampleWriter(tokenizer, 1, Split.EVALUATION)
    mixture = MixtureWriter(writer)
    samples: list[Sample] = []
    letters: list[str] = []
    words: list[list[list[int]]] = []
    while len(samples) < number:
        sample = draw_branch(writer, lambda asked: mixture.chat(asked, "sentence"))
        answer = {fragment.strip() for fragment in sample.questions[0].answer}
        if made_up := [word for word in sample.questions[0].words if word in answer and word not in LISTED]:
            samples.append(sample)
            words.append([writer.encode([" " + word]) for word in made_up])
            length = max(map(len, made_up))
            letters.append("10-12" if length > 9 else "7-9" if length > 6 else "3-6")
    groups = {"by_letters": letters, **question_groups(samples)}
    return Suite(name, samples, groups, reuses=reuses, words=words)


def long_canvas(tokenizer: Tokenizer, number: int, canvas: int, name: str) -> Suite:
    """Return first questions with a canvas of this length, or to the context's end where that is nearer."""
    samples = list(evaluation_samples(tokenizer, number, seed=canvas))
    groups = {"by_people": list(map(size_of, samples))}
    return Suite(name, samples, groups, Schedule(canvas=canvas), batch_size=32)


def turns(tokenizer: Tokenizer, name: str, number: int, reuses: Sequence[Reuse], *, is_inner: bool) -> Suite:
    """Return turns of conversations, cut behind the sheet, or behind a random earlier turn."""
    rng, samples, groups = Random(number), list[Sample](), list[str]()
    for conversation in evaluation_conversations(tokenizer, number, NUM_TURNS, seed=2):
        for index, turn in enumerate(conversation):
            if index or not is_inner:
                samples.append(_cut(turn, rng.choice(turn.boundaries[1:]) if is_inner else turn.boundaries[0]))
                groups.append(f"turn {index + 1}")
    return Suite(name, samples, {"by_turn": groups}, reuses=reuses)


def _cut(turn: ConversationSample, cut: int) -> Sample:
    return Sample(turn.token_ids[:cut], [turn.token_ids[cut:]], [turn.answer], [], 0, [])


def words(tokenizer: Tokenizer, number: int, form: Form, reuses: Sequence[Reuse], name: str) -> Suite:
    """Return questions that one word answers, `number` of each group, asked in one form."""
    writer = SampleWriter(tokenizer, 3, Split.EVALUATION)
    mixture, rng = MixtureWriter(writer), Random(number)
    drawn: list[tuple[str, Sample]] = []
    for group, kinds in _WORDS.items():
        while sum(one == group for one, _ in drawn) < number:
            kind = rng.choice(kinds)
            with suppress(LookupError):  # another sheet may hold such a question
                drawn.append((group, draw_branch(writer, partial(mixture.chat, form=form, kind=kind))))
    groups = {"by_word": [group for group, _ in drawn], "by_kind": [s.questions[0].kind for _, s in drawn]}
    return Suite(name, [sample for _, sample in drawn], groups, reuses=reuses)


def raw(
    tokenizer: Tokenizer,
    name: str,
    number: int,
    draw: Callable[[MixtureWriter, QuestionWriter], Branch],
    reuses: Sequence[Reuse],
) -> Suite:
    """Return prompts without a chat template, in which `draw` follows the sheet."""
    writer = SampleWriter(tokenizer, 4, Split.EVALUATION)
    mixture = MixtureWriter(writer)
    samples = [draw_branch(writer, lambda asked: draw(mixture, asked), is_raw=True) for _ in range(number)]
    return Suite(name, samples, {"by_kind": [sample.questions[0].kind for sample in samples]}, reuses=reuses)
