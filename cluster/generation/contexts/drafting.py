"""Turn a client's content for a shared context into token ids with holes, and the edits that insert them. No I/O.

Text stays text: the names of the mask token and of other special tokens in it are not parsed as tokens. Only a
`Hole` makes a hole.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import groupby, takewhile

from cache_service.core.types import Edit
from cluster.errors import RequestError
from cluster.generation.detokenization import BROKEN
from cluster.generation.tokenization import ANCHOR, Message, Tokenizer

MAX_HOLE = 4096
TAIL_TOKENS = 8
"""Number of tokens before a position that decide how text is tokenized there."""
MAX_REDRAFTED = 8
"""The most tokens behind an edit that are looked at, and drafted again if they would read otherwise behind it."""


@dataclass(frozen=True)
class Hole:
    """Stands for a run of masked positions, to be denoised."""

    length: int


Part = str | Hole


@dataclass(frozen=True)
class TextContent:
    """Holds text and holes in turn."""

    parts: tuple[Part, ...]


@dataclass(frozen=True)
class TokenContent:
    """Holds token ids and holes in turn, taken as they are."""

    parts: tuple[int | Hole, ...]


@dataclass(frozen=True)
class ContextTurn:
    """Holds one turn of a conversation with holes."""

    role: str
    parts: tuple[Part, ...]


@dataclass(frozen=True)
class TurnsContent:
    """Holds turns for the model's chat template; more turns can follow them."""

    turns: tuple[ContextTurn, ...]


Content = TextContent | TokenContent | TurnsContent


def num_holes(content: Content) -> int:
    """Return the number of masked positions that the content asks for."""
    return sum(part.length for part in parts_of(content) if isinstance(part, Hole))


def length_written(content: Content) -> int:
    """Return the number of characters and token ids, a measure of the work of encoding."""
    return sum(len(part) if isinstance(part, str) else 1 for part in parts_of(content))


def parts_of(content: Content) -> Iterator[str | int | Hole]:
    match content:
        case TurnsContent(turns):
            for turn in turns:
                yield from turn.parts
        case TextContent(parts) | TokenContent(parts):
            yield from parts


@dataclass(frozen=True)
class Draft:
    """Holds token ids; those at the ascending positions `masked` are holes, with the model's mask id."""

    token_ids: tuple[int, ...]
    masked: tuple[int, ...] = ()

    def edits(self, start: int, end: int) -> tuple[Edit, ...]:
        """Return the edits that replace positions start..end-1 by this draft: one for every run of text or of holes."""
        holes = frozenset(self.masked)
        runs = [list(run) for _, run in groupby(range(len(self.token_ids)), key=holes.__contains__)]
        edits = [
            Edit(end if index else start, end, tuple(self.token_ids[i] for i in run), run[0] in holes)
            for index, run in enumerate(runs)
        ]
        return tuple(edits) or (Edit(start, end, ()),)


class ContextDrafter:
    """Turns clients' content into drafts for one model."""

    def __init__(self, tokenizer: Tokenizer, mask_token_id: int) -> None:
        self._tokenizer, self._mask = tokenizer, mask_token_id

    def draft_whole(self, content: Content) -> Draft:
        """Turn content that stands by itself into a draft. Raises RequestError if template or vocabulary refuse it."""
        match content:
            case TokenContent(parts):
                self.check_ids(content)
                return self._draft_tokens(parts)
            case TextContent(parts):
                return self._draft_with_holes(lambda spell: self._tokenizer.encode_plain(spell(parts)))
            case TurnsContent(turns):
                return self._draft_with_holes(lambda spell: self._render(turns, spell))

    def draft_after(self, before: Sequence[int], content: TextContent | TokenContent) -> Draft:
        """Turn content that follows the tokens `before` into a draft.

        A tokenizer may treat the first word of a text specially. So the content is tokenized after the text that
        precedes it, else after an anchor, else by itself: the first of these that decodes as written is taken.
        """
        if isinstance(content, TokenContent):
            return self.draft_whole(content)
        text = self._tokenizer.text_at_end(before[-TAIL_TOKENS:])
        alone, behind_any = self.draft_whole(content), self._draft_after(ANCHOR, content.parts)
        ways = [self._draft_after(text, content.parts), behind_any, alone] if text else [alone, behind_any]
        return next((draft for draft in ways if self._reads_as_written(before, draft, content.parts)), ways[0])

    def draft_between(
        self, token_ids: Sequence[int], masked: Sequence[int], start: int, end: int, content: TextContent
    ) -> tuple[Draft, int]:
        """Draft text for positions start..end-1, and return with it the end of what it replaces.

        A decoder may read the next token otherwise behind the new text: then that token's text is drafted, too.
        """
        before, fixed = token_ids[:start], frozenset(masked)
        for stop in range(end, min(end + MAX_REDRAFTED, len(token_ids)) + 1):
            if stop > end and (stop - 1 in fixed or self._tokenizer.is_special(token_ids[stop - 1])):
                break
            text, rest = self._text_after(token_ids[:end], token_ids[end:stop]), self._characters_at(token_ids, stop)
            if text.endswith(BROKEN):
                continue
            draft = self.draft_after(before, TextContent((*content.parts, text)) if text else content)
            if self._text_after((*before, *draft.token_ids), rest) == self._text_after(token_ids[:stop], rest):
                return draft, stop
        return self.draft_after(before, content), end

    def _text_after(self, before: Sequence[int], token_ids: Sequence[int]) -> str:
        """Return what the tokens add to the text of those before them."""
        for length in range(TAIL_TOKENS, 2 * TAIL_TOKENS):
            tail = tuple(before[-length:])
            known = self._tokenizer.text_of(tail, special=True)
            if not known.startswith(BROKEN):
                break
        return self._tokenizer.text_of((*tail, *token_ids), special=True)[len(known) :]

    def _characters_at(self, token_ids: Sequence[int], start: int) -> Sequence[int]:
        """Return the next tokens that show how the text goes on: whole characters of it."""
        ends = range(start + 1, min(start + MAX_REDRAFTED, len(token_ids)) + 1)
        runs = (token_ids[start:end] for end in ends)
        shown = ((run, self._tokenizer.text_of(run, special=True)) for run in runs)
        return next((run for run, text in shown if text and not text.endswith(BROKEN)), ())

    def _draft_after(self, text: str, parts: Sequence[Part]) -> Draft:
        encode = partial(self._tokenizer.encode_suffix, after=text, plain=True)
        return self._draft_with_holes(lambda spell: encode(spell(parts)))

    def locate_text(
        self, token_ids: Sequence[int], masked: Sequence[int], text: str, *, param: str = "edits"
    ) -> tuple[int, int, str, str]:
        """Return the positions start..end-1 of the tokens of `text`, and the text before and after it in them.

        Raises RequestError if it is missing, repeated, or not within one piece of text.
        """
        pieces, holes = self._tokenizer.pieces(token_ids), frozenset(masked)
        whole = "".join(pieces)
        places = [place.start() for place in re.finditer(f"(?={re.escape(text)})", whole)]
        if len(places) != 1:
            raise RequestError(f"{text!r} occurs {len(places)} times in the context, not once", param=param)
        [first] = places
        last, ends, length = first + len(text), [], 0
        for piece in pieces:
            length += len(piece)
            ends.append(length)
        silent = self._tokenizer.silent_tokens(token_ids, pieces)
        start = next(index for index, end in enumerate(ends) if end > first)
        while start - 1 in silent:
            start -= 1
        end = next(index for index, end in enumerate(ends) if end >= last) + 1
        if any(index in holes or not (pieces[index] or index in silent) for index in range(start, end)):
            raise RequestError(f"{text!r} has a hole or a special token in it", param=param)
        return start, end, whole[ends[start] - len(pieces[start]) : first], whole[last : ends[end - 1]]

    def check_ids(self, content: TokenContent, param: str = "token_ids") -> None:
        """Raise RequestError for ids beyond the vocabulary."""
        self._tokenizer.check_ids((part for part in content.parts if not isinstance(part, Hole)), param=param)

    def _draft_tokens(self, parts: Sequence[int | Hole]) -> Draft:
        return self._draft_runs([[part] if not isinstance(part, Hole) else [None] * part.length for part in parts])

    def _draft_runs(self, runs: Sequence[Sequence[int | None]]) -> Draft:
        """Return the draft of these runs, in which None is a masked position."""
        flat = [token_id for run in runs for token_id in run]
        return Draft(
            tuple(self._mask if token_id is None else token_id for token_id in flat),
            tuple(index for index, token_id in enumerate(flat) if token_id is None),
        )

    def _render(self, turns: Sequence[ContextTurn], spell: Callable[[Sequence[Part]], str]) -> Sequence[int]:
        return self._tokenizer.render([Message(turn.role, spell(turn.parts)) for turn in turns])

    def _draft_with_holes(self, encode: Callable[[Callable[[Sequence[Part]], str]], Sequence[int]]) -> Draft:
        """Return the draft of a text with holes, which the tokenizer sees as special tokens that no text can spell.

        The text after a hole is tokenized as a continuation: an anchor is put before it and removed again, unless the
        tokenizer joins the anchor to that text.
        """
        hole = self._tokenizer.hole
        for anchor in (ANCHOR, ""):
            read = encode(partial(spell_holes, hole=hole.text, anchor=anchor))
            marked = remove_anchors(read, hole.token_id, hole.anchor_ids if anchor else ())
            if marked is not None:
                return self._draft_runs([marked])
        raise AssertionError("without anchors, nothing can be joined to them")

    def _reads_as_written(self, before: Sequence[int], draft: Draft, parts: Sequence[Part]) -> bool:
        """Return whether the tokens before the first hole decode to the text before it."""
        text = "".join(str(part) for part in takewhile(lambda part: isinstance(part, str), parts))
        end = draft.masked[0] if draft.masked else len(draft.token_ids)
        return self._text_after(before, draft.token_ids[:end]) == text


def spell_holes(parts: Sequence[Part], *, hole: str, anchor: str) -> str:
    return "".join(hole * part.length + anchor if isinstance(part, Hole) else part for part in parts)


def remove_anchors(token_ids: Sequence[int], hole: int, anchor: Sequence[int]) -> list[int | None] | None:
    """Remove the anchor after each run of holes, and replace each hole by None. Return None if an anchor is missing."""
    out: list[int | None] = []
    index = 0
    while index < len(token_ids):
        if token_ids[index] != hole:
            out.append(token_ids[index])
            index += 1
            continue
        out.append(None)
        index += 1
        if index == len(token_ids) or token_ids[index] != hole:
            if list(token_ids[index : index + len(anchor)]) != list(anchor):
                return None
            index += len(anchor)
    return out
