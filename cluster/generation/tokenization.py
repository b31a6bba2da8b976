"""Turn prompts into token ids, with the boundaries of prefixes that may be shared, and token ids into text.

Only this module uses `transformers`' tokenizers, which also render the model's own chat template. Text that a user
wrote never becomes a special token: only those that the template itself writes do.
"""

from __future__ import annotations

import secrets
from bisect import bisect_left
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import groupby
from pathlib import Path
from typing import Any

from jinja2 import TemplateError
from transformers import AddedToken, PreTrainedTokenizerFast
from transformers.utils import logging as transformers_logging

from cache_service.core.hashing import prefix_keys
from cluster.errors import RequestError, TokenizerError
from cluster.generation.control_tokens import PlainEncoder
from cluster.generation.detokenization import BROKEN, Detokenizer
from workers.api import PrefixCandidate
from workers.config import BiCacheConfig

transformers_logging.set_verbosity_error()  # its warnings advise on use of the library, and we check lengths ourselves

TOKEN_GRID = 128
"""Number of tokens of which a prompt of bare token ids, which shows no structure, is cut at a multiple."""
GRID_STEPS = 4
"""Minimum length of such a prompt, in grid steps."""
MAX_BOUNDARIES = 4
"""Maximum number of a conversation's boundaries that are all computed; of more, only those that decide the cut."""
ANCHOR = "."
"""A placeholder for the text that a suffix follows."""
PROBE = "a"
"""A text that shows how a tokenizer encodes and decodes text behind a special token."""


@dataclass(frozen=True)
class Message:
    """Holds one turn of a conversation."""

    role: str
    content: str


@dataclass(frozen=True)
class Conversation:
    """Holds turns for the model's chat template."""

    messages: tuple[Message, ...]


@dataclass(frozen=True)
class TextPrompt:
    """Holds raw text; special tokens in it are read as such, for clients that fill in a template themselves."""

    text: str


@dataclass(frozen=True)
class TokenPrompt:
    """Holds token ids, taken as they are."""

    token_ids: tuple[int, ...]


Prompt = Conversation | TextPrompt | TokenPrompt


def length_of(prompt: Prompt) -> int:
    """Return the number of characters or token ids, a measure of the work of encoding."""
    match prompt:
        case Conversation(messages):
            return sum(len(message.content) for message in messages)
        case TextPrompt(text):
            return len(text)
        case TokenPrompt(token_ids):
            return len(token_ids)


@dataclass(frozen=True)
class EncodedPrompt:
    """Holds token ids and the lengths, ascending and below the whole, of the prefixes that others may share."""

    token_ids: tuple[int, ...]
    boundaries: tuple[int, ...]

    def candidates(self, fingerprint: str, salt: str) -> tuple[PrefixCandidate, ...]:
        """Return the boundaries with their keys, shortest first; see `cache_service.core.hashing.prefix_keys`."""
        keys = prefix_keys(fingerprint, salt, self.token_ids, self.boundaries)
        return tuple(PrefixCandidate(length, key) for length, key in zip(self.boundaries, keys, strict=True))


@dataclass(frozen=True)
class HoleToken:
    """Replaces a masked position while text goes through the tokenizer: a token that no text can spell."""

    text: str
    token_id: int
    """An id beyond the model's vocabulary."""
    anchor_ids: tuple[int, ...]
    """The tokens of `ANCHOR` directly after it."""


class Tokenizer:
    """Encodes and decodes by a model directory's tokenizer (tokenizer.json) and chat template."""

    def __init__(self, directory: Path, *, cut_share: float = BiCacheConfig.cut_share) -> None:
        """Load the directory's tokenizer. Raises TokenizerError if it has none that can be read.

        `cut_share` is the workers' `bicache.cut_share`.
        """
        self._cut_share = cut_share
        try:
            self._tokenizer: Any = PreTrainedTokenizerFast.from_pretrained(str(directory), local_files_only=True)
        except (OSError, ValueError) as error:
            raise TokenizerError(f"no tokenizer in {directory}: a served model needs tokenizer.json there") from error
        self._directory = directory
        self._special = frozenset(self._tokenizer.all_special_ids)
        self.vocab_size = len(self._tokenizer)
        self._plain = PlainEncoder(self._tokenizer.backend_tokenizer, self._tokenizer.chat_template or "")
        self._run_ends = self._ends_of_runs()
        self.hole = self._add_hole()

    def _add_hole(self) -> HoleToken:
        text = f"<hole {secrets.token_hex(16)}>"
        self._plain.add_token(AddedToken(text, special=False, normalized=False))
        token_id, *anchor_ids = self._plain.encode(text + ANCHOR, add_special_tokens=False)
        return HoleToken(text, token_id, tuple(anchor_ids))

    def _ends_of_runs(self) -> frozenset[int]:
        """Return the special tokens behind which text is encoded like the beginning of one, with a blank before it.

        There are such tokens only in some tokenizers. The mask is none of them: text behind a hole continues.
        """
        ends = self._special - {self._tokenizer.mask_token_id}
        for token_id in sorted(ends):
            text = str(self._tokenizer.convert_ids_to_tokens(token_id)) + PROBE
            token_ids = self._tokenizer(text, add_special_tokens=False)["input_ids"]
            return frozenset() if self._decode(token_ids, special=True) == text else frozenset(ends)
        return frozenset()

    def encode(self, prompt: Prompt) -> EncodedPrompt:
        """Encode a prompt. Raises RequestError for messages that the template refuses, and for unknown token ids."""
        match prompt:
            case Conversation(messages):
                return self._encode_conversation(messages)
            case TextPrompt(text):
                return self._encode_text(text)
            case TokenPrompt(token_ids):
                return self._encode_ids(token_ids)

    def encode_suffix(self, text: str, *, after: str = ANCHOR, plain: bool = False) -> tuple[int, ...]:
        """Return the token ids of text that continues `after`, since a tokenizer may treat a first word specially.

        Special tokens in it are read as such unless it is `plain`.
        """
        if not text:
            return ()
        encode = self._plain.encode if plain else self._encode
        before, whole = encode(after), encode(after + text)
        if whole[: len(before)] == before:
            return tuple(whole[len(before) :])
        return tuple(encode(text, add_special_tokens=False))

    def encode_plain(self, text: str) -> tuple[int, ...]:
        """Return the token ids of text in which no special token is read as such."""
        return tuple(self._plain.encode(text))

    def encode_after_context(self, prompt: Prompt, num_context: int) -> EncodedPrompt:
        """Encode what follows a shared context of `num_context` tokens; boundaries count from the context's end.

        Raises RequestError as `encode`.
        """
        match prompt:
            case Conversation(messages):
                return self._continue_conversation(messages, num_context)
            case TextPrompt(text):
                return EncodedPrompt(self.encode_suffix(text), ())
            case TokenPrompt(token_ids):
                self.check_ids(token_ids)
                return EncodedPrompt(token_ids, ())

    def text_of(self, token_ids: Sequence[int], *, special: bool = False) -> str:
        """Return the tokens' text, with the names of special tokens or without."""
        if not special or self._run_ends.isdisjoint(token_ids):
            return self._decode(token_ids, special=special)
        runs = (list(run) for _, run in groupby(token_ids, key=self._run_ends.__contains__))
        return "".join(self._decode(run, special=True) for run in runs)

    def text_within(self, token_ids: Sequence[int], positions: Sequence[int]) -> str:
        """Return what the tokens at `positions` (ascending, at least one) add to the text around them."""
        first, chosen = positions[0], frozenset(positions)
        detokenizer = self.detokenizer(token_ids[:first])
        pieces = [detokenizer.push([token_id]) for token_id in token_ids[first : positions[-1] + 1]]
        return "".join(piece for at, piece in enumerate(pieces, first) if at in chosen) + detokenizer.finish()

    def text_at_end(self, token_ids: Sequence[int]) -> str:
        """Return the text after the last special token, if there is one; nothing if it ends inside a character."""
        special = [index for index, token_id in enumerate(token_ids) if token_id in self._special]
        text = self.text_of(token_ids[special[-1] + 1 if special else 0 :])
        return "" if text.endswith(BROKEN) else text

    def pieces(self, token_ids: Sequence[int]) -> list[str]:
        """Return the text that each token adds; empty if it is special, or ends inside a character."""
        pieces: list[str] = []
        for _, run in groupby(token_ids, key=self._run_ends.__contains__):
            detokenizer = self.detokenizer()
            pieces += [detokenizer.push([token_id]) for token_id in run]
        return pieces

    def is_special(self, token_id: int) -> bool:
        return token_id in self._special

    def silent_tokens(self, token_ids: Sequence[int], pieces: Sequence[str]) -> frozenset[int]:
        """Return which tokens of text, whose `pieces` are given, add none: a later one completes or replaces theirs.

        Such a token ends inside a character, or is a blank that the decoder drops at the beginning of a line.
        """
        silent = (index for index, piece in enumerate(pieces) if not piece)
        return frozenset(index for index in silent if token_ids[index] not in self._special)

    def render(self, messages: Sequence[Message]) -> tuple[int, ...]:
        """Render turns by the chat template, so that more can follow. Raises RequestError."""
        return tuple(self._render(messages, add_generation_prompt=False))

    def check_ids(self, token_ids: Iterable[int], param: str = "prompt") -> None:
        """Raise RequestError for ids beyond the vocabulary."""
        if (bad := next((i for i in token_ids if not 0 <= i < self.vocab_size), None)) is not None:
            raise RequestError(f"token id {bad} is beyond the vocabulary of {self.vocab_size} tokens", param=param)

    def detokenizer(self, before: Sequence[int] = ()) -> Detokenizer:
        """Return a detokenizer for text that continues that of the tokens `before`."""
        return Detokenizer(self._tokenizer, before)

    def _encode_conversation(self, messages: Sequence[Message], num_more: int = 0) -> EncodedPrompt:
        """Find the boundaries before user turns.

        Of a long conversation, three are kept: the first, the last, and the one that
        `workers.bicache.cut.choose_cut` takes, found by bisection, since each costs a rendering. Lengths count
        `num_more` tokens that come before.
        """
        token_ids = self._render(messages, add_generation_prompt=True)

        @cache
        def prefix(turn: int) -> list[int]:
            return self._render(messages[:turn], add_generation_prompt=False)

        def is_boundary(turn: int) -> bool:
            return token_ids[: len(prefix(turn))] == prefix(turn)

        turns = [index for index, message in enumerate(messages) if message.role == "user" and index > 0]
        if len(turns) > MAX_BOUNDARIES:
            last = next(filter(is_boundary, reversed(turns)), turns[-1])
            aim = self._cut_share * (num_more + len(prefix(last)))
            start = bisect_left(turns, aim, key=lambda turn: num_more + len(prefix(turn)))
            turns = [turns[0], next(filter(is_boundary, turns[start:]), last), last]
        return _encoded(token_ids, (len(prefix(turn)) for turn in turns if is_boundary(turn)))

    def _continue_conversation(self, messages: Sequence[Message], num_context: int) -> EncodedPrompt:
        """Encode turns that follow earlier ones, by rendering them after a short system turn that is then cut off."""
        others = (Message("system", ANCHOR),)
        before = self._render(others, add_generation_prompt=False)
        whole = self._encode_conversation((*others, *messages), num_context - len(before))
        if list(whole.token_ids[: len(before)]) != before:
            raise RequestError("the model's chat template can't put these messages after a context", param="messages")
        boundaries = tuple(length - len(before) for length in whole.boundaries if length > len(before))
        return EncodedPrompt(whole.token_ids[len(before) :], boundaries)

    def _render(self, messages: Sequence[Message], *, add_generation_prompt: bool) -> list[int]:
        if not self._tokenizer.chat_template:
            raise RequestError(
                f"the model in {self._directory} has no chat template: use /v1/completions, or add chat_template.jinja",
                param="messages",
            )
        turns = [{"role": message.role, "content": self._plain.mark(message.content)} for message in messages]
        try:
            chat = self._tokenizer.apply_chat_template(
                turns, add_generation_prompt=add_generation_prompt, tokenize=False
            )
        except (TemplateError, ValueError) as error:
            raise RequestError(
                f"the model's chat template refuses these messages: {error}", param="messages"
            ) from error
        return self._plain.encode_rendered(chat)

    def _encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        return list(self._tokenizer(text, add_special_tokens=add_special_tokens)["input_ids"])

    def _decode(self, token_ids: Sequence[int], *, special: bool) -> str:
        ids = list(token_ids)
        return str(self._tokenizer.decode(ids, skip_special_tokens=not special, clean_up_tokenization_spaces=False))

    def _encode_text(self, text: str) -> EncodedPrompt:
        """Encode text, with boundaries after its first and its last blank line, which suits few-shot prompts."""
        token_ids = self._encode(text)
        ends = {end + 2 for end in (text.find("\n\n"), text.rfind("\n\n")) if end >= 0}
        prefixes = (self._encode(text[:end]) for end in sorted(ends))
        lengths = [len(prefix) for prefix in prefixes if token_ids[: len(prefix)] == prefix]
        return _encoded(token_ids, lengths)

    def _encode_ids(self, token_ids: tuple[int, ...]) -> EncodedPrompt:
        """Cut at the last multiple of a power of two, so that prompts of similar length are cut at the same place.

        The step is at least `TOKEN_GRID`, and at most a quarter of the prompt.
        """
        self.check_ids(token_ids)
        step = max(TOKEN_GRID, 1 << (len(token_ids) // GRID_STEPS).bit_length() >> 1)
        return _encoded(token_ids, range(step, len(token_ids), step)[-1:])


def _encoded(token_ids: Iterable[int], lengths: Iterable[int]) -> EncodedPrompt:
    ids = tuple(token_ids)
    return EncodedPrompt(ids, tuple(sorted({length for length in lengths if 0 < length < len(ids)})))
