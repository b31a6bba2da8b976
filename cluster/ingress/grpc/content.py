"""Convert messages about shared contexts to our own types. Incomplete ones raise RequestError."""

from __future__ import annotations

from collections.abc import Iterable

from cluster.errors import RequestError
from cluster.generation.contexts.drafting import (
    MAX_HOLE,
    Content,
    ContextTurn,
    Hole,
    Part,
    TextContent,
    TokenContent,
    TurnsContent,
)
from cluster.generation.contexts.editing import FullRewrite, Replacement, TextMatch, TokenRange
from protos import contexts_v1_pb2 as pb

ROLES = {role: role for role in ("system", "user", "assistant")} | {"developer": "system"}


def content_from_pb(message: pb.ContextContent) -> Content:
    """Return the whole content of a context."""
    match message.WhichOneof("content"):
        case "turns" if message.turns.turns:
            return TurnsContent(tuple(map(turn_from_pb, message.turns.turns)))
        case "text":
            return text_from_pb(message.text)
        case "tokens":
            return tokens_from_pb(message.tokens)
        case _:
            raise RequestError("the content is missing: give turns (at least one), text or tokens", param="content")


def changes_from_pb(request: pb.ChangeContextRequest) -> tuple[Replacement, ...] | FullRewrite:
    match request.WhichOneof("change"):
        case "edits" if request.edits.edits:
            return tuple(map(change_from_pb, request.edits.edits))
        case "content":
            return FullRewrite(content_from_pb(request.content))
        case _:
            raise RequestError("the change is missing: give edits (at least one) or content", param="edits")


def change_from_pb(edit: pb.ContextEdit) -> Replacement:
    return Replacement(place_from_pb(edit), replacement_from_pb(edit))


def place_from_pb(edit: pb.ContextEdit) -> TokenRange | TextMatch:
    match edit.WhichOneof("place"):
        case "range":
            return TokenRange(edit.range.start, edit.range.end)
        case "find" if edit.find:
            return TextMatch(edit.find)
        case _:
            raise RequestError("an edit needs a position: either range or find", param="edits")


def replacement_from_pb(edit: pb.ContextEdit) -> TextContent | TokenContent:
    match edit.WhichOneof("content"):
        case "text":
            return text_from_pb(edit.text)
        case "tokens":
            return tokens_from_pb(edit.tokens)
        case _:
            raise RequestError("an edit needs new content: text or tokens", param="edits")


def turn_from_pb(turn: pb.Turn) -> ContextTurn:
    return ContextTurn(role_from_pb(turn.role, "content"), parts_from_pb(turn.parts))


def text_from_pb(text: pb.TextParts) -> TextContent:
    return TextContent(parts_from_pb(text.parts))


def parts_from_pb(parts: Iterable[pb.TextPart]) -> tuple[Part, ...]:
    return tuple(hole_from_pb(part.hole) if part.WhichOneof("part") == "hole" else part.text for part in parts)


def tokens_from_pb(tokens: pb.TokenParts) -> TokenContent:
    flat: list[int | Hole] = []
    for part in tokens.parts:
        if part.WhichOneof("part") == "hole":
            flat.append(hole_from_pb(part.hole))
        else:
            flat += part.tokens.ids
    return TokenContent(tuple(flat))


def hole_from_pb(length: int) -> Hole:
    if not 1 <= length <= MAX_HOLE:
        raise RequestError(f"a hole must be 1 to {MAX_HOLE} tokens long, got {length}", param="hole")
    return Hole(length)


def role_from_pb(role: str, param: str) -> str:
    """Return the role as the chat template names it."""
    if role not in ROLES:
        raise RequestError(f"a turn's role must be one of {', '.join(ROLES)}, got {role!r}", param=param)
    return ROLES[role]
