"""The training mixture holds right answers in every form, packed masks equal slow ones, and a training can go on."""

from __future__ import annotations

from pathlib import Path
from random import Random

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer

from workers.models.factbook import answers
from workers.models.factbook.branches import TILE, PackedBatch, Shape, TiledMask, dense_attention, layout, pack
from workers.models.factbook.decode import DEFAULT_SCHEDULE, Reuse, Schedule, decode
from workers.models.factbook.feed import SHAPES, BatchWriter, Blend, batch_rows, canvas_lens
from workers.models.factbook.fragments import join
from workers.models.factbook.mixture import Form, MixtureWriter
from workers.models.factbook.people import (
    MAX_LETTERS,
    MAX_PEOPLE,
    Person,
    Split,
    draw_people,
    uncommon_word,
    word_split,
)
from workers.models.factbook.samples import CANVAS, Sample, SampleWriter
from workers.models.factbook.statements import judge, short_answer
from workers.models.factbook.suites import suites
from workers.models.factbook.tokenizer import build_tokenizer
from workers.models.factbook.train import Phase, Training
from workers.models.factbook.trainer import Recipe, Trainer, corrupt
from workers.models.layers import Transformer
from workers.models.llada import LLADA

PEOPLE = (
    Person("Mira", 34, "Oslo", "fox"),
    Person("Tobin", 29, "Bern", "owl"),
    Person("Anna", 34, "Oslo", None),
    Person("Leo", None, None, "fox"),
)


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return build_tokenizer()


def mixture_of(tokenizer: Tokenizer, seed: int, split: Split = Split.TRAIN) -> MixtureWriter:
    return MixtureWriter(SampleWriter(tokenizer, seed, split))


@pytest.mark.parametrize("split", list(Split))
def test_uncommon_words_stay_in_their_split_and_reach_twelve_letters(split: Split) -> None:
    rng = Random(3)
    words = [uncommon_word(rng, split) for _ in range(500)]
    assert {word_split(word) for word in words} == {split}
    assert max(map(len, words)) == MAX_LETTERS == 12
    assert min(map(len, words)) >= 3


@pytest.mark.parametrize(
    ("name", "claim", "text", "word"),
    [
        ("Mira", ("city", "Oslo"), "Yes, Mira lives in Oslo.", "yes"),
        ("Mira", ("city", "Bern"), "No, Mira lives in Oslo.", "no"),
        ("Tobin", ("age", "29"), "Yes, Tobin is 29 years old.", "yes"),
        ("Tobin", ("animal", "fox"), "No, Tobin has an owl.", "no"),
        ("Tobin", ("younger", "Mira"), "Yes, Tobin (29) is younger than Mira (34).", "yes"),
        ("Tobin", ("older", "Mira"), "No, Tobin (29) is younger than Mira (34).", "no"),
        ("Mira", ("older", "Anna"), "No, Mira and Anna are both 34.", "no"),
        ("Mira", ("older", "Leo"), "The sheet does not say.", "unknown"),
        ("Leo", ("city", "Oslo"), "The sheet does not say.", "unknown"),
        ("Stranger", ("age", "7"), "The sheet does not say.", "unknown"),
    ],
)
def test_a_statement_is_confirmed_or_corrected(name: str, claim: tuple[str, str], text: str, word: str) -> None:
    answer = judge(PEOPLE, name, claim)
    assert join(answer) == text
    kind = "unanswerable" if answer is answers.UNKNOWN else "statement"
    assert short_answer(kind, answer) == word


@pytest.mark.parametrize(
    ("kind", "answer", "word"),
    [
        ("age", answers.age_of(PEOPLE, "Mira"), "34"),
        ("city", answers.city_of(PEOPLE, "Mira"), "Oslo"),
        ("animal", answers.animal_of(PEOPLE, "Mira"), "fox"),
        ("who_age", answers.people_aged(PEOPLE, 29), "Tobin"),
        ("who_age", answers.people_aged(PEOPLE, 34), None),
        ("who_city", answers.residents_of(PEOPLE, "Bern"), "Tobin"),
        ("who_city", answers.residents_of(PEOPLE, "Oslo"), None),
        ("who_animal", answers.owners_of(PEOPLE, "owl"), "Tobin"),
        ("who_animal", answers.owners_of(PEOPLE, "fox"), None),
        ("comparison", answers.compare(PEOPLE, "Mira", "Tobin", "younger"), "Tobin"),
        ("comparison", answers.compare(PEOPLE, "Mira", "Anna", "younger"), None),
        ("extreme", answers.extreme(PEOPLE, "youngest"), "Tobin"),
        ("extreme", answers.extreme(PEOPLE, "oldest"), None),
        ("sum", answers.total_age(PEOPLE, "Mira", "Tobin"), "63"),
        ("count", answers.count_in(PEOPLE, "Oslo"), "2"),
        ("list", answers.residents_of(PEOPLE, "Bern"), None),
    ],
)
def test_a_short_answer_is_the_word_that_answers(kind: str, answer: list[str], word: str | None) -> None:
    assert short_answer(kind, answer) == word


@pytest.mark.parametrize("form", ["sentence", "one word", "slot"])
@pytest.mark.parametrize("split", list(Split))
def test_a_chat_branch_answers_its_own_question_in_its_form(tokenizer: Tokenizer, form: Form, split: Split) -> None:
    writer = SampleWriter(tokenizer, 5, split)
    mixture = MixtureWriter(writer)
    for _ in range(40):
        people, sheet, _ = writer.draw_sheet(12)
        branch = mixture.chat(writer.questions_about(people, sheet), form)
        text, suffix = tokenizer.decode(branch.answer), tokenizer.decode(branch.suffix, skip_special_tokens=False)
        assert join(branch.question.text).rstrip() in suffix
        word = short_answer(branch.question.kind, branch.question.answer)
        assert text.lower() == (join(branch.question.answer) if form == "sentence" else str(word)).lower()
        assert suffix.endswith("Answer:") == (form == "slot")
        assert branch.canvas is None or branch.canvas >= len(branch.answer)


def test_a_hole_with_its_surroundings_is_a_right_answer(tokenizer: Tokenizer) -> None:
    writer = SampleWriter(tokenizer, 6, Split.TRAIN)
    mixture = MixtureWriter(writer)
    for _ in range(60):
        people, sheet, _ = writer.draw_sheet(12)
        branch = mixture.hole(writer.questions_about(people, sheet))
        filled = tokenizer.decode(branch.suffix + branch.answer + branch.tail)
        assert filled.endswith(join(branch.question.answer))
        assert tokenizer.encode(filled).ids == branch.suffix + branch.answer + branch.tail
        assert branch.answer


def test_raw_prompts_encode_as_the_tokenizer_encodes_their_text(tokenizer: Tokenizer) -> None:
    mixture = mixture_of(tokenizer, 8)
    raw = [s for s in (mixture.draw(2, 64, 640, 10) for _ in range(60)) if "system" not in tokenizer.decode(s.prefix)]
    assert raw
    for sample in raw:
        assert len(sample.suffixes) == 2
        ids = sample.prefix + sample.suffixes[0] + sample.answers[0] + sample.tails[0]
        text = tokenizer.decode(ids, skip_special_tokens=False)
        assert tokenizer.encode(text).ids == ids or "\n\n\n" in text  # two line breaks may meet


@pytest.mark.parametrize("family", list(SHAPES))
def test_samples_of_every_family_fit_their_shape(tokenizer: Tokenizer, family: str) -> None:
    blend = {"questions": Blend(0, 0), "turns": Blend(1, 0), "canvases": Blend(0, 1)}[family]
    batch = BatchWriter(tokenizer, 2, tokens=1).draw(blend)
    shape = next(shape for shape in SHAPES[family] if shape.prefix_slots == batch.prefix_slots)
    assert batch.ids.shape == (batch_rows(shape, 1), shape.num_slots)
    used = batch.suffix_len.long() + batch.canvas_len + batch.tail_len
    assert used.max() <= shape.branch_slots
    assert (batch.prefix_len.long().unsqueeze(1) + used).max() <= 2048
    present = batch.canvas_len > 0
    assert (batch.answer_len <= batch.canvas_len)[present].all()


def test_long_canvases_reach_the_contexts_end() -> None:
    lens = canvas_lens(np.random.default_rng(0), "canvases", (400, 1))
    assert lens.min() < 4 * CANVAS
    assert (lens >= 2048).mean() > 0.15


def visible_by_hand(batch: PackedBatch, *, isolated: bool) -> torch.Tensor:
    """Return [B, S, S], true where a used slot may attend to another, by one loop over all pairs."""
    rows, num_slots = batch.ids.shape
    visible = torch.zeros(rows, num_slots, num_slots, dtype=torch.bool)
    for row in range(rows):
        owner = dict.fromkeys(range(int(batch.prefix_len[row])), 0)
        for branch in range(batch.canvas_len.shape[1]):
            used = sum(int(part[row, branch]) for part in (batch.suffix_len, batch.canvas_len, batch.tail_len))
            start = batch.prefix_slots + branch * batch.branch_slots
            owner |= dict.fromkeys(range(start, start + used), branch + 1)
        for query, asking in owner.items():
            for key, asked in owner.items():
                sees = asked in (0, asking) or (asking == 0 and not isolated)
                visible[row, query, key] = sees
    return visible


@pytest.mark.parametrize("isolated", [False, True])
@pytest.mark.parametrize("shape", [Shape(128, 64, 2), Shape(128, 256, 2)])
def test_masks_with_cuts_inside_a_conversation_equal_a_slow_one(
    tokenizer: Tokenizer, shape: Shape, *, isolated: bool
) -> None:
    mixture = mixture_of(tokenizer, 11)
    samples: list[Sample] = []
    while len(samples) < 2:
        sample = mixture.draw(2, shape.branch_slots, shape.prefix_slots, 4)
        samples += [sample] if len(sample.prefix) <= shape.prefix_slots else []
    lens = np.full((2, 2), shape.branch_slots)
    batch = pack(samples, shape.prefix_slots, shape.num_branches, 0, lens, shape.branch_slots)
    _, owners, _ = layout(batch.to("cpu"))
    expected, used = visible_by_hand(batch, isolated=isolated), owners >= 0
    tiled = TiledMask(owners, shape.prefix_slots, isolated=isolated, branch_slots=shape.branch_slots).blocks
    slot = torch.arange(shape.num_slots)
    inside = tiled.mask_mod(
        torch.arange(2)[:, None, None], torch.tensor(0), slot[None, :, None], slot[None, None, :]
    )  # fmt: skip
    by_tile = tiled.to_dense()[0, 0].bool().repeat_interleave(TILE, 0).repeat_interleave(TILE, 1)
    assert torch.equal((inside & by_tile)[used], expected[used])
    values = torch.eye(shape.num_slots).expand(2, 1, -1, -1).transpose(1, 2)
    zeros = torch.zeros(2, shape.num_slots, 1, 8)
    attended = dense_attention(owners, shape.prefix_slots, isolated=isolated)(zeros, zeros, values)[:, :, 0]
    assert torch.equal((attended > 0)[used], expected[used])


def test_only_canvases_are_masked_and_counted(tokenizer: Tokenizer) -> None:
    batch = BatchWriter(tokenizer, 4, tokens=1).draw(Blend(1, 0)).to("cpu")
    _, _, canvas = layout(batch, batch.branch_slots)
    ids, targets, weights = corrupt(batch, canvas, Recipe(), mask_id=1)
    masked = (ids != batch.ids).nonzero().tolist()
    in_canvas = {
        (row, batch.prefix_slots + branch * batch.branch_slots + int(batch.suffix_len[row, branch]) + offset)
        for row, branch in np.ndindex(*batch.canvas_len.shape)
        for offset in range(int(batch.canvas_len[row, branch]))
    }
    assert {tuple(slot) for slot in masked} <= in_canvas
    assert int((weights > 0).sum()) == len(masked)
    assert (targets[weights > 0] != 1).all()
    assert weights.sum(-1).max() <= batch.answer_len.max() + 1 + Recipe.max_fill


class Copier(Transformer):
    """Predicts at each canvas slot one token of `answer`, then EOS, by its position."""

    def __init__(self, config: object, start: int, answer: list[int]) -> None:
        super().__init__(config)  # type: ignore[arg-type]
        self.start, self.answer = start, answer

    def logits(self, x: torch.Tensor) -> torch.Tensor:
        wanted = [*self.answer, *[self.config.eos_token_id] * (x.shape[-2] - len(self.answer))]
        ids = torch.tensor(wanted[: x.shape[-2]])
        return torch.nn.functional.one_hot(ids, self.config.vocab_size).float().expand(*x.shape[:-1], -1) * 9


def tiny_config() -> object:
    raw = {"d_model": 16, "n_layers": 2, "n_heads": 2, "mlp_hidden_size": 16, "vocab_size": 1920}
    return LLADA.parse_config({**raw, "mask_token_id": 1, "eos_token_id": 0, "max_sequence_length": 2048})


@pytest.mark.parametrize("schedule", [DEFAULT_SCHEDULE, Schedule(canvas=100, block=16), Schedule(canvas=9)])
def test_decoding_in_blocks_keeps_tails_and_stops_after_eos(schedule: Schedule) -> None:
    answer = list(range(30, 50))
    sample = Sample([5, 6], [[7, 8]], [[]], [], 4, [], [[9]], [None])
    model = Copier(tiny_config(), 4, answer)
    tokens = decode(model, [sample], 1, Reuse(), schedule=schedule)[0].tolist()
    assert tokens[: len(answer)] == answer[: schedule.canvas]
    assert len(tokens) == schedule.canvas
    assert set(tokens[len(answer) :]) <= {0, 1}


def test_every_suite_draws_held_out_samples_with_groups(tokenizer: Tokenizer) -> None:
    drawn = list(suites(tokenizer, 12, 4))
    assert len({suite.name for suite in drawn}) == len(drawn)
    for suite in drawn:
        assert suite.samples
        for groups in suite.groups.values():
            assert len(groups) == len(suite.samples)


def tiny_training(out: Path, tokenizer: Tokenizer) -> Training:
    torch.manual_seed(0)
    phases = (
        Phase("trunk", 0.5, isolated=False, blend=Blend(0, 0)),
        Phase("plain", 0.2, isolated=False, blend=Blend(0, 0), cool_from=0.0, checkpoint="factbook-plain"),
        Phase("isolation", 0.3, isolated=True, blend=Blend(0, 0), cool_from=0.4, checkpoint="factbook"),
    )
    return Training(Trainer(Transformer(tiny_config()), Recipe(warmup_steps=2), "cpu"), tokenizer, out, phases)  # type: ignore[arg-type]


def test_two_runs_train_as_many_steps_as_one_and_go_on(
    tokenizer: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("workers.models.factbook.train.save_checkpoint", lambda *_args: None)
    mixture = mixture_of(tokenizer, 1)
    sample = mixture.draw(2, 64, 128, 4)
    batch = pack([sample], 256, 2, 0, np.full((1, 2), CANVAS))
    blends: list[Blend] = []
    whole = tiny_training(tmp_path / "whole", tokenizer)
    (tmp_path / "whole").mkdir()
    whole.run(lambda: batch, blends.append, 20, 1000, counts_steps=True)
    assert whole.phase is None
    assert whole.trainer.num_steps == 20
    assert len(blends) == 3

    out = tmp_path / "parts"
    out.mkdir()
    num_drawn = 0

    def draw_seven() -> PackedBatch:
        nonlocal num_drawn
        num_drawn += 1
        if num_drawn == 7:
            monkeypatch.setattr("workers.models.factbook.train.time.monotonic", lambda: 1e9)
        return batch

    first = tiny_training(out, tokenizer)
    first.run(draw_seven, blends.append, 20, 1000, counts_steps=True)
    assert (first.trainer.num_steps, first.progress.phase, first.progress.spent) == (7, 0, 7)
    monkeypatch.undo()
    monkeypatch.setattr("workers.models.factbook.train.save_checkpoint", lambda *_args: None)

    second = tiny_training(out, tokenizer)
    assert second.trainer.num_steps == 7
    for name, weight in first.trainer.model.state_dict().items():
        assert torch.equal(weight, second.trainer.model.state_dict()[name])
    second.run(lambda: batch, blends.append, 20, 1000, counts_steps=True)
    assert second.phase is None
    assert second.trainer.num_steps == 20
    assert {path.name for path in out.iterdir()} == {"state.pt", "trunk.pt", "train.jsonl"}
    third = tiny_training(out, tokenizer)
    assert third.phase is None


def test_sheets_with_the_most_people_still_fit(tokenizer: Tokenizer) -> None:
    writer = SampleWriter(tokenizer, 9, Split.TRAIN)
    assert max(len(writer.draw_sheet(MAX_PEOPLE)[0]) for _ in range(40)) > 30
    assert len(draw_people(Random(1), MAX_PEOPLE, Split.TRAIN)) == MAX_PEOPLE
