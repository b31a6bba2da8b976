"""The training mixture draws sheets as chats and as raw text, asked in every form of answer."""

from dataclasses import dataclass, field
from typing import Literal

from workers.models.factbook.fragments import Fragments
from workers.models.factbook.questions import Question, QuestionWriter
from workers.models.factbook.samples import CANVAS, Sample, SampleWriter
from workers.models.factbook.statements import ANSWER_LABEL, ONE_WORD_REQUESTS, QUESTION_LABEL, short_answer

Form = Literal["sentence", "one word", "slot"]
"""A sentence answers a question by itself, one word answers a request for it, a slot follows a given label."""

MAX_EARLIER_TURNS = 4
_MAX_ATTEMPTS = 100
_RAW_FRACTION = 0.12
_SLOT_FRACTION, _ONE_WORD_FRACTION = 0.16, 0.14
_END_FRACTION, _HOLE_FRACTION = 0.1, 0.3  # of raw branches
_SEPARATORS: tuple[Fragments, ...] = ([], ["\n"], ["\n\n"])


@dataclass(frozen=True)
class Branch:
    """A branch is a suffix, the canvas that its answer begins, and given tokens behind the canvas."""

    suffix: list[int]
    answer: list[int]
    question: Question
    tail: list[int] = field(default_factory=list)
    canvas: int | None = None
    """The canvas's length where it is fixed."""

    @property
    def room(self) -> int:
        """Return how many slots the branch needs at least."""
        return len(self.suffix) + (self.canvas or len(self.answer) + 1) + len(self.tail)


class MixtureWriter:
    """Draws the samples of one split in every form that the model is trained for."""

    def __init__(self, writer: SampleWriter) -> None:
        self._writer, self._rng, self._encode = writer, writer.rng, writer.encode

    def draw(self, num_branches: int, branch_slots: int, max_prefix: int, max_people: int) -> Sample:
        """Draw a sheet with branches that fit; branches of a conversation's length have earlier turns of their own."""
        people, sheet, prefix = self._writer.draw_sheet(max_people)
        questions = self._writer.questions_about(people, sheet)
        branches: list[Branch] = []
        if self._rng.random() < _RAW_FRACTION:
            prefix = self._writer.bos * (self._rng.random() < 0.15) + self._encode(sheet)
            while len(branches) < num_branches:
                branch = self.raw(questions)
                branches += [branch] if branch.room <= branch_slots else []
        else:
            num_earlier = self._rng.randint(0, MAX_EARLIER_TURNS - 1) if branch_slots > 2 * CANVAS else 0
            num_before = self._rng.choice((0, 0, 0, 1, 2, 3))
            prefix += self._writer.draw_turns(questions, num_before, max_prefix - len(prefix))
            while len(branches) < num_branches:
                branch = self.chat(questions, self.draw_form(), num_earlier)
                branches += [branch] if branch.room <= branch_slots else []
        return sample_of(prefix, branches, len(people), sheet)

    def draw_form(self) -> Form:
        """Draw the form of a chat's answer."""
        draw = self._rng.random()
        if draw < _SLOT_FRACTION:
            return "slot"
        return "one word" if draw < _SLOT_FRACTION + _ONE_WORD_FRACTION else "sentence"

    def chat(self, questions: QuestionWriter, form: Form, num_earlier: int = 0, kind: str | None = None) -> Branch:
        """Draw the last user turn of a chat, of one kind if it is given, behind `num_earlier` turns.

        Raises LookupError if the sheet seems to hold no question of that kind.
        """
        before: list[int] = []
        for _ in range(num_earlier):
            earlier: Form = "one word" if self._rng.random() < _ONE_WORD_FRACTION else "sentence"
            user_turn, answer, _ = self._exchange(questions, earlier)
            before += user_turn + self._writer.turn("assistant", answer)
        user_turn, answer, question = self._exchange(questions, form, kind)
        suffix = before + user_turn + self._writer.headers["assistant"]
        if form != "slot":
            return Branch(suffix, answer, question)
        return self._slot(suffix + self._encode(ANSWER_LABEL), answer, question)

    def _exchange(
        self, questions: QuestionWriter, form: Form, kind: str | None = None
    ) -> tuple[list[int], list[int], Question]:
        """Return a user turn, the ids of its answer in this form, and the question.

        Raises LookupError if the sheet seems to hold no such question.
        """
        for _ in range(_MAX_ATTEMPTS):
            question = questions.ask() if kind is None else questions.ask_kind(kind)
            word = short_answer(question.kind, question.answer)
            if form == "sentence":
                return self._writer.turn("user", self._encode(question.text)), self._encode(question.answer), question
            if word is None or (kind is not None and question.kind != kind):
                continue
            text = list(question.text)
            if form == "one word" or self._rng.random() < 0.5:
                text += [self._rng.choice(ONE_WORD_REQUESTS)]
            if form == "one word" and question.kind in ("statement", "unanswerable"):
                word = word.capitalize()
            return self._writer.turn("user", self._encode(text)), self._encode([" " + word]), question
        raise LookupError(f"no question of kind {kind} with an answer of one word was drawn about this sheet")

    def _slot(self, suffix: list[int], answer: list[int], question: Question) -> Branch:
        """Leave exactly the answer's tokens open, or a few more, or a usual canvas; a full stop may be given."""
        draw = self._rng.random()
        if draw < 0.25:
            return Branch(suffix, answer, question)
        canvas = len(answer) + (0 if draw < 0.7 else self._rng.randint(1, 8))
        tail = self._encode(["."]) if self._rng.random() < 0.25 else []
        return Branch(suffix, answer, question, tail, canvas)

    def raw(self, questions: QuestionWriter) -> Branch:
        """Draw what follows a sheet in a prompt without a chat template."""
        draw = self._rng.random()
        if draw < _END_FRACTION:
            return Branch([], [], Question("end of text", [], [], ()))
        return self.hole(questions) if draw < _END_FRACTION + _HOLE_FRACTION else self.raw_question(questions)

    def raw_question(self, questions: QuestionWriter) -> Branch:
        """Draw a question in raw text, with the label of its answer."""
        question = questions.ask()
        return Branch(self._encode(self._labelled(question)), self._encode(question.answer), question)

    def hole(self, questions: QuestionWriter) -> Branch:
        """Draw a hole in an answer that its question or its own start determines, as a completion's suffix makes it."""
        is_stated = self._rng.random() < 0.4
        kind = self._rng.choice(("age", "city", "animal"))
        question = questions.ask_kind(kind) if is_stated else questions.ask()
        answer = question.answer
        if is_stated := is_stated and question.kind == kind:  # the value stands after a name and a verb
            start, end = 2, self._rng.randint(len(answer) - 1, len(answer))
        else:
            start = self._rng.randrange(len(answer))
            end = self._rng.randint(start + 1, len(answer))
        suffix = ([] if is_stated else self._labelled(question)) + answer[:start]
        hole, tail = self._encode(answer[start:end]), self._encode(answer[end:])
        canvas = len(hole) + self._rng.choice((0, 0, 1, 2, 4, 8, 16))
        return Branch(self._encode(suffix), hole, question, tail, canvas)

    def _labelled(self, question: Question) -> Fragments:
        separator = self._rng.choice(_SEPARATORS)
        return [*separator, *QUESTION_LABEL, *question.text, *separator[:1], *ANSWER_LABEL]


def sample_of(prefix: list[int], branches: list[Branch], num_people: int, sheet: Fragments) -> Sample:
    """Return the sample of branches behind one prefix."""
    return Sample(
        prefix,
        [branch.suffix for branch in branches],
        [branch.answer for branch in branches],
        [branch.question for branch in branches],
        num_people,
        sheet,
        [branch.tail for branch in branches],
        [branch.canvas for branch in branches],
    )
