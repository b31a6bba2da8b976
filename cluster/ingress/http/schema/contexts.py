"""Define the request bodies of `/v1/contexts`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import Discriminator, Field, Tag, ValidationInfo, field_validator, model_validator
from pydantic_core import PydanticCustomError

from cache_service.core.lifetimes import MAX_TTL_S, MIN_TTL_S
from cache_service.core.types import Epoch
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
from cluster.ingress.http.schema.declared import Body
from cluster.ingress.http.schema.generation import SamplingBody
from cluster.ingress.http.schema.messages import ReplayedFields, TextPart


class MaskPart(Body):
    """Describes a hole of `length` tokens in a list of parts."""

    type: Literal["mask"]
    length: int = Field(ge=1, le=MAX_HOLE)


def tag_of(part: object) -> str | None:
    """Return the tag of a part by its type. It looks like no field, so that errors' paths can leave it out."""
    kind = part.get("type") if isinstance(part, dict) else getattr(part, "type", None)
    return {"text": "a text", "mask": "a mask"}.get(str(kind))


PartBody = Annotated[
    Annotated[TextPart, Tag("a text")] | Annotated[MaskPart, Tag("a mask")],
    Discriminator(tag_of, custom_error_type="part_type", custom_error_message="a part's type must be text or mask"),
]
Written = str | Annotated[list[PartBody], Field(fail_fast=True)]
"""Text, or text and holes in turn."""
Position = Annotated[int, Field(ge=0)]
TimeToLive = Annotated[float, Field(ge=MIN_TTL_S, le=MAX_TTL_S)]
SOURCES = ("edits", "text", "token_ids", "messages")
"""Fields of a change, of which it has exactly one."""


def parts_of(written: Written) -> tuple[Part, ...]:
    if isinstance(written, str):
        return (written,)
    return tuple(part.text if isinstance(part, TextPart) else Hole(part.length) for part in written)


class TurnBody(ReplayedFields):
    role: Literal["system", "developer", "user", "assistant"]
    content: Written

    def to_turn(self) -> ContextTurn:
        return ContextTurn("system" if self.role == "developer" else self.role, parts_of(self.content))


class PlainBody(Body):
    """Holds content given as text or as token ids, either with holes."""

    text: Written | None = None
    token_ids: Annotated[list[int | MaskPart], Field(fail_fast=True)] | None = None

    def plain(self) -> TextContent | TokenContent:
        if self.text is not None:
            return TextContent(parts_of(self.text))
        return TokenContent(tuple(Hole(i.length) if isinstance(i, MaskPart) else i for i in self.token_ids or ()))


class ContentBody(PlainBody):
    """Holds the whole content of a context."""

    messages: list[TurnBody] | None = Field(default=None, min_length=1, fail_fast=True)
    cache_salt: str | None = None

    def to_content(self) -> Content:
        if self.messages is not None:
            return TurnsContent(tuple(message.to_turn() for message in self.messages))
        return self.plain()


class CreateContextBody(ContentBody):
    """Describes the body of POST /v1/contexts."""

    ttl_s: TimeToLive | None = None

    @model_validator(mode="after")
    def one_source(self) -> CreateContextBody:
        require_one(self, "text", "token_ids", "messages")
        return self


class EditBody(PlainBody):
    """Replaces positions start..end-1, or a text that occurs exactly once in the context."""

    start: Position | None = None
    end: Position | None = None
    find: Annotated[str, Field(min_length=1)] | None = None

    @model_validator(mode="after")
    def one_place(self) -> EditBody:
        require_one(self, "text", "token_ids")
        if (self.find is None) == (self.start is None) or (self.start is None) != (self.end is None):
            raise ValueError("an edit needs a position: either find, or start and end")
        return self

    def to_change(self) -> Replacement:
        content = self.plain()
        if self.find is not None:
            return Replacement(TextMatch(self.find), content)
        return Replacement(TokenRange(self.start or 0, self.end or 0), content)


class ChangeContextBody(ContentBody):
    """Describes the body of PATCH /v1/contexts/{id}. A body that has only `ttl_s` begins the time to live again."""

    edits: list[EditBody] | None = Field(default=None, min_length=1, fail_fast=True)
    ttl_s: TimeToLive | None = None
    expected_epoch: int | None = Field(default=None, ge=0, validate_default=True)

    @field_validator("expected_epoch")
    @classmethod
    def epoch_of_a_change(cls, value: int | None, info: ValidationInfo) -> int | None:
        """Require the epoch for all but a renewal. The fields above are validated before; an invalid one is absent."""
        if value is None and "ttl_s" in info.data and not is_renewal(info.data):
            raise PydanticCustomError("missing", "give the epoch for which the change was made")
        return value

    @model_validator(mode="after")
    def one_source(self) -> ChangeContextBody:
        if not is_renewal(vars(self)):
            require_one(self, *SOURCES)
        return self

    @property
    def renewed_ttl_s(self) -> float | None:
        """Return the new time to live if the body changes nothing else."""
        return self.ttl_s if is_renewal(vars(self)) else None

    @property
    def expected(self) -> Epoch | None:
        return None if self.expected_epoch is None else Epoch(self.expected_epoch)

    def to_changes(self) -> tuple[Replacement, ...] | FullRewrite:
        if self.edits is None:
            return FullRewrite(self.to_content())
        return tuple(edit.to_change() for edit in self.edits)


class DenoiseBody(SamplingBody):
    """Describes the body of POST /v1/contexts/{id}/denoise."""


def is_renewal(fields: Mapping[str, object]) -> bool:
    """Return whether the fields of a change set a time to live, and no content."""
    return fields.get("ttl_s") is not None and all(fields.get(name) is None for name in SOURCES)


def require_one(body: Body, *names: str) -> None:
    """Raise ValueError unless exactly one of these fields is given."""
    given = [name for name in names if getattr(body, name) is not None]
    if len(given) != 1:
        raise ValueError(f"give one of {', '.join(names)}; got {' and '.join(given) or 'none'}")
