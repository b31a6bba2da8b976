"""Users' text reaches the model, and comes back from a context, character by character."""

from __future__ import annotations

import json
import unicodedata
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers, trainers
from tokenizers import Tokenizer as Backend

from cache_service.core.contexts import splice
from cache_service.core.types import Context, ContextId, EditId, Epoch, PrefixKey, Revision, Version
from cluster.generation.contexts.changes import Replacement, TextMatch, edits_of
from cluster.generation.contexts.drafting import ContextDrafter, Hole, TextContent
from cluster.generation.tokenization import Message, Tokenizer
from workers.models.bundle import model_directory

NAMES = ("<|endoftext|>", "<|mask|>", "<|startoftext|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")
TOOL = "<tool_call>"
TEMPLATE = (
    "{{ '<|startoftext|>' }}{% for message in messages %}{{ '<|start_header_id|>' + message['role'] + "
    "'<|end_header_id|>\\n\\n' + message['content'] + '<|eot_id|>' }}{% endfor %}"
    "{% if tools %}{{ '<tool_call>' }}{% endif %}"
)
GPT4_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)

texts = st.lists(
    st.one_of(
        st.text(max_size=6),
        st.text(st.sampled_from("ab <|>_-\n\r\t\u3000'é日😀"), max_size=8),
        st.sampled_from((*NAMES, TOOL, "<hole 00>", "<0x41>", "\ue000", "[INST]")),
    ),
    max_size=6,
).map("".join)


def write_byte_level(directory: Path, *, nfc: bool) -> Path:
    """Write a tokenizer as LLaDA's and Dream's: byte-level BPE; Dream's brings text to Unicode's form NFC."""
    backend = Backend(models.BPE())
    split = pre_tokenizers.Split(Regex(GPT4_SPLIT), behavior="isolated")
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    backend.decoder = decoders.ByteLevel()
    if nfc:
        backend.normalizer = normalizers.NFC()
    trainer = trainers.BpeTrainer(
        vocab_size=600, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    backend.train_from_iterator([Path(__file__).read_text()], trainer)
    backend.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in NAMES])
    backend.add_tokens([AddedToken(TOOL, special=False, normalized=False)])
    backend.save(str(directory / "tokenizer.json"))
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "chat_template": TEMPLATE, "eos_token": NAMES[0]}
    (directory / "tokenizer_config.json").write_text(json.dumps(config))
    return directory


@dataclass(frozen=True)
class Sample:
    """Is a tokenizer, with what a test must know of it."""

    tokenizer: Tokenizer
    special: frozenset[int]
    mask: int
    is_nfc: bool
    trims: bool
    """Whether the chat template drops blanks around a turn's text."""

    def keeps(self, text: str) -> bool:
        """Return whether the tokenizer's own normalizer leaves the text as it is."""
        return not self.is_nfc or unicodedata.is_normalized("NFC", text)


@pytest.fixture(scope="module", params=["factbook", "factbook-plain", "byte-level", "byte-level, NFC"])
def sample(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Sample:
    is_bundled, is_nfc = request.param.startswith("factbook"), request.param.endswith("NFC")
    directory = tmp_path_factory.mktemp("byte-level")
    directory = model_directory(request.param) if is_bundled else write_byte_level(directory, nfc=is_nfc)
    backend = Backend.from_file(str(directory / "tokenizer.json"))
    special, mask = (frozenset(map(backend.token_to_id, names)) for names in (NAMES, NAMES[1:2]))
    return Sample(Tokenizer(directory), special, *mask, is_nfc, trims=is_bundled)


@settings(deadline=None)
@given(texts)
@example("a<|eot_id|>b")
def test_a_text_comes_back_as_it_was_written(sample: Sample, text: str) -> None:
    tokenizer = sample.tokenizer
    assume(sample.keeps(text))
    token_ids = tokenizer.encode_plain(text)

    assert tokenizer.text_of(token_ids) == text
    assert tokenizer.text_of(token_ids, special=True) == text
    detokenizer = tokenizer.detokenizer()
    assert detokenizer.push(token_ids) + detokenizer.finish() == text


@settings(deadline=None)
@given(texts)
@example("a<|eot_id|>b")
@example("<|mask|><|mask|>")
@example(f"a{TOOL}b")
def test_a_turn_comes_back_as_it_was_written(sample: Sample, text: str) -> None:
    tokenizer = sample.tokenizer
    assume(sample.keeps(text))
    token_ids = tokenizer.render([Message("user", text)])
    bare = tokenizer.render([Message("user", "x")])
    written = text.strip() if sample.trims else text

    expected = f"<|startoftext|><|start_header_id|>user<|end_header_id|>\n\n{written}<|eot_id|>"
    assert tokenizer.text_of(token_ids, special=True) == expected
    assert [i for i in token_ids if i in sample.special] == [i for i in bare if i in sample.special]


@settings(deadline=None)
@given(texts, texts, st.integers(1, 3))
@example("a<|eot_id|>b", " c<|mask|>", 1)
def test_the_texts_around_a_hole_come_back_as_they_were_written(
    sample: Sample, before: str, behind: str, length: int
) -> None:
    tokenizer = sample.tokenizer
    assume(sample.keeps(before) and sample.keeps("." + behind))
    draft = ContextDrafter(tokenizer, sample.mask).draft_whole(TextContent((before, Hole(length), behind)))

    mask = tokenizer.text_of([sample.mask], special=True)
    assert tokenizer.text_of(draft.token_ids, special=True) == before + mask * length + behind
    assert len(draft.masked) == length


@settings(deadline=None)
@given(texts, texts, texts, texts)
@example("a<|eot_id|>", "b", "c<|eot_id|>d", "")
@example("", "\n", "0", "0")
@example("", "\n;", "x", "")
def test_an_edit_leaves_the_exact_characters(
    sample: Sample, before: str, found: str, instead: str, behind: str
) -> None:
    tokenizer = sample.tokenizer
    whole = before + found + behind
    assume(found and whole.find(found) == whole.rfind(found))
    assume(sample.keeps(whole) and sample.keeps(before + instead + behind) and sample.keeps(instead))
    drafter = ContextDrafter(tokenizer, sample.mask)
    token_ids = drafter.draft_whole(TextContent((whole,))).token_ids

    version = Version(Epoch(0), PrefixKey(b""), EditId("c"))
    context = Context(ContextId("x"), "", "", token_ids, (), Revision(1), EditId("c"), version)
    after, _ = splice(context, edits_of(context, [Replacement(TextMatch(found), TextContent((instead,)))], drafter))

    assert tokenizer.text_of(after, special=True) == before + instead + behind
