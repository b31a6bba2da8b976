"""A sample is one sheet as a chat prefix, with several questions and answers after it."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from random import Random

from tokenizers import Tokenizer

from workers.models.factbook.fragments import FragmentEncoder, Fragments
from workers.models.factbook.people import MAX_PEOPLE, MIN_PEOPLE, Person, Split, draw_people
from workers.models.factbook.questions import Question, QuestionWriter
from workers.models.factbook.sheets import mention_order, write_sheet
from workers.models.factbook.tokenizer import (
    BOS,
    EOS,
    EOT,
    HEADER_END,
    HEADER_START,
    MASK,
    SPECIAL_TOKENS,
    special_id,
)

CANVAS = 32
MAX_PREFIX = 640
MAX_SUFFIX = 32
MAX_SHEET = 600
_EARLIER_TURNS_FRACTION = 0.25


@dataclass(frozen=True)
class Sample:
    """A sample holds one sheet's chat prefix and its branches as token ids.

    A suffix is the last user turn with the assistant's header; an answer is the part of the canvas before EOS.
    """

    prefix: list[int]
    suffixes: list[list[int]]
    answers: list[list[int]]
    questions: list[Question]
    num_people: int
    sheet: Fragments
    tails: list[list[int]] = field(default_factory=list)
    """Given tokens right after each branch's canvas; without any, no branch has a tail."""
    canvases: list[int | None] = field(default_factory=list)
    """Lengths of the branches' canvases, where these are fixed."""


@dataclass(frozen=True)
class ConversationSample:
    """A turn of a conversation is a prompt that ends with the assistant's header."""

    token_ids: list[int]
    boundaries: list[int]
    """Lengths of the prompt before each of its user turns; the first is that of the sheet alone."""
    answer: list[int]


class SampleWriter:
    """Draws samples from a seed, all of one split."""

    def __init__(self, tokenizer: Tokenizer, seed: int, split: Split) -> None:
        self.rng = Random(f"{split.value} {seed}")
        self._split = split
        self._encoder = FragmentEncoder(tokenizer)
        self.encode = self._encoder.encode
        special = {token: special_id(tokenizer, token) for token in SPECIAL_TOKENS}
        self.eos, self.mask = special[EOS], special[MASK]
        self.bos, self._end = [special[BOS]], [special[EOT]]
        line_break = self._encoder.encode(["\n\n"])
        self.headers = {
            role: [special[HEADER_START], *self._encoder.encode([" " + role]), special[HEADER_END], *line_break]
            for role in ("system", "user", "assistant")
        }

    def draw(self, num_branches: int, max_people: int = MAX_PEOPLE, *, earlier_turns: bool = True) -> Sample:
        """Draw a sheet of MIN_PEOPLE to `max_people` people that fits, with `num_branches` questions about it."""
        people, sheet, prefix = self.draw_sheet(max_people)
        writer = self.questions_about(people, sheet)
        if earlier_turns and self.rng.random() < _EARLIER_TURNS_FRACTION:
            prefix += self.draw_turns(writer, self.rng.randint(1, 3), MAX_PREFIX - len(prefix))
        questions: list[Question] = []
        suffixes: list[list[int]] = []
        answers: list[list[int]] = []
        while len(questions) < num_branches:
            question = writer.ask()
            suffix = self.turn("user", self._encoder.encode(question.text)) + self.headers["assistant"]
            answer = self._encoder.encode(question.answer)
            if len(suffix) <= MAX_SUFFIX and len(answer) < CANVAS:
                questions.append(question)
                suffixes.append(suffix)
                answers.append(answer)
        return Sample(prefix, suffixes, answers, questions, len(people), sheet)

    def draw_conversation(self, num_turns: int, max_people: int = MAX_PEOPLE) -> list[ConversationSample]:
        """Draw a sheet and `num_turns` questions about it; each follows the earlier ones and their right answers."""
        people, sheet, token_ids = self.draw_sheet(max_people)
        writer = self.questions_about(people, sheet)
        turns: list[ConversationSample] = []
        boundaries: list[int] = []
        while len(turns) < num_turns:
            question = writer.ask()
            user_turn = self.turn("user", self._encoder.encode(question.text))
            answer = self._encoder.encode(question.answer)
            if len(answer) < CANVAS:
                boundaries.append(len(token_ids))
                turns.append(
                    ConversationSample(token_ids + user_turn + self.headers["assistant"], list(boundaries), answer)
                )
                token_ids = token_ids + user_turn + self.turn("assistant", answer)
        return turns

    def questions_about(self, people: Sequence[Person], sheet: Fragments) -> QuestionWriter:
        """Return a writer of questions about the people on a sheet."""
        return QuestionWriter(self.rng, mention_order(sheet, people), self._split)

    def draw_sheet(self, max_people: int) -> tuple[Sequence[Person], Fragments, list[int]]:
        """Draw people whose sheet fits, and return them with the sheet and its chat prefix."""
        while True:
            people = draw_people(self.rng, self.rng.randint(MIN_PEOPLE, max_people), self._split)
            sheet = write_sheet(self.rng, people)
            sheet_ids = self._encoder.encode(sheet)
            if len(sheet_ids) <= MAX_SHEET:
                return people, sheet, self.bos + self.turn("system", sheet_ids)

    def turn(self, role: str, ids: list[int]) -> list[int]:
        """Return the token ids of one turn, as the chat template writes it."""
        return self.headers[role] + ids + self._end

    def draw_turns(self, writer: QuestionWriter, num_turns: int, room: int) -> list[int]:
        """Return up to `num_turns` questions with their answers as turns, as many as fit into `room` tokens."""
        ids: list[int] = []
        for _ in range(num_turns):
            question = writer.ask()
            user_turn = self.turn("user", self._encoder.encode(question.text))
            assistant_turn = self.turn("assistant", self._encoder.encode(question.answer))
            if len(ids) + len(user_turn) + len(assistant_turn) > room:
                break
            ids += user_turn + assistant_turn
        return ids


def evaluation_samples(tokenizer: Tokenizer, num_samples: int, seed: int = 0) -> Iterator[Sample]:
    """Draw held-out sheets with one question each: the benchmark that the model card reports."""
    writer = SampleWriter(tokenizer, seed, Split.EVALUATION)
    for _ in range(num_samples):
        yield writer.draw(1, earlier_turns=False)


def evaluation_conversations(
    tokenizer: Tokenizer, num_conversations: int, num_turns: int, seed: int = 0
) -> Iterator[list[ConversationSample]]:
    """Draw conversations of `num_turns` turns about held-out sheets."""
    writer = SampleWriter(tokenizer, seed, Split.EVALUATION)
    for _ in range(num_conversations):
        yield writer.draw_conversation(num_turns)
