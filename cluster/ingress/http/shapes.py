"""Make OpenAI's response bodies: a chat or a plain completion, whole or in chunks."""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

from cluster.generation.events import Accepted, Answer, Event, Finished, Text
from workers.api import FinishReason, Usage

Json = dict[str, Any]


@dataclass(frozen=True)
class ResponseMeta:
    """Holds the fields that all bodies of one response have in common."""

    id: str
    created: int
    """Seconds since 1970."""
    model: str


class Shape(Protocol):
    """Makes the bodies of one endpoint's answers."""

    def full_response(self, answer: Answer) -> Json:
        """Return the body of a response that isn't streamed."""
        ...

    def first_chunks(self) -> list[Json]:
        """Return the chunks that come before any text."""
        ...

    def text_chunk(self, text: str) -> Json: ...

    def final_chunk(self, finished: Finished) -> Json:
        """Return the chunk with the finish reason and the work done."""
        ...

    def usage_chunk(self, finished: Finished) -> Json:
        """Return the chunk that `stream_options.include_usage` asks for."""
        ...


@dataclass(frozen=True)
class ChatShape:
    meta: ResponseMeta

    def full_response(self, answer: Answer) -> Json:
        message = {"role": "assistant", "content": answer.text, "refusal": None}
        choice = {"message": message, **_choice(answer.finished.reason)}
        return _body(self.meta, "chat.completion", [choice], **_accounts(answer.finished))

    def first_chunks(self) -> list[Json]:
        return [self._chunk({"role": "assistant", "content": ""}, None)]

    def text_chunk(self, text: str) -> Json:
        return self._chunk({"content": text}, None)

    def final_chunk(self, finished: Finished) -> Json:
        return self._chunk({}, finished.reason) | done(finished)

    def usage_chunk(self, finished: Finished) -> Json:
        return _body(self.meta, "chat.completion.chunk", [], usage=usage(finished.usage))

    def _chunk(self, delta: Json, reason: FinishReason | None) -> Json:
        return _body(self.meta, "chat.completion.chunk", [{"delta": delta, **_choice(reason)}])


@dataclass(frozen=True)
class CompletionShape:
    meta: ResponseMeta

    def full_response(self, answer: Answer) -> Json:
        return self._chunk(answer.text, answer.finished.reason) | _accounts(answer.finished)

    def first_chunks(self) -> list[Json]:
        return []

    def text_chunk(self, text: str) -> Json:
        return self._chunk(text, None)

    def final_chunk(self, finished: Finished) -> Json:
        return self._chunk("", finished.reason) | done(finished)

    def usage_chunk(self, finished: Finished) -> Json:
        return _body(self.meta, "text_completion", [], usage=usage(finished.usage))

    def _chunk(self, text: str, reason: FinishReason | None) -> Json:
        return _body(self.meta, "text_completion", [{"text": text, **_choice(reason)}])


class UsageReports(enum.Enum):
    """Says which chunks of a stream report usage."""

    NEVER = "never"
    LAST = "last"
    """A last chunk without choices does; in the others, `usage` is null."""
    ALWAYS = "always"
    """Every chunk reports the usage so far."""


class StreamedAnswer:
    """Makes the chunks of one streamed answer."""

    def __init__(self, shape: Shape, reports: UsageReports) -> None:
        self._shape, self._reports = shape, reports
        self._is_open = False

    def first_chunks(self) -> Sequence[Json]:
        """Return the chunks that come before any text, unless they wait for the first event's usage."""
        return [] if self._reports is UsageReports.ALWAYS else self._opening(None)

    def chunks(self, event: Event) -> Sequence[Json]:
        match event:
            case Accepted():
                return ()
            case Text(text, counts):
                return [*self._opening(counts), self._reported(self._shape.text_chunk(text), counts)]
            case Finished(_, counts):
                final = self._reported(self._shape.final_chunk(event), counts)
                wants_usage = self._reports is not UsageReports.NEVER
                last = [self._shape.usage_chunk(event)] if wants_usage else []
                return [*self._opening(counts), final, *last]

    def _opening(self, counts: Usage | None) -> list[Json]:
        """Return the first chunks, once. They come before any token, whatever is committed already."""
        if self._is_open:
            return []
        self._is_open = True
        before = counts and replace(counts, completion_tokens=0)
        return [self._reported(chunk, before) for chunk in self._shape.first_chunks()]

    def _reported(self, chunk: Json, counts: Usage | None) -> Json:
        match self._reports:
            case UsageReports.NEVER:
                return chunk
            case UsageReports.LAST:
                return chunk | {"usage": None}
            case UsageReports.ALWAYS:
                return chunk | {"usage": counts and usage(counts)}


def _body(meta: ResponseMeta, kind: str, choices: list[Json], **more: Any) -> Json:
    return {
        "id": meta.id,
        "object": kind,
        "created": meta.created,
        "model": meta.model,
        "choices": choices,
        **more,
    }


def _choice(reason: FinishReason | None) -> Json:
    return {"index": 0, "logprobs": None, "finish_reason": reason.value if reason else None}


def _accounts(finished: Finished) -> Json:
    return {"usage": usage(finished.usage), **done(finished)}


def done(finished: Finished) -> Json:
    """Return the fields about the work done and, if the request named a context, about the epochs that it read."""
    named = finished.context
    if named is None:
        return {"diffusion": work_done(finished.usage)}
    context = {"id": named.id, "mode": named.mode.value, "epochs": list(finished.usage.epochs)}
    return {"diffusion": work_done(finished.usage), "context": context}


def usage(counts: Usage) -> Json:
    return {
        "prompt_tokens": counts.prompt_tokens,
        "completion_tokens": counts.completion_tokens,
        "total_tokens": counts.prompt_tokens + counts.completion_tokens,
        "prompt_tokens_details": {"cached_tokens": counts.cached_tokens},
    }


def work_done(counts: Usage) -> Json:
    """Return the work done, under the names of the request's `diffusion` object."""
    return {
        "policy": counts.policy,
        "steps": counts.num_steps,
        "forwards": counts.num_forwards,
        "prefix_tokens": counts.prefix_tokens,
        "reuse_depth": counts.reuse_depth,
        "depth_limited_by": counts.depth_limited_by.value if counts.depth_limited_by else None,
        "replica": counts.replica,
    }
