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


def content_of(message: pb.ContextContent, path: str = "content") -> Content:
    """Return the whole content of a context. Errors name fields below `path`, as all functions' here do."""
    match message.WhichOneof("content"):
        case "turns" if message.turns.turns:
            turns = enumerate(message.turns.turns)
            return TurnsContent(tuple(turn_of(turn, f"{path}.turns.turns.{index}") for index, turn in turns))
        case "text":
            return text_of(message.text, f"{path}.text")
        case "tokens":
            return tokens_of(message.tokens, f"{path}.tokens")
        case _:
            raise RequestError("give a content: turns (at least one), text or tokens", param=path)


def changes_of(request: pb.ChangeContextRequest) -> tuple[Replacement, ...] | FullRewrite:
    match request.WhichOneof("change"):
        case "edits" if request.edits.edits:
            edits = enumerate(request.edits.edits)
            return tuple(change_of(edit, f"edits.edits.{index}") for index, edit in edits)
        case "content":
            return FullRewrite(content_of(request.content))
        case _:
            raise RequestError("give a change: edits (at least one) or content", param="edits")


def change_of(edit: pb.ContextEdit, path: str) -> Replacement:
    return Replacement(place_of(edit, path), replacement_of(edit, path))


def place_of(edit: pb.ContextEdit, path: str) -> TokenRange | TextMatch:
    match edit.WhichOneof("place"):
        case "range":
            return TokenRange(edit.range.start, edit.range.end)
        case "find" if edit.find:
            return TextMatch(edit.find)
        case _:
            raise RequestError("say where an edit goes: either range or find", param=path)


def replacement_of(edit: pb.ContextEdit, path: str) -> TextContent | TokenContent:
    match edit.WhichOneof("content"):
        case "text":
            return text_of(edit.text, f"{path}.text")
        case "tokens":
            return tokens_of(edit.tokens, f"{path}.tokens")
        case _:
            raise RequestError("say what an edit puts in its place: text or tokens", param=path)


def turn_of(turn: pb.Turn, path: str) -> ContextTurn:
    return ContextTurn(role_of(turn.role, f"{path}.role"), parts_of(turn.parts, path))


def text_of(text: pb.TextParts, path: str) -> TextContent:
    return TextContent(parts_of(text.parts, path))


def parts_of(parts: Iterable[pb.TextPart], path: str) -> tuple[Part, ...]:
    return tuple(
        hole_of(part.hole, f"{path}.parts.{index}.hole") if part.WhichOneof("part") == "hole" else part.text
        for index, part in enumerate(parts)
    )


def tokens_of(tokens: pb.TokenParts, path: str) -> TokenContent:
    flat: list[int | Hole] = []
    for index, part in enumerate(tokens.parts):
        if part.WhichOneof("part") == "hole":
            flat.append(hole_of(part.hole, f"{path}.parts.{index}.hole"))
        else:
            flat += part.tokens.ids
    return TokenContent(tuple(flat))


def hole_of(length: int, path: str) -> Hole:
    if not 1 <= length <= MAX_HOLE:
        raise RequestError(f"a hole must be 1 to {MAX_HOLE} tokens long, got {length}", param=path)
    return Hole(length)


def role_of(role: str, path: str) -> str:
    """Return the role as the chat template names it."""
    if role not in ROLES:
        raise RequestError(f"a turn's role must be one of {', '.join(ROLES)}, got {role!r}", param=path)
    return ROLES[role]
