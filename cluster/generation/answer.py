"""Run one generation, for both transports: take a client's call and return text.

A chat answer passes through five generators: the engine's queue, the deployment, the replicas, `InferenceService.run`
and the server-sent events. Deadlines and lost replicas are handled here, and nowhere else.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import AbstractContextManager, aclosing
from functools import partial
from types import TracebackType
from typing import Protocol, Self, TypeVar

from cache_service.client.client import CacheClient
from cache_service.client.contact import WatchContact
from cluster.background import BackgroundTasks
from cluster.errors import NotReadyError, ReplicaLostError, RequestTimeoutError
from cluster.generation.admission import Admission
from cluster.generation.catalogue import ModelCatalogue
from cluster.generation.contexts.editing import PATIENCE_S, ContextService
from cluster.generation.encoding import TextEncoder
from cluster.generation.events import Accepted, Answer, Event, FilledBlock
from cluster.generation.prompts import GenerationCall, RequestBuilder
from cluster.generation.readers import AnswerReader, BlockReader, Reader, TextReader
from cluster.generation.tokenization import Conversation
from cluster.generation.workers import Workers
from cluster.metrics import IngressMetrics
from workers.api import GenerateChunk, GenerateRequest

ATTEMPTS = 3
"""Maximum number of replicas on which one request is tried, before any part of its answer is delivered."""

T = TypeVar("T")
T_contra = TypeVar("T_contra", contravariant=True)


class Observation(Protocol[T_contra]):
    """Observes one run from its start to its last delivery."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    def observe(self, delivered: T_contra) -> None: ...


class NullObservation:
    """Ignores a run that is part of another run, which is observed as a whole."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        pass

    def observe(self, delivered: object) -> None:
        pass


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
        background: BackgroundTasks,
        contexts_patience_s: float = PATIENCE_S,
        contact: WatchContact | None = None,
    ) -> None:
        """Serve the workers' model under `name`.

        `max_tokens` is the canvas of a request that names none; `timeout_s` bounds every request. `contexts` calls
        the cache service, which keeps shared contexts; calls are retried for `contexts_patience_s`. If a `background`
        task ends, the service isn't healthy. `contact` says whether the router hears from the cache service.
        """
        self.catalogue = ModelCatalogue(workers, name)
        model = self.catalogue.model
        self.contexts = ContextService(contexts, encoder, model, metrics, patience_s=contexts_patience_s)
        self._requests = RequestBuilder(self.catalogue, encoder, self.contexts, max_tokens)
        self._workers, self._tokenizer, self._metrics = workers, encoder.tokenizer, metrics
        self._timeout_s, self.background = timeout_s, background
        self.contact = contact or WatchContact()
        self.admission = Admission()

    async def check_health(self) -> None:
        """Raise BackgroundTaskError if a background task has ended, DrainingError if new requests are refused, or
        NotReadyError if no worker answers now.
        """
        self.background.check()
        self.admission.check()
        if not await self.catalogue.is_ready():
            raise NotReadyError("no worker is ready")

    def text_of(self, token_ids: Sequence[int], *, special: bool = False) -> str:
        """Return the tokens' text, with the names of special tokens or without."""
        return self._tokenizer.text_of(token_ids, special=special)

    def text_within(self, token_ids: Sequence[int], positions: Sequence[int]) -> str:
        """Return what the tokens at `positions` (ascending, at least one) add to the text around them."""
        return self._tokenizer.text_within(token_ids, positions)

    def generate(self, call: GenerationCall, *, timeout_s: float | None = None) -> AsyncGenerator[Event, None]:
        """Yield an Accepted, texts, then one Finished. Closing the generator, or passing the deadline, stops the work.

        A replica that is lost before the first text is replaced by another one. Raises DrainingError,
        ModelNotFoundError, NotReadyError, RequestError, RequestTimeoutError, ReplicaLostError, and the workers' errors.
        """
        reader = partial(self._text_reader, call)
        observation = self.admission.admit(self._metrics.request())
        return self.run(partial(self._requests.build, call), reader, observation, self.deadline(timeout_s))

    async def answer(self, call: GenerationCall, *, timeout_s: float | None = None) -> Answer:
        """Return everything that `generate` yields as one value; raises what it raises.

        Since nothing is delivered before the end, the request of a lost replica always restarts on another one.
        """

        def reader(request: GenerateRequest) -> AnswerReader:
            return AnswerReader(self._text_reader(call, request))

        observation = self.admission.admit(self._metrics.request())
        build = partial(self._requests.build, call)
        return await only_item(self.run(build, reader, observation, self.deadline(timeout_s)))

    def fill(self, request: GenerateRequest, deadline: float) -> AsyncGenerator[Accepted | FilledBlock, None]:
        """Yield an Accepted, then the tokens of the request's holes. Raises what `generate` raises."""

        async def build() -> GenerateRequest:
            return request

        return self.run(build, lambda _: BlockReader(), NullObservation(), deadline)

    def deadline(self, timeout_s: float | None) -> float:
        """Return the deadline on the event loop's clock: in `timeout_s`, or earlier if the service's limit is lower."""
        bound = self._timeout_s if timeout_s is None else min(self._timeout_s, timeout_s)
        return asyncio.get_running_loop().time() + bound

    async def run(
        self,
        build: Callable[[], Awaitable[GenerateRequest]],
        new_reader: Callable[[GenerateRequest], Reader[T]],
        observation: AbstractContextManager[Observation[T]],
        deadline: float,
    ) -> AsyncGenerator[T, None]:
        """Yield the results that the reader makes of the workers' chunks.

        If a replica is lost before it delivered more than its acceptance, another attempt follows, whose acceptance
        isn't delivered again. The last delivery waits until the workers' stream has ended: the replica is then known
        to be free again.
        """
        with observation as observed:
            request, is_accepted = await build(), False
            for attempts_left in reversed(range(ATTEMPTS)):
                reader, is_silent = new_reader(request), True
                try:
                    async with aclosing(self._workers.generate(request)) as chunks:
                        while not reader.has_enough and (chunk := await self._next_chunk(chunks, deadline)) is not None:
                            for delivered in reader.read(chunk):
                                if not isinstance(delivered, Accepted):
                                    is_silent = False
                                elif is_accepted:
                                    continue
                                is_accepted = True
                                observed.observe(delivered)
                                yield delivered
                    last = reader.finish()
                except ReplicaLostError as error:
                    if not is_silent:
                        raise ReplicaLostError(
                            "the replica was lost after a part of this answer had been sent; ask again"
                        ) from error
                    if not attempts_left:
                        raise ReplicaLostError(
                            f"{ATTEMPTS} replicas were lost, one after the other, before they had answered this "
                            "request; try again shortly, or watch /health"
                        ) from error
                else:
                    observed.observe(last)
                    yield last
                    return

    async def _next_chunk(self, chunks: AsyncGenerator[GenerateChunk, None], deadline: float) -> GenerateChunk | None:
        """Return the next chunk, None at the end. Raises RequestTimeoutError once `deadline` has passed."""
        try:
            async with asyncio.timeout_at(deadline):
                return await anext(chunks, None)
        except TimeoutError as error:
            if await self._workers.model_info() is None:
                raise NotReadyError("no worker answers now; try again shortly, or watch /health") from error
            raise RequestTimeoutError(
                "the deadline has passed: ask for fewer tokens or steps, or raise limits.request_timeout_s"
            ) from error

    def _text_reader(self, call: GenerationCall, request: GenerateRequest) -> TextReader:
        before = () if isinstance(call.prompt, Conversation) else request.token_ids
        return TextReader(self._tokenizer.detokenizer(before), call.stop, call.context)


async def only_item(items: AsyncGenerator[T, None]) -> T:
    """Return the one item that `items` yields, and close it."""
    async with aclosing(items):
        return await anext(items)
