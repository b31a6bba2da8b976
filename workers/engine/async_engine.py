"""The engine for asyncio callers: one thread steps it, every request has a queue of its own."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections import deque
from collections.abc import AsyncGenerator, Callable, Sequence
from concurrent.futures import Future
from contextlib import suppress
from functools import partial
from types import TracebackType
from typing import Protocol, Self, TypeVar

from cache_service.core.types import Context
from workers.api import ContextRead, ContextReply, GenerateChunk, GenerateRequest, WorkerStats
from workers.bicache.entry import Changes
from workers.bicache.entry_table import EntryCommands
from workers.engine.engine import Engine
from workers.engine.runner import step_failed
from workers.errors import EngineClosedError, WorkerError
from workers.scheduler.plan import Failure, Question
from workers.scheduler.scheduler import Outcome

logger = logging.getLogger(__name__)

Command = Callable[[], None]
T = TypeVar("T")


class Outside(Protocol):
    """Who hears of an engine's entries and knows of contexts. Called on the engine's thread; returns at once."""

    def apply(self, changes: Changes) -> None:
        """What became of prefix entries."""
        ...

    def ask(self, read: ContextRead, reply: ContextReply) -> None:
        """See to it that `reply` is called, once, with the newest content of what `read` reads."""
        ...


class Nobody:
    """The outside of an engine by itself."""

    def apply(self, changes: Changes) -> None:
        pass

    def ask(self, _read: ContextRead, reply: ContextReply) -> None:
        reply(None)


class Stream:
    """What one caller reads, on the caller's event loop."""

    def __init__(self) -> None:
        self.loop = asyncio.get_running_loop()
        self.started = time.monotonic()
        self._queue: asyncio.Queue[Outcome] = asyncio.Queue()

    def put(self, outcome: Outcome) -> None:
        self._queue.put_nowait(outcome)

    async def get(self) -> Outcome:
        return await self._queue.get()


Told = tuple[Stream, Outcome]


def tell(told: Sequence[Told]) -> None:
    """From any thread: wakes each event loop once, however many of its streams there is news for."""
    by_loop: dict[asyncio.AbstractEventLoop, list[Told]] = {}
    for stream, outcome in told:
        by_loop.setdefault(stream.loop, []).append((stream, outcome))
    for loop, news in by_loop.items():
        with suppress(RuntimeError):  # the callers' loop is closed, and the callers with it
            loop.call_soon_threadsafe(put_all, news)


def put_all(told: Sequence[Told]) -> None:
    for stream, outcome in told:
        stream.put(outcome)


class AsyncEngine:
    """Steps an engine on a dedicated thread between entering and leaving the `with` block."""

    def __init__(
        self,
        engine: Engine,
        *,
        on_step: Sequence[Callable[[float], None]] = (),
        on_answer: Sequence[Callable[[float], None]] = (),
    ) -> None:
        """On the engine's thread, `on_step` hears of each step's seconds and `on_answer` of each answered request's."""
        self._engine, self._on_step, self._on_answer = engine, on_step, on_answer
        self._outside: Outside = Nobody()
        self._wake = threading.Condition()
        self._commands: deque[Command] = deque()
        self._closed = False
        self._streams: dict[str, Stream] = {}
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)

    def connect(self, outside: Outside) -> None:
        """Called before the `with` block is entered, if there is anybody outside."""
        self._outside = outside

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End the thread after its current step; open requests fail with EngineClosedError."""
        with self._wake:
            self._closed = True
            self._wake.notify()
        self._thread.join()

    @property
    def is_alive(self) -> bool:
        return self._thread.is_alive()

    @property
    def num_running(self) -> int:
        return self._engine.stats().num_running

    def stats(self) -> WorkerStats:
        return self._engine.stats()

    async def generate(self, request: GenerateRequest) -> AsyncGenerator[GenerateChunk, None]:
        """Chunks until the one with a finish reason. Raises WorkerError; closing the generator aborts the request."""
        stream = Stream()
        self._post(lambda: self._submit(request, stream))
        try:
            while True:
                outcome = await stream.get()
                if isinstance(outcome, Failure):
                    raise outcome.error
                yield outcome
                if outcome.finish_reason is not None:
                    return
        finally:
            with suppress(EngineClosedError):
                self._post(lambda: self._abandon(request.request_id, stream))

    def _reply(self, question: Question, newest: Context | None) -> None:
        with suppress(EngineClosedError):
            self._post(lambda: self._deliver(self._engine.answer(question, newest)))

    def call(self, command: Callable[[EntryCommands], T]) -> Future[T]:
        """Run `command` on the engine's thread between two steps. Raises EngineClosedError."""
        future: Future[T] = Future()

        def run() -> None:
            if not future.set_running_or_notify_cancel():
                return
            try:
                future.set_result(self._engine.tend(command))
            except Exception as error:
                future.set_exception(error)

        self._post(run)
        return future

    def _post(self, command: Command) -> None:
        with self._wake:
            if self._closed:
                raise EngineClosedError("the worker is shutting down")
            self._commands.append(command)
            self._wake.notify()

    # Below: the engine's thread only.

    def _run(self) -> None:
        try:
            while self._work():
                started = time.monotonic()
                outcomes = self._step()
                for listener in self._on_step:
                    listener(time.monotonic() - started)
                self._tell_changes()
                for question in self._engine.take_questions():
                    self._outside.ask(question.read, partial(self._reply, question))
                self._deliver(outcomes)
        finally:
            with self._wake:
                self._closed = True
            self._take_commands()
            self._deliver(self._engine.fail_all(EngineClosedError("the worker is shutting down")))

    def _work(self) -> bool:
        """Wait for and carry out commands until there is something to step; False once closed."""
        while True:
            with self._wake:
                while not (self._commands or self._closed or self._engine.has_work):
                    self._wake.wait()
            self._take_commands()
            self._tell_changes()
            if self._closed or self._engine.has_work:
                return not self._closed
            self._engine.check_integrity()

    def _tell_changes(self) -> None:
        while changes := self._engine.take_changes():
            self._outside.apply(changes)

    def _take_commands(self) -> None:
        while self._commands:
            self._commands.popleft()()

    def _step(self) -> list[Outcome]:
        try:
            return self._engine.step()
        except Exception as error:
            return self._engine.fail_all(step_failed(error))

    def _deliver(self, outcomes: list[Outcome]) -> None:
        told: list[Told] = []
        for outcome in outcomes:
            stream = self._streams[outcome.request_id]
            told.append((stream, outcome))
            if isinstance(outcome, Failure):
                del self._streams[outcome.request_id]
            elif outcome.finish_reason is not None:
                del self._streams[outcome.request_id]
                for listener in self._on_answer:
                    listener(time.monotonic() - stream.started)
        tell(told)

    def _submit(self, request: GenerateRequest, stream: Stream) -> None:
        try:
            self._engine.submit(request)
        except WorkerError as error:
            tell([(stream, Failure(request.request_id, error))])
        else:
            self._streams[request.request_id] = stream

    def _abandon(self, request_id: str, stream: Stream) -> None:
        if self._streams.get(request_id) is stream:
            del self._streams[request_id]
            self._engine.abort(request_id)
