"""Make OpenAI's response bodies: a chat or a plain completion, whole or in chunks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from cluster.generation.events import Answer, Event, Finished, Text
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
        return _body(self.meta, "chat.completion.chunk", [], usage=usage(finished))

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
        return _body(self.meta, "text_completion", [], usage=usage(finished))

    def _chunk(self, text: str, reason: FinishReason | None) -> Json:
        return _body(self.meta, "text_completion", [{"text": text, **_choice(reason)}])


@dataclass(frozen=True)
class StreamedAnswer:
    """Makes the chunks of one streamed answer. If usage is requested, it is null in all chunks but the last."""

    shape: Shape
    include_usage: bool

    def first_chunks(self) -> Sequence[Json]:
        return [self._without_usage(chunk) for chunk in self.shape.first_chunks()]

    def chunks(self, event: Event) -> Sequence[Json]:
        match event:
            case Text(text):
                return [self._without_usage(self.shape.text_chunk(text))]
            case Finished():
                final = self._without_usage(self.shape.final_chunk(event))
                return [final, self.shape.usage_chunk(event)] if self.include_usage else [final]

    def _without_usage(self, chunk: Json) -> Json:
        return chunk | {"usage": None} if self.include_usage else chunk


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
    return {"usage": usage(finished), **done(finished)}


def done(finished: Finished) -> Json:
    """Return the fields about the work done and, if the request named a context, about the epochs that it read."""
    named = finished.context
    if named is None:
        return {"diffusion": work_done(finished.usage)}
    context = {"id": named.id, "mode": named.mode.value, "epochs": list(finished.usage.epochs)}
    return {"diffusion": work_done(finished.usage), "context": context}


def usage(finished: Finished) -> Json:
    counts = finished.usage
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
