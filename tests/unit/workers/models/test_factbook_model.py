"""The shipped checkpoints answer, their samples equal the chat template, and packed branches stay independent."""

from collections.abc import Sequence
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer
from transformers import AutoTokenizer, PreTrainedTokenizerFast

import workers.models.factbook as package
from workers.models.factbook.branches import dense_attention, layout, pack
from workers.models.factbook.checkpoint import load_checkpoint
from workers.models.factbook.decode import Reuse, decode, exact_matches
from workers.models.factbook.muon import orthogonalize
from workers.models.factbook.people import Split
from workers.models.factbook.samples import Sample, SampleWriter
from workers.models.layers import Transformer

CHECKPOINTS = Path(package.__file__).parent / "checkpoints"
NAMES = ("factbook", "factbook-plain")
SHEET = (
    "Mira is 34, lives in Oslo and has a fox. Tobin is 29, lives in Bern and has an owl. "
    "Anna lives in Oslo, is 61 and has a cat. Leo lives in Rome."
)


@pytest.fixture(scope="module", params=NAMES)
def loaded(request: pytest.FixtureRequest) -> tuple[Transformer, Tokenizer, str]:
    model, tokenizer = load_checkpoint(CHECKPOINTS / request.param, "cpu", torch.float32)
    return model, tokenizer, request.param


@cache
def _chat_tokenizer(name: str) -> PreTrainedTokenizerFast:
    return AutoTokenizer.from_pretrained(CHECKPOINTS / name)


def _prompt_ids(name: str, turns: Sequence[tuple[str, str]], *, generate: bool) -> list[int]:
    tokenizer = _chat_tokenizer(name)
    messages = [{"role": role, "content": text} for role, text in turns]
    ids = tokenizer.apply_chat_template(messages, add_generation_prompt=generate, tokenize=True, return_dict=True)
    return list(ids["input_ids"])


def _ask(loaded: tuple[Transformer, Tokenizer, str], question: str, reuse: Reuse) -> str:
    model, tokenizer, name = loaded
    prefix = _prompt_ids(name, [("system", SHEET)], generate=False)
    prompt = _prompt_ids(name, [("system", SHEET), ("user", question)], generate=True)
    assert prompt[: len(prefix)] == prefix
    sample = Sample(prefix, [prompt[len(prefix) :]], [[]], [], 4, [])
    answer = decode(model, [sample], model.config.mask_token_id, reuse)[0].tolist()
    return tokenizer.decode(answer, skip_special_tokens=True)


def test_both_checkpoints_are_small_enough() -> None:
    assert sum(file.stat().st_size for name in NAMES for file in (CHECKPOINTS / name).iterdir()) <= 40_000_000


@pytest.mark.filterwarnings("ignore")
def test_shipped_models_answer_right(loaded: tuple[Transformer, Tokenizer, str]) -> None:
    answers = {
        "Who is older, Mira or Tobin?": "Mira (34) is older than Tobin (29).",
        "Where does Tobin live": "Tobin lives in Bern.",
        "Who lives in Oslo?": "Mira and Anna live in Oslo.",
        "How many people live in Oslo?": "2 people live in Oslo.",
        "How old is Leo?": "The sheet does not say.",
    }
    reuses = [Reuse(), Reuse(depth=6, interval=16)] if loaded[2] == "factbook" else [Reuse()]
    for reuse in reuses:
        assert {question: _ask(loaded, question, reuse) for question in answers} == answers


def test_only_the_plain_model_breaks_under_reuse(loaded: tuple[Transformer, Tokenizer, str]) -> None:
    model, tokenizer, name = loaded
    writer = SampleWriter(tokenizer, 7, Split.EVALUATION)
    samples = [writer.draw(1, max_people=6, earlier_turns=False) for _ in range(8)]
    mask, eos = model.config.mask_token_id, model.config.eos_token_id
    matches = exact_matches(model, samples, mask, eos, Reuse(model.config.num_layers // 2, interval=16))
    assert sum(matches) <= 4 if name == "factbook-plain" else sum(matches) >= 7


@pytest.mark.filterwarnings("ignore")
def test_samples_equal_what_the_chat_template_writes(loaded: tuple[Transformer, Tokenizer, str]) -> None:
    _, tokenizer, name = loaded
    writer = SampleWriter(tokenizer, 0, Split.TRAIN)
    sample = writer.draw(1, earlier_turns=False)
    sheet = tokenizer.decode(sample.prefix, skip_special_tokens=True).removeprefix("system\n\n")
    suffix = tokenizer.decode(sample.suffixes[0], skip_special_tokens=True)
    question = suffix.removeprefix("user\n\n").removesuffix(" assistant\n\n")
    prefix = _prompt_ids(name, [("system", sheet)], generate=False)
    assert len(prefix) == len(sample.prefix) or sheet.endswith("\n")
    if not sheet.endswith("\n"):
        prompt = _prompt_ids(name, [("system", sheet), ("user", question)], generate=True)
        assert prompt == sample.prefix + sample.suffixes[0]


def test_a_packed_branch_computes_what_it_computes_alone(loaded: tuple[Transformer, Tokenizer, str]) -> None:
    model, tokenizer, _ = loaded
    sample = SampleWriter(tokenizer, 1, Split.TRAIN).draw(3, max_people=6, earlier_turns=False)
    second = Sample(sample.prefix, sample.suffixes[1:2], sample.answers[1:2], [], sample.num_people, sample.sheet)
    states = []
    for packed, branch in ((sample, 1), (second, 0)):
        batch = pack([packed], 256, 3, model.config.eos_token_id, np.full((1, 3), 32)).to("cpu")
        positions, owners, canvas = layout(batch)
        attend = dense_attention(owners, 256, isolated=True)
        logits = model(batch.ids, lambda _, q, k, v, attend=attend: attend(q, k, v), positions)
        states.append(logits[0, canvas[0, branch]])
    torch.testing.assert_close(states[0], states[1], rtol=1e-4, atol=1e-4)


def test_orthogonalized_matrices_have_singular_values_near_one() -> None:
    matrices = torch.randn(3, 32, 48, generator=torch.Generator().manual_seed(0))
    values = torch.linalg.svdvals(orthogonalize(matrices).float())
    assert values.min() > 0.5
    assert values.max() < 1.3
