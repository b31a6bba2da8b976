"""One generation, whatever the transport: prompt in, text events out."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Protocol

from tenacity import AsyncRetrying, retry_if_exception_type, stop_after_attempt

from cache_service.client.client import CacheClient
from cluster.errors import ModelNotFoundError, NotReadyError, ReplicaLostError, RequestError, RequestTimeoutError
from cluster.generation.contexts.editing import PATIENCE_S, ContextService
from cluster.generation.encoding import TextEncoder
from cluster.generation.events import ContextChoice, Event, Finished, Text
from cluster.generation.stops import StopStrings
from cluster.generation.tokenization import Conversation, EncodedPrompt, Prompt, length_of
from cluster.metrics import IngressMetrics
from workers.api import (
    ContextEpoch,
    ContextRead,
    DecodingParams,
    FinishReason,
    GenerateChunk,
    GenerateRequest,
    ModelInfo,
)

MAX_STOPS, MAX_STOP_LENGTH = 16, 256
ATTEMPTS = 3
"""Replicas that one request is given, as long as nothing of its answer was sent."""


@dataclass(frozen=True)
class Call:
    """What a client asks for."""

    request_id: str
    """Unique over all requests."""
    prompt: Prompt
    suffix: str = ""
    """Text that follows what is generated."""
    model: str | None = None
    """None: the model that is served."""
    max_tokens: int | None = None
    """Canvas length; None: the model's default, as far as the context has room."""
    params: DecodingParams = field(default_factory=DecodingParams)
    stop: tuple[str, ...] = ()
    cache_salt: str = ""
    context: ContextChoice | None = None
    """Whose content the prompt follows."""


@dataclass(frozen=True)
class ResolvedPrompt:
    """Token ids, and whose content they begin with."""

    encoded: EncodedPrompt
    context: ContextRead | None = None


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

    async def model_info(self) -> ModelInfo | None:
        """What the replica serves that answers first; None where none does now."""
        ...


class InferenceService:
    """Validates, tokenizes, sends to the workers and turns committed tokens into text."""

    def __init__(
        self,
        workers: Workers,
        encoder: TextEncoder,
        metrics: IngressMetrics,
        contexts: CacheClient,
        *,
        name: str,
        max_tokens: int,
        timeout_s: float,
        contexts_patience_s: float = PATIENCE_S,
    ) -> None:
        """`max_tokens` is the canvas of a request that names none; `timeout_s` bounds every request. `contexts` reaches
        the cache service, where shared contexts live; it may be silent for `contexts_patience_s`.
        """
        self.name = name
        self.contexts = ContextService(contexts, encoder, self.model, metrics, patience_s=contexts_patience_s)
        self._workers = workers
        self._encoder = encoder
        self._tokenizer = encoder.tokenizer
        self._metrics = metrics
        self._max_tokens = max_tokens
        self._timeout_s = timeout_s
        self._info: ModelInfo | None = None
        self._probe: asyncio.Task[bool] | None = None

    async def ready(self) -> bool:
        """Whether a worker answers now."""
        info = await self._workers.model_info()
        self._info = info or self._info
        return info is not None

    async def model(self) -> ModelInfo:
        """The served model. Raises NotReadyError until a worker has started."""
        if self._info is None:
            if self._probe is None or self._probe.done():
                self._probe = asyncio.create_task(self.ready())
            await asyncio.shield(self._probe)  # one question to the workers for all who wait
        if self._info is None:
            raise NotReadyError("no worker is ready yet; try again shortly, or watch /health")
        return self._info

    def check_model(self, name: str | None) -> None:
        """Raises ModelNotFoundError for another model than the one that is served."""
        if name not in {None, "", self.name}:
            raise ModelNotFoundError(f"model {name!r} is not served here; this server has {self.name!r}")

    def text_of(self, token_ids: Sequence[int], *, special: bool = False) -> str:
        """With the names of special tokens, or without."""
        return self._tokenizer.text_of(token_ids, special=special)

    def text_within(self, token_ids: Sequence[int], positions: Sequence[int]) -> str:
        """What the tokens at the ascending `positions`, at least one, add to the text that they stand in."""
        return self._tokenizer.text_within(token_ids, positions)

    async def generate(self, call: Call, *, timeout_s: float | None = None) -> AsyncGenerator[Event, None]:
        """Texts, then one Finished. Closing the generator, or passing the deadline, stops the work.

        A replica that is lost before the first event is replaced by another one. Raises ModelNotFoundError,
        NotReadyError, RequestError, RequestTimeoutError, ReplicaLostError, and what the workers raise.
        """
        deadline = self.deadline(timeout_s)
        with self._metrics.request() as observed:
            for attempts_left in reversed(range(ATTEMPTS)):
                silent = True
                try:
                    async with aclosing(self._events(call, deadline)) as events:
                        async for event in events:
                            silent = False
                            observed.see(event)
                            yield event
                    return
                except ReplicaLostError:
                    if not (silent and attempts_left):
                        raise

    async def answer(self, call: Call, *, timeout_s: float | None = None) -> Answer:
        """The whole of `generate`; raises what it raises. As nothing is sent before the end, a lost replica's
        request begins anew on another one.
        """
        deadline = self.deadline(timeout_s)
        lost = retry_if_exception_type(ReplicaLostError)
        with self._metrics.request() as observed:
            async for attempt in AsyncRetrying(retry=lost, stop=stop_after_attempt(ATTEMPTS), reraise=True):
                with attempt:
                    answer = await self._collect(call, deadline)
            observed.see(answer.finished)
        return answer

    def deadline(self, timeout_s: float | None) -> float:
        """On the event loop's clock, for a client that waits `timeout_s`; None: as long as it takes."""
        bound = self._timeout_s if timeout_s is None else min(self._timeout_s, timeout_s)
        return asyncio.get_running_loop().time() + bound

    async def _collect(self, call: Call, deadline: float) -> Answer:
        texts: list[str] = []
        async with aclosing(self._events(call, deadline)) as events:
            async for event in events:
                match event:
                    case Text(text):
                        texts.append(text)
                    case Finished():
                        return Answer("".join(texts), event)
        raise AssertionError("a generation ends with Finished or an error")

    async def _events(self, call: Call, deadline: float) -> AsyncGenerator[Event, None]:
        """The last event waits until the workers' stream has ended: the replica is then known to be free again."""
        request = await self._request(call)
        before = () if isinstance(call.prompt, Conversation) else request.token_ids
        detokenizer, stops = self._tokenizer.detokenizer(before), StopStrings(call.stop)
        finished: Finished | None = None
        async with aclosing(self.chunks(request, deadline)) as chunks:
            async for chunk in chunks:
                text = stops.push(detokenizer.push(chunk.token_ids))
                if chunk.finish_reason is not None:
                    text += stops.push(detokenizer.finish()) + stops.finish()
                if text:
                    yield Text(text)
                reason = FinishReason.STOP if stops.stopped else chunk.finish_reason
                if reason is not None and chunk.usage is not None:
                    finished = Finished(reason, chunk.usage, call.context)
                if stops.stopped:
                    break
        if finished is None:
            raise ReplicaLostError("the worker ended this answer without its last part; ask again")
        yield finished

    async def chunks(self, request: GenerateRequest, deadline: float) -> AsyncGenerator[GenerateChunk, None]:
        """Of one replica; closing the generator, or passing the deadline, stops the work. Raises as `generate`."""
        async with aclosing(self._workers.generate(request)) as chunks:
            while (chunk := await self._before(deadline, chunks)) is not None:
                yield chunk

    async def _before(self, deadline: float, chunks: AsyncGenerator[GenerateChunk, None]) -> GenerateChunk | None:
        """The next chunk, if it comes before `deadline`; None at the end."""
        try:
            async with asyncio.timeout_at(deadline):
                return await anext(chunks, None)
        except TimeoutError as error:
            if await self._workers.model_info() is None:
                raise NotReadyError("no worker answers now; try again shortly, or watch /health") from error
            raise RequestTimeoutError(
                "the deadline has passed: ask for fewer tokens or steps, or raise limits.request_timeout_s"
            ) from error

    async def _request(self, call: Call) -> GenerateRequest:
        info = await self.model()
        self.check_model(call.model)
        prompt = await self._prompt(call, info)
        suffix = await self._encoder.run(len(call.suffix), lambda tokenizer: tokenizer.encode_suffix(call.suffix))
        if not (prompt.encoded.token_ids or suffix):
            raise RequestError("the prompt is empty: it must hold at least one token", param="prompt")
        num_given = len(prompt.encoded.token_ids) + len(suffix)
        canvas = self._canvas(call.max_tokens, num_given, info.context_length)
        return GenerateRequest(
            request_id=call.request_id,
            token_ids=prompt.encoded.token_ids,
            max_tokens=canvas,
            prefixes=prompt.encoded.candidates(info.fingerprint, call.cache_salt),
            params=call.params,
            suffix=suffix,
            context=prompt.context,
        )

    async def _prompt(self, call: Call, info: ModelInfo) -> ResolvedPrompt:
        """The newest content of the context at the time of this call, if there is one, and what follows it."""
        length = length_of(call.prompt)
        if call.context is None:
            return ResolvedPrompt(await self._encoder.run(length, lambda tokenizer: tokenizer.encode(call.prompt)))
        context = await self.contexts.read_to_generate(call.context.id, call.cache_salt)
        num_tokens, at = len(context.token_ids), ContextEpoch(context.id, context.epoch)
        behind = await self._encoder.run(length, lambda tokenizer: tokenizer.encode_behind(call.prompt, num_tokens))
        whole = EncodedPrompt(
            context.token_ids + behind.token_ids, (num_tokens, *(num_tokens + length for length in behind.boundaries))
        )
        return ResolvedPrompt(whole, ContextRead(at, num_tokens, call.context.mode, call.context.max_staleness))

    def _canvas(self, asked: int | None, prompt_tokens: int, context_length: int) -> int:
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
