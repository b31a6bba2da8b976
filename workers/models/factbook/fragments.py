"""Fragments are strings cut at the tokenizer's word borders, so that token ids are found without the tokenizer.

A word's fragment carries its leading space (`" Mira"`). At the start of a text or a line the space is only
implied: `join` drops it there, exactly as the tokenizer's decoder does.
"""

import re
from collections.abc import Mapping, Sequence

from tokenizers import Tokenizer

Fragments = list[str]

_SLOT = re.compile(r"( ?\{\w+\})")
_LINES = re.compile(r"(\n+)")
_MAX_CACHED = 200_000


def join(fragments: Sequence[str]) -> str:
    """Return the text that the fragments stand for."""
    return re.sub(r"\n ", "\n", "".join(fragments)).removeprefix(" ")


class Template:
    """A template is a sentence with slots, as `"{N} is {A}."`; a slot after a space takes its value's spaced form."""

    def __init__(self, text: str) -> None:
        self.text = text
        self._parts = [part for part in _SLOT.split(" " + text) if part]

    def fill(self, **values: str | Sequence[str]) -> Fragments:
        """Return the sentence's fragments; a value is a word without its space, or fragments that carry theirs."""
        return self.fill_from(values)

    def fill_from(self, values: Mapping[str, str | Sequence[str]]) -> Fragments:
        """Fill the slots as `fill` does, with the values in a mapping."""
        out: Fragments = []
        for part in self._parts:
            if part[-1] != "}":
                out.append(part)
                continue
            spaced = part[0] == " "
            value = values[part[2:-1] if spaced else part[1:-1]]
            if isinstance(value, str):
                out.append(" " + value if spaced else value)
            else:
                out.extend(value)
        return out


class FragmentEncoder:
    """Encodes fragments to the token ids of the joined text, much faster than the tokenizer does."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._cache: dict[str, tuple[int, ...]] = {}

    def encode(self, fragments: Sequence[str]) -> list[int]:
        """Return the token ids of `join(fragments)`."""
        ids: list[int] = []
        for fragment in fragments:
            cached = self._cache.get(fragment)
            if cached is None:
                cached = self._encode_fragment(fragment)
            ids.extend(cached)
        return ids

    def _encode_fragment(self, fragment: str) -> tuple[int, ...]:
        if len(self._cache) >= _MAX_CACHED:
            self._cache.clear()
        ids: list[int] = []
        for part in _LINES.split(fragment):
            ids.extend(self._encode_line(part))
        self._cache[fragment] = tuple(ids)
        return self._cache[fragment]

    def _encode_line(self, part: str) -> list[int]:
        if not part:
            return []
        if part[0] == "\n":
            return list(self._tokenizer.encode(part, add_special_tokens=False).ids)
        words = self._tokenizer.pre_tokenizer.pre_tokenize_str(part)
        return [token.id for word, _ in words for token in self._tokenizer.model.tokenize(word)]
