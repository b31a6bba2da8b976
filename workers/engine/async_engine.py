"""Serves asyncio callers with an engine: one thread steps it, and every request has a stream of its own."""

from __future__ import annotations

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
from workers.engine.faults import EngineFault, FaultRecorder
from workers.engine.streams import Delivery, Stream, deliver
from workers.errors import EngineClosedError, StepFailedError, WorkerError
from workers.scheduler.plan import EpochQuestion, Failure
from workers.scheduler.scheduler import Outcome

Command = Callable[[], None]
T = TypeVar("T")


class EngineObserver(Protocol):
    """Follows an engine's entries, and answers its questions about contexts.

    The engine's thread calls it, so that every method returns at once.
    """

    def apply(self, changes: Changes) -> None:
        """Process changes to prefix entries."""
        ...

    def ask(self, read: ContextRead, reply: ContextReply) -> None:
        """Call `reply` once, later, with the newest content of the context that `read` names."""
        ...


class NullObserver:
    """Observes nothing, for an engine that runs by itself."""

    def apply(self, changes: Changes) -> None:
        pass

    def ask(self, _read: ContextRead, reply: ContextReply) -> None:
        reply(None)


class AsyncEngine:
    """Steps an engine on a dedicated thread between entering and leaving the `with` block.

    An exception on that thread is logged and counted, and ends only the request that it belongs to. Only a failed
    integrity check of the engine ends the thread; `end_reason` then says why.
    """

    def __init__(
        self,
        engine: Engine,
        *,
        on_step: Sequence[Callable[[float], None]] = (),
        on_answer: Sequence[Callable[[float], None]] = (),
        on_fault: Sequence[Callable[[EngineFault], None]] = (),
    ) -> None:
        """Call the listeners on the engine's thread: `on_step` with the seconds of each step, `on_answer` with those of
        each answered request, `on_fault` with the part that raised, after each exception that was caught.
        """
        self._engine = engine
        self._on_step, self._on_answer, self._faults = on_step, on_answer, FaultRecorder(on_fault)
        self._observer: EngineObserver = NullObserver()
        self._wake = threading.Condition()
        self._commands: deque[Command] = deque()
        self._closed = False
        self._end_reason: str | None = None
        self._streams: dict[str, Stream] = {}
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)

    def connect(self, observer: EngineObserver) -> None:
        """Notify `observer` from now on; call this before the `with` block is entered."""
        self._observer = observer

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End the thread after its current step; fail open requests with EngineClosedError."""
        with self._wake:
            self._closed = True
            self._wake.notify()
        self._thread.join()

    @property
    def is_alive(self) -> bool:
        return self._thread.is_alive() and self._end_reason is None

    @property
    def end_reason(self) -> str:
        """Return the reason why the engine no longer accepts requests."""
        return self._end_reason or "the worker is shutting down"

    @property
    def num_running(self) -> int:
        return self._engine.stats().num_running

    def stats(self) -> WorkerStats:
        return self._engine.stats()

    async def generate(self, request: GenerateRequest) -> AsyncGenerator[GenerateChunk, None]:
        """Yield the acceptance, then chunks up to the one with a finish reason. Raises WorkerError.

        Closing the generator aborts the request.
        """
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

    def call(self, command: Callable[[EntryCommands], T]) -> Future[T]:
        """Run `command` on the engine's thread between two steps. Raises EngineClosedError."""
        future: Future[T] = Future()

        def run() -> None:
            if not future.set_running_or_notify_cancel():
                return
            try:
                future.set_result(self._engine.with_entries(command))
            except Exception as error:
                future.set_exception(error)
                raise

        self._post(run)
        return future

    def _post(self, command: Command) -> None:
        with self._wake:
            if self._closed:
                raise EngineClosedError(self.end_reason)
            self._commands.append(command)
            self._wake.notify()

    def _reply(self, question: EpochQuestion, newest: Context | None) -> None:
        with suppress(EngineClosedError):
            self._post(lambda: self._answer(question, newest))

    # Below: the engine's thread only.

    def _run(self) -> None:
        try:
            while self._work():
                started = time.monotonic()
                outcomes = self._step()
                self._notify(self._on_step, time.monotonic() - started)
                self._report_changes()
                for question in self._engine.take_questions():
                    self._ask(question)
                self._deliver(outcomes)
        except BaseException as error:
            self._faults.record(EngineFault.THREAD, error)
            self._end_reason = f"the engine's thread has ended: {error!r}"
        finally:
            self._close()

    def _work(self) -> bool:
        """Wait for commands and run them until the engine can step; return False once closed."""
        while True:
            with self._wake:
                while not (self._commands or self._closed or self._engine.has_work):
                    self._wake.wait()
            self._run_commands()
            self._report_changes()
            if self._closed or self._engine.has_work:
                return not self._closed
            self._engine.check_integrity()

    def _close(self) -> None:
        """Fail every open request, even if the engine itself can no longer do so."""
        with self._wake:
            self._closed = True
        self._run_commands()
        error = EngineClosedError(self.end_reason)
        with self._faults.guard(EngineFault.THREAD):
            self._engine.fail_all(error)
        self._deliver([Failure(request_id, error) for request_id in self._streams])

    def _run_commands(self) -> None:
        while self._commands:
            with self._faults.guard(EngineFault.COMMAND):
                self._commands.popleft()()

    def _step(self) -> list[Outcome]:
        try:
            outcomes = self._engine.step()
        except Exception as error:
            self._faults.record(EngineFault.STEP, error)
            return self._engine.fail_all(StepFailedError.because_of(error))
        if any(isinstance(outcome, Failure) and isinstance(outcome.error, StepFailedError) for outcome in outcomes):
            self._faults.count(EngineFault.STEP)  # the runner has logged it
        return outcomes

    def _submit(self, request: GenerateRequest, stream: Stream) -> None:
        try:
            self._engine.submit(request)
        except WorkerError as error:
            deliver([(stream, Failure(request.request_id, error))])
        except Exception as error:
            failure = StepFailedError.because_of(error, "the admission of the request")
            deliver([(stream, Failure(request.request_id, failure))])
            raise
        else:
            self._streams[request.request_id] = stream
            deliver([(stream, GenerateChunk.acceptance(request.request_id))])

    def _abandon(self, request_id: str, stream: Stream) -> None:
        if self._streams.get(request_id) is stream:
            del self._streams[request_id]
            self._engine.abort(request_id)

    def _ask(self, question: EpochQuestion) -> None:
        """Pass a question on to the observer; if that fails, the request continues with its present content."""
        reply = partial(self._reply, question)
        try:
            self._observer.ask(question.read, reply)
        except Exception as error:
            self._faults.record(EngineFault.OBSERVER, error)
            reply(None)

    def _answer(self, question: EpochQuestion, newest: Context | None) -> None:
        try:
            self._deliver(self._engine.answer(question, newest))
        except Exception as error:
            failure = StepFailedError.because_of(error, "the move to the newest epoch of the context")
            self._deliver([Failure(question.request_id, failure)])
            self._engine.abort(question.request_id)
            raise

    def _report_changes(self) -> None:
        while changes := self._engine.take_changes():
            with self._faults.guard(EngineFault.OBSERVER):
                self._observer.apply(changes)

    def _deliver(self, outcomes: Sequence[Outcome]) -> None:
        deliveries: list[Delivery] = []
        durations: list[float] = []
        for outcome in outcomes:
            stream = self._streams.get(outcome.request_id)
            if stream is None:  # its caller has left, but its abort failed
                continue
            deliveries.append((stream, outcome))
            if isinstance(outcome, Failure):
                del self._streams[outcome.request_id]
            elif outcome.finish_reason is not None:
                del self._streams[outcome.request_id]
                durations.append(time.monotonic() - stream.started)
        for duration in durations:
            self._notify(self._on_answer, duration)
        deliver(deliveries)

    def _notify(self, listeners: Sequence[Callable[[float], None]], seconds: float) -> None:
        for listener in listeners:
            with self._faults.guard(EngineFault.LISTENER):
                listener(seconds)
