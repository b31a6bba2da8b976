"""Keep the names of control tokens in users' text apart from the control tokens that a chat template writes.

A tokenizer that is asked to read such a name as text may cut the text around it into pieces, and some tokenizers put
blanks between those. So `PlainEncoder` encodes with a copy of the tokenizer in which every control token has another
name, which no text can spell: all that users write is text to it, in one piece.
"""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Mapping
from typing import Any

from tokenizers import AddedToken, Tokenizer

from cluster.errors import TokenizerError


class PlainEncoder:
    """Encodes text in which no control token is read as such, except where a chat template wrote it."""

    def __init__(self, backend: Tokenizer, chat_template: str) -> None:
        """Encode by a copy of `backend`. Raises TokenizerError if the copy has other ids."""
        nonce = secrets.token_hex(16)
        names = control_tokens(backend, chat_template)
        self._aliases = {name: f"<control-{index}-{nonce}>" for index, name in enumerate(names)}
        self._start, self._end = f"[{nonce}<", f">{nonce}]"
        any_name = "|".join(map(re.escape, names)) or r"(?!)"
        self._name = re.compile(any_name)
        self._written = re.compile(
            f"{re.escape(self._start)}(?P<text>{any_name}){re.escape(self._end)}"
            f"|{re.escape(self._start)}|{re.escape(self._end)}|(?P<token>{any_name})"
        )
        self._copy = Tokenizer.from_str(renamed(backend.to_str(), self._aliases))
        self._copy.no_truncation()
        self._copy.no_padding()
        for name, alias in self._aliases.items():
            if self._copy.token_to_id(alias) != backend.token_to_id(name):
                raise TokenizerError(f"the tokenizer's token {name!r} can't be kept apart from text that names it")

    def add_token(self, token: AddedToken) -> None:
        """Add a token that isn't a control token."""
        self._copy.add_tokens([token])

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """Return the ids of a text, with the special tokens that the tokenizer puts around every text or without."""
        return list(self._copy.encode(text, add_special_tokens=add_special_tokens).ids)

    def mark(self, text: str) -> str:
        """Return a user's text as a chat template must get it: with marks around the names of control tokens."""
        return self._name.sub(lambda found: f"{self._start}{found[0]}{self._end}", text)

    def encode_rendered(self, chat: str) -> list[int]:
        """Return the ids of what a template made of marked texts. What the template wrote is read as it is meant."""
        return self.encode(self._written.sub(self._spelling, chat), add_special_tokens=False)

    def _spelling(self, found: re.Match[str]) -> str:
        return self._aliases[found["token"]] if found["token"] else found["text"] or ""


def control_tokens(backend: Tokenizer, chat_template: str) -> list[str]:
    """Return the names of special tokens, and of other added tokens that the template writes; the longest first."""
    added = backend.get_added_tokens_decoder().values()
    names = {
        token.content
        for token in added
        if token.special or (token.content in chat_template and not token.content.isspace())
    }
    return sorted(names, key=lambda name: (-len(name), name))


def renamed(tokenizer_json: str, aliases: Mapping[str, str]) -> str:
    """Return a tokenizer.json in which tokens have other names and the same ids."""
    content: dict[str, Any] = json.loads(tokenizer_json)
    model = content["model"]
    for token in content["added_tokens"]:
        token["content"] = aliases.get(token["content"], token["content"])
    if isinstance(model["vocab"], dict):
        model["vocab"] = {aliases.get(name, name): index for name, index in model["vocab"].items()}
    else:
        model["vocab"] = [[aliases.get(name, name), score] for name, score in model["vocab"]]
    if model.get("unk_token") in aliases:
        model["unk_token"] = aliases[model["unk_token"]]
    return json.dumps(content)
