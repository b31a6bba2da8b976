"""Turn token ids into text as the tokens are committed."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

BROKEN = "\N{REPLACEMENT CHARACTER}"
"""The text that a decoder returns for bytes that aren't a whole character."""


class Detokenizer:
    """Decodes one request's committed tokens piece by piece: only whole characters, which never change later.

    A piece is held back while its bytes end inside a character. The pieces depend on the tokens alone, not on how
    they were grouped, so a stream and a whole answer are the same text. Each decoding covers the tokens of the
    last piece and all later ones, because a decoder may treat a text's first word specially. (The tokenizers library's
    DecodeStream rejects byte sequences that aren't valid UTF-8, which a diffusion model can commit.)
    """

    def __init__(self, tokenizer: Any, before: Sequence[int] = ()) -> None:
        self._tokenizer = tokenizer
        self._context = list(before[-1:])
        if self._decode(self._context).endswith(BROKEN):
            self._context = []
        self._pending: list[int] = []

    def push(self, token_ids: Iterable[int]) -> str:
        """Take committed tokens, and return the text that is complete now."""
        return "".join(self._step(token_id) for token_id in token_ids)

    def finish(self) -> str:
        """Return the text that was held back; a broken character at the end becomes U+FFFD."""
        return self._new_text()

    def _step(self, token_id: int) -> str:
        self._pending.append(token_id)
        text = self._new_text()
        if not text or text.endswith(BROKEN):
            return ""
        self._context, self._pending = self._pending, []
        return text

    def _new_text(self) -> str:
        known = self._decode(self._context)
        return self._decode(self._context + self._pending)[len(known) :]

    def _decode(self, token_ids: list[int]) -> str:
        return str(self._tokenizer.decode(token_ids, skip_special_tokens=True, clean_up_tokenization_spaces=False))
