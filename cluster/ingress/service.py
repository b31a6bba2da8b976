"""One generation, whatever the transport: prompt in, text events out."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Protocol

from cluster.errors import ModelNotFoundError, NotReadyError, ReplicaLostError, RequestError, RequestTimeoutError
from cluster.ingress.stops import StopStrings
from cluster.metrics import IngressMetrics
from cluster.tokenization import EncodedPrompt, Prompt, Tokenization
from workers.api import DecodingParams, FinishReason, GenerateChunk, GenerateRequest, ModelInfo, Usage


@dataclass(frozen=True)
class Call:
    """What a client asks for."""

    request_id: str
    """Unique over all requests."""
    prompt: Prompt
    model: str | None = None
    """None: the model that is served."""
    max_tokens: int | None = None
    """Canvas length; None: the model's default, as far as the context has room."""
    params: DecodingParams = field(default_factory=DecodingParams)
    stop: tuple[str, ...] = ()
    cache_salt: str = ""


@dataclass(frozen=True)
class Text:
    """Committed text, in order and never empty."""

    text: str


@dataclass(frozen=True)
class Finished:
    """The last event of an answer."""

    reason: FinishReason
    usage: Usage


Event = Text | Finished


@dataclass(frozen=True)
class Answer:
    """All events of one generation in one value."""

    text: str
    finished: Finished


class Workers(Protocol):
    """The worker replicas, behind whatever routes to them."""

    def generate(self, request: GenerateRequest) -> AsyncGenerator[GenerateChunk, None]:
        """Chunks in order; closing the generator stops the work."""
        ...

    async def model_infos(self) -> Sequence[ModelInfo]:
        """What each replica that answers now serves; empty where none does."""
        ...


class InferenceService:
    """Validates, tokenizes, sends to the workers and turns committed tokens into text."""

    def __init__(
        self,
        workers: Workers,
        tokenization: Tokenization,
        metrics: IngressMetrics,
        *,
        name: str,
        max_tokens: int,
        timeout_s: float,
    ) -> None:
        """`max_tokens` is the canvas of a request that names none; `timeout_s` bounds every request."""
        self.name = name
        self._workers = workers
        self._tokenization = tokenization
        self._metrics = metrics
        self._max_tokens = max_tokens
        self._timeout_s = timeout_s
        self._info: ModelInfo | None = None

    async def ready(self) -> bool:
        """Whether a worker answers now."""
        infos = await self._workers.model_infos()
        self._info = infos[0] if infos else self._info
        return bool(infos)

    async def model(self) -> ModelInfo:
        """The served model. Raises NotReadyError until a worker has started."""
        if self._info is None:
            await self.ready()
        if self._info is None:
            raise NotReadyError("no worker is ready yet; try again shortly, or watch /health")
        return self._info

    async def generate(self, call: Call, *, timeout_s: float | None = None) -> AsyncGenerator[Event, None]:
        """Texts, then one Finished. Closing the generator, or passing the deadline, stops the work.

        Raises ModelNotFoundError, NotReadyError, RequestError, RequestTimeoutError, and what the workers raise.
        """
        with self._metrics.request() as observed:
            async with aclosing(self._events(call, timeout_s)) as events:
                async for event in events:
                    match event:
                        case Text():
                            observed.text()
                        case Finished(reason, usage):
                            observed.finished(reason, usage)
                    yield event

    async def _events(self, call: Call, timeout_s: float | None) -> AsyncGenerator[Event, None]:
        """The last event waits until the workers' stream has ended: the replica is then known to be free again."""
        timeout_s = min(self._timeout_s, timeout_s) if timeout_s is not None else self._timeout_s
        deadline = asyncio.get_running_loop().time() + timeout_s
        request = await self._request(call)
        detokenizer, stops = self._tokenization.detokenizer(), StopStrings(call.stop)
        finished: Finished | None = None
        async with aclosing(self._workers.generate(request)) as chunks:
            while (chunk := await self._before(deadline, timeout_s, chunks)) is not None:
                text = stops.push(detokenizer.push(chunk.token_ids))
                if chunk.finish_reason is not None and chunk.usage is not None:
                    text += stops.push(detokenizer.finish()) + stops.finish()
                    reason = FinishReason.STOP if stops.stopped else chunk.finish_reason
                    finished = Finished(reason, chunk.usage)
                if text:
                    yield Text(text)
        if finished is None:
            raise ReplicaLostError("the worker ended this answer without its last part; ask again")
        yield finished

    async def answer(self, call: Call, *, timeout_s: float | None = None) -> Answer:
        """The whole of `generate`; raises what it raises."""
        texts: list[str] = []
        async with aclosing(self.generate(call, timeout_s=timeout_s)) as events:
            async for event in events:
                match event:
                    case Text(text):
                        texts.append(text)
                    case Finished() as finished:
                        return Answer("".join(texts), finished)
        raise AssertionError("a generation ends with Finished or an error")

    async def _before(
        self, deadline: float, timeout_s: float, chunks: AsyncGenerator[GenerateChunk, None]
    ) -> GenerateChunk | None:
        """The next chunk, if it comes before `deadline`; None at the end."""
        try:
            async with asyncio.timeout_at(deadline):
                return await anext(chunks, None)
        except TimeoutError as error:
            if not await self._workers.model_infos():
                raise NotReadyError("no worker answers now; try again shortly, or watch /health") from error
            raise RequestTimeoutError(
                f"no answer within {timeout_s:g} s: ask for fewer tokens or steps, or raise limits.request_timeout_s"
            ) from error

    async def _request(self, call: Call) -> GenerateRequest:
        info = await self.model()
        if call.model not in {None, "", self.name}:
            raise ModelNotFoundError(f"model {call.model!r} is not served here; this server has {self.name!r}")
        prompt = self._tokenization.encode(call.prompt)
        return GenerateRequest(
            request_id=call.request_id,
            token_ids=prompt.token_ids,
            max_tokens=self._canvas(call.max_tokens, prompt, info.context_length),
            prefixes=prompt.candidates(info.fingerprint, call.cache_salt),
            params=call.params,
        )

    def _canvas(self, asked: int | None, prompt: EncodedPrompt, context_length: int) -> int:
        prompt_tokens = len(prompt.token_ids)
        room = context_length - prompt_tokens
        canvas = min(self._max_tokens, room) if asked is None else asked
        if canvas > room or room < 1:
            raise RequestError(
                f"the context holds {context_length} tokens; the prompt has {prompt_tokens} and max_tokens asks for "
                f"{asked or self._max_tokens} more: shorten the prompt or lower max_tokens",
                param="max_tokens",
                code="context_length_exceeded",
            )
        return canvas
