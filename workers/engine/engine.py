"""Defines the engine, which is single-threaded and synchronous: its caller drives it by `step`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TypeVar

from cache_service.core.types import Context, ReplicaId
from workers.api import GenerateRequest, WorkerStats
from workers.bicache.entry import Changes
from workers.bicache.entry_table import EntryCommands
from workers.engine.memory import Memory
from workers.engine.runner import Runner
from workers.engine.validation import RequestResolver
from workers.errors import WorkerError
from workers.scheduler.plan import EpochQuestion
from workers.scheduler.scheduler import Outcome, Scheduler
from workers.scheduler.task import RequestId

T = TypeVar("T")


class Engine:
    """Takes requests and returns chunks, one denoising step at a time. `workers.engine.factory` creates it."""

    def __init__(
        self,
        *,
        requests: RequestResolver,
        scheduler: Scheduler,
        runner: Runner,
        memory: Memory,
        entries: EntryCommands,
        replica: ReplicaId,
    ) -> None:
        self._requests, self._memory, self._replica = requests, memory, replica
        self.scheduler, self.runner, self.entries = scheduler, runner, entries

    def warm_up(self) -> Iterator[int]:
        """Do the work that would delay the first requests; yield the number of rows of each CUDA graph recorded."""
        yield from self.runner.warm_up()

    @property
    def has_work(self) -> bool:
        """Return whether a step would do anything. If not, requests may still wait for answers to their questions."""
        return self.scheduler.has_work

    @property
    def fingerprint(self) -> str:
        """Return a digest that differs whenever the same text would give different prefix entries."""
        return self.entries.format.fingerprint

    @property
    def page_bytes(self) -> int:
        return self._memory.storage.page_bytes

    @property
    def num_used_pages(self) -> int:
        return self._memory.pool.num_used

    def submit(self, request: GenerateRequest) -> None:
        """Queue a request. If this raises InvalidRequestError or OverloadedError, the request is not queued."""
        self.scheduler.add(self._requests.resolve(request))

    def abort(self, request_id: str) -> None:
        """Forget a request and free what it holds; leave an unknown or finished one alone."""
        self.scheduler.abort(RequestId(request_id))

    def step(self) -> list[Outcome]:
        """Run one pass of each scheduled request; return newly committed tokens, finished requests and failures."""
        plan = self.scheduler.schedule()
        result = self.runner.run(plan)
        return self.scheduler.apply(plan, result)

    def with_entries(self, command: Callable[[EntryCommands], T]) -> T:
        """Run `command` on the entry table between two steps, for another thread."""
        self.scheduler.wake()
        return command(self.entries)

    def take_questions(self) -> list[EpochQuestion]:
        """Return the new questions of requests in follow mode; the caller must answer each exactly once."""
        return self.scheduler.take_questions()

    def answer(self, question: EpochQuestion, newest: Context | None) -> list[Outcome]:
        """Let the request that asked continue: with `newest` if its epoch is too old, else with its present content.

        None says that nothing newer is known: the context is gone, or could not be read. An answer that no request
        still waits for changes nothing. Return the failure of a request that can't continue with `newest`.
        """
        sequence = self.scheduler.sequence_waiting_for(question)
        if sequence is None:
            return []
        if newest is None or not question.read.is_behind(newest.epoch):
            self.scheduler.continue_in_place(sequence)
            return []
        try:
            self.scheduler.relocate(sequence, self._requests.replace_context(sequence.task, newest))
        except WorkerError as error:
            return [self.scheduler.fail(sequence, error)]
        return []

    def fail_all(self, error: WorkerError) -> list[Outcome]:
        """End every request with `error`."""
        return self.scheduler.fail_all(error)

    def take_changes(self) -> Changes:
        """Return the changes to prefix entries since the last call."""
        return self._memory.cache.take_changes()

    def stats(self) -> WorkerStats:
        """Return counters and load; any thread may ask."""
        counters = self.scheduler.counters
        return WorkerStats(
            replica=self._replica,
            num_running=self.scheduler.num_running,
            num_waiting=self.scheduler.num_waiting,
            num_requests=counters.num_requests,
            num_forwards=counters.num_forwards,
            num_canvas_tokens=counters.num_canvas_tokens,
            num_prefix_hits=counters.num_prefix_hits,
            num_prefix_misses=counters.num_prefix_misses,
            prefix_entries=self._memory.cache.num_entries,
            prefix_bytes=self._memory.cache.size_bytes,
            num_aborted=counters.num_aborted,
            num_moved=counters.num_moved,
        )

    def check_integrity(self) -> None:
        """Raise AssertionError if pages, entries and requests contradict each other."""
        self._memory.cache.check_integrity()

    def __repr__(self) -> str:
        load = f"{self.scheduler.num_running} running, {self.scheduler.num_waiting} waiting"
        return f"<Engine [{load} | {self._memory.cache!r} {self._memory.pool!r}]>"
