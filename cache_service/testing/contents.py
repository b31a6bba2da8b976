"""Carry out edits in the simplest way, so that a checker needs none of the code that it checks."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from cache_service.core.types import Context, Edit, PrefixKey
from cache_service.testing.moments import Violation

Content = tuple[tuple[int, bool], ...]
"""The tokens of a context in order; True marks a hole."""


def content_of(context: Context) -> Content:
    return content_from(context.token_ids, context.masked)


def content_from(token_ids: Iterable[int], masked: Iterable[int]) -> Content:
    holes = frozenset(masked)
    return tuple((token, position in holes) for position, token in enumerate(token_ids))


def edited(content: Content, edits: Sequence[Edit]) -> Content:
    """Return `content` with `edits` carried out, the last one first, so that no position moves before its turn."""
    cells = list(content)
    for edit in reversed(edits):
        cells[edit.start : edit.end] = [(token, edit.masked) for token in edit.token_ids]
    return tuple(cells)


class KeyBook:
    """Requires that a key never names two contents, and that a content never has two keys."""

    def __init__(self) -> None:
        self._named: dict[PrefixKey, tuple[str, str, tuple[int, ...]]] = {}
        self._keys: dict[tuple[str, str, tuple[int, ...]], PrefixKey] = {}

    def check(self, context: Context) -> None:
        """Raise Violation where the context's key contradicts what was seen before."""
        content = (context.fingerprint, context.salt, context.token_ids)
        known = self._named.setdefault(context.key, content)
        if known != content:
            raise Violation(f"{known} and {content} share the key {context.key.hex()}")
        if self._keys.setdefault(content, context.key) != context.key:
            raise Violation(f"{content} has the keys {self._keys[content].hex()} and {context.key.hex()}")
