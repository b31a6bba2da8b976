"""Describe changes of a shared context, and turn them into edits of its tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain, pairwise

from cache_service.core.types import Context, Edit
from cluster.errors import RequestError
from cluster.generation.contexts.drafting import Content, ContextDrafter, TextContent, TokenContent


@dataclass(frozen=True)
class TokenRange:
    """Selects the tokens at positions start..end-1 of a context."""

    start: int
    end: int


@dataclass(frozen=True)
class TextMatch:
    """Selects a part of a context by its text, which must occur there exactly once."""

    text: str


@dataclass(frozen=True)
class Replacement:
    """Replaces one part of a context by new content."""

    place: TokenRange | TextMatch
    content: TextContent | TokenContent


@dataclass(frozen=True)
class FullRewrite:
    """Replaces the whole content of a context."""

    content: Content


def edits_of(
    context: Context, changes: Sequence[Replacement] | FullRewrite, drafter: ContextDrafter
) -> tuple[Edit, ...]:
    """Return the edits of all changes, in order. Raises RequestError for a position or text that isn't there."""
    if isinstance(changes, FullRewrite):
        return drafter.draft_whole(changes.content).edits(0, len(context.token_ids))
    located = (locate_change(context, change, drafter, index) for index, change in enumerate(changes))
    places = sorted(located, key=lambda place: place.range)
    ends = [*(place.start for place in places[1:]), len(context.token_ids)]
    return tuple(chain.from_iterable(map(partial(place_edits, context, drafter), places, ends)))


@dataclass(frozen=True)
class LocatedChange:
    """Holds new content for the positions start..end-1."""

    start: int
    end: int
    content: TextContent | TokenContent

    @property
    def range(self) -> tuple[int, int]:
        return self.start, self.end


def locate_change(context: Context, change: Replacement, drafter: ContextDrafter, index: int) -> LocatedChange:
    """Return the positions that edit number `index` replaces, and their content with what else of their text stays."""
    content, path = change.content, f"edits.{index}"
    if isinstance(content, TokenContent):
        drafter.check_ids(content, f"{path}.token_ids")
    if isinstance(change.place, TokenRange):
        return LocatedChange(change.place.start, change.place.end, content)
    text = change.place.text
    start, end, left, right = drafter.locate_text(context.token_ids, context.masked, text, param=f"{path}.find")
    if isinstance(content, TextContent):
        content = TextContent((left, *content.parts, right))
    elif left or right:
        raise RequestError(f"token ids can't replace {text!r}, a part of a token", param=f"{path}.token_ids")
    return LocatedChange(start, end, content)


def place_edits(context: Context, drafter: ContextDrafter, change: LocatedChange, limit: int) -> tuple[Edit, ...]:
    """Return the edits of one change, which may draft text again up to position `limit`, where another one begins."""
    start, end, content = change.start, change.end, change.content
    if isinstance(content, TextContent) and 0 <= start <= end <= limit:
        draft, end = drafter.draft_between(context.token_ids[:limit], context.masked, start, end, content)
    else:
        draft = drafter.draft_after(context.token_ids[:start], content)
    return draft.edits(start, end)


def holes_of(context: Context) -> tuple[TokenRange, ...]:
    """Return the masked positions as ranges, ascending."""
    if not context.masked:
        return ()
    breaks = [index + 1 for index, (a, b) in enumerate(pairwise(context.masked)) if b != a + 1]
    edges = [0, *breaks, len(context.masked)]
    return tuple(TokenRange(context.masked[a], context.masked[b - 1] + 1) for a, b in pairwise(edges))
