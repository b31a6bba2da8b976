"""Define the turns of a chat, as clients write them and as they replay what they were answered."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from cluster.generation.tokenization import Message
from cluster.ingress.http.schema.declared import Body
from cluster.ingress.http.schema.neutral import Ignored, only

NO_TOOLS = "tools are not supported"
TEXT_ONLY = "only text messages are supported"


class TextPart(Body):
    """Holds a piece of text. What surrounds it in other APIs changes nothing here."""

    type: Literal["text"]
    text: str
    cache_control: Ignored = None
    annotations: Ignored = None


class ReplayedFields(Body):
    """Holds what stands beside role and content: a message of a response is a turn, with all that came with it."""

    refusal: Annotated[Any, only(reason="refusals are not supported")] = None
    tool_calls: Annotated[Any, only(reason=NO_TOOLS)] = None
    tool_call_id: Annotated[Any, only(reason=NO_TOOLS)] = None
    function_call: Annotated[Any, only(reason=NO_TOOLS)] = None
    audio: Annotated[Any, only(reason=TEXT_ONLY)] = None
    images: Annotated[Any, only(reason=TEXT_ONLY)] = None
    prefix: Annotated[Any, only(False, reason="continuing a message is not supported")] = None
    type: Annotated[Any, only("text", "message", reason=TEXT_ONLY)] = None

    name: Ignored = None
    annotations: Ignored = None
    reasoning: Ignored = None
    reasoning_content: Ignored = None
    reasoning_details: Ignored = None
    thinking_blocks: Ignored = None
    provider_specific_fields: Ignored = None
    cache_control: Ignored = None
    id: Ignored = None
    status: Ignored = None

    @model_validator(mode="before")
    @classmethod
    def with_content(cls, data: Any) -> Any:
        """Read an answer without content as an empty one."""
        if isinstance(data, dict) and data.get("role") == "assistant" and data.get("content") is None:
            return data | {"content": ""}
        return data


class MessageBody(ReplayedFields):
    """Holds one turn."""

    role: Literal["system", "developer", "user", "assistant"]
    content: str | Annotated[list[TextPart], Field(fail_fast=True)]

    def to_message(self) -> Message:
        parts = [self.content] if isinstance(self.content, str) else [part.text for part in self.content]
        return Message("system" if self.role == "developer" else self.role, "".join(parts))
