"""Convert messages about shared contexts to our own types. Incomplete ones raise RequestError."""

from __future__ import annotations

from collections.abc import Iterable

from cluster.errors import RequestError
from cluster.generation.contexts.changes import FullRewrite, Replacement, TextMatch, TokenRange
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
from protos import contexts_v1_pb2 as pb

ROLES = {role: role for role in ("system", "user", "assistant")} | {"developer": "system"}


def content_from_pb(message: pb.ContextContent, path: str = "content") -> Content:
    """Return the whole content of a context. Errors name fields below `path`, as all functions' here do."""
    match message.WhichOneof("content"):
        case "turns" if message.turns.turns:
            turns = enumerate(message.turns.turns)
            return TurnsContent(tuple(turn_from_pb(turn, f"{path}.turns.turns.{index}") for index, turn in turns))
        case "text":
            return text_from_pb(message.text, f"{path}.text")
        case "tokens":
            return tokens_from_pb(message.tokens, f"{path}.tokens")
        case _:
            raise RequestError("the content is missing: give turns (at least one), text or tokens", param=path)


def changes_from_pb(request: pb.ChangeContextRequest) -> tuple[Replacement, ...] | FullRewrite:
    match request.WhichOneof("change"):
        case "edits" if request.edits.edits:
            edits = enumerate(request.edits.edits)
            return tuple(change_from_pb(edit, f"edits.edits.{index}") for index, edit in edits)
        case "content":
            return FullRewrite(content_from_pb(request.content))
        case _:
            raise RequestError("the change is missing: give edits (at least one) or content", param="edits")


def change_from_pb(edit: pb.ContextEdit, path: str) -> Replacement:
    return Replacement(place_from_pb(edit, path), replacement_from_pb(edit, path))


def place_from_pb(edit: pb.ContextEdit, path: str) -> TokenRange | TextMatch:
    match edit.WhichOneof("place"):
        case "range":
            return TokenRange(edit.range.start, edit.range.end)
        case "find" if edit.find:
            return TextMatch(edit.find)
        case _:
            raise RequestError("an edit needs a position: either range or find", param=path)


def replacement_from_pb(edit: pb.ContextEdit, path: str) -> TextContent | TokenContent:
    match edit.WhichOneof("content"):
        case "text":
            return text_from_pb(edit.text, f"{path}.text")
        case "tokens":
            return tokens_from_pb(edit.tokens, f"{path}.tokens")
        case _:
            raise RequestError("an edit needs new content: text or tokens", param=path)


def turn_from_pb(turn: pb.Turn, path: str) -> ContextTurn:
    return ContextTurn(role_from_pb(turn.role, f"{path}.role"), parts_from_pb(turn.parts, path))


def text_from_pb(text: pb.TextParts, path: str) -> TextContent:
    return TextContent(parts_from_pb(text.parts, path))


def parts_from_pb(parts: Iterable[pb.TextPart], path: str) -> tuple[Part, ...]:
    return tuple(
        hole_from_pb(part.hole, f"{path}.parts.{index}.hole") if part.WhichOneof("part") == "hole" else part.text
        for index, part in enumerate(parts)
    )


def tokens_from_pb(tokens: pb.TokenParts, path: str) -> TokenContent:
    flat: list[int | Hole] = []
    for index, part in enumerate(tokens.parts):
        if part.WhichOneof("part") == "hole":
            flat.append(hole_from_pb(part.hole, f"{path}.parts.{index}.hole"))
        else:
            flat += part.tokens.ids
    return TokenContent(tuple(flat))


def hole_from_pb(length: int, path: str) -> Hole:
    if not 1 <= length <= MAX_HOLE:
        raise RequestError(f"a hole must be 1 to {MAX_HOLE} tokens long, got {length}", param=path)
    return Hole(length)


def role_from_pb(role: str, path: str) -> str:
    """Return the role as the chat template names it."""
    if role not in ROLES:
        raise RequestError(f"a turn's role must be one of {', '.join(ROLES)}, got {role!r}", param=path)
    return ROLES[role]
