"""Decide which requests run and which pass each gets in the next step, and apply the results."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import islice

from cache_service.core.types import ReplicaId
from workers.api import GenerateChunk
from workers.bicache.cache import PrefixCache
from workers.bicache.entry import PrefixEntry
from workers.config import EngineConfig
from workers.decoding.decision import Decision
from workers.errors import InvalidRequestError, OverloadedError, WorkerError
from workers.models.base import ModelConfig
from workers.scheduler.admission import Admission
from workers.scheduler.plan import EpochQuestion, Failure, ScheduledPass, StepPlan, StepResult
from workers.scheduler.reuse import ReuseRule
from workers.scheduler.task import Allocation, RequestId, RunningRequest, Task

Outcome = GenerateChunk | Failure


@dataclass
class Counters:
    """Counts totals since the start."""

    num_requests: int = 0
    num_aborted: int = 0
    num_forwards: int = 0
    num_canvas_tokens: int = 0
    num_prefix_hits: int = 0
    num_prefix_misses: int = 0
    num_moved: int = 0


class Scheduler:
    """Owns every request from its submission to its last chunk."""

    def __init__(
        self,
        config: EngineConfig,
        model: ModelConfig,
        admission: Admission,
        cache: PrefixCache,
        rule: ReuseRule,
        *,
        replica: ReplicaId,
    ) -> None:
        self._config, self._model, self._admission, self._cache = config, model, admission, cache
        self._rule = rule
        self._replica = replica
        self._waiting: deque[Task] = deque()
        self._running: dict[RequestId, RunningRequest] = {}
        self._relocating: dict[RequestId, RunningRequest] = {}
        """Waiting requests that ran before and gave up their pages."""
        self._questions: list[EpochQuestion] = []
        self._stalled = False
        self._num_steps = 0
        self.counters = Counters()

    @property
    def num_running(self) -> int:
        return len(self._running)

    @property
    def num_waiting(self) -> int:
        return len(self._waiting)

    @property
    def has_work(self) -> bool:
        """Return whether a step would do something: whether there is work that does not wait for another thread."""
        return (
            bool(self._running or self._waiting or next(self._cache.background_entries(), None)) and not self._stalled
        )

    def wake(self) -> None:
        """Look for work again at the next step, because another thread has changed something."""
        self._stalled = False

    def add(self, task: Task) -> None:
        """Queue a request. If this raises OverloadedError or InvalidRequestError, the request is not queued."""
        if self.num_running + self.num_waiting >= self._config.max_batch + self._config.max_waiting:
            raise OverloadedError(
                f"{self.num_waiting} requests wait already; try again later, or raise engine.max_waiting"
            )
        if task.id in self._running or any(task.id == other.id for other in self._waiting):
            raise InvalidRequestError(f"request id {task.id} is in use", param="request_id")
        self._check_fits(task)
        self._waiting.append(task)
        self._stalled = False
        self.counters.num_requests += 1

    def take_questions(self) -> list[EpochQuestion]:
        """Return the questions asked since the last call. The caller must answer each exactly once."""
        taken, self._questions = self._questions, []
        return taken

    def sequence_waiting_for(self, question: EpochQuestion) -> RunningRequest | None:
        """Return the sequence that still waits for the answer to `question`."""
        sequence = self._running.get(question.request_id)
        if sequence is None or sequence.block_index != question.block_index:
            return None
        return sequence if sequence.is_waiting_for_epoch else None

    def continue_in_place(self, sequence: RunningRequest) -> None:
        """Let a sequence that waited for an answer continue with its present pages."""
        sequence.has_answer, self._stalled = True, False

    def relocate(self, sequence: RunningRequest, task: Task) -> None:
        """Let a sequence that waited for an answer continue with `task`, which gets pages before all other requests.

        Its committed tokens stay. If `task` can never fit, raises InvalidRequestError and changes nothing.
        """
        self._check_fits(task)
        sequence.suspend(task, task.relocated_canvas(sequence.canvas, mask_token_id=self._model.mask_token_id))
        del self._running[task.id]
        self._relocating[task.id] = sequence
        self.counters.num_moved += 1
        self._waiting.appendleft(task)
        self.continue_in_place(sequence)

    def fail(self, sequence: RunningRequest, error: WorkerError) -> Failure:
        """End a running sequence with `error`."""
        self._end(sequence)
        return Failure(sequence.id, error)

    def _check_fits(self, task: Task) -> None:
        if not self._admission.fits(task):
            raise InvalidRequestError(
                f"{task.total} tokens of prompt and canvas don't fit into the page pool; "
                "lower max_tokens, or raise kv.pool_bytes",
                param="max_tokens",
            )

    def abort(self, request_id: RequestId) -> None:
        """Forget a request and free all it holds. One that is unknown or done is left alone."""
        if sequence := self._running.pop(request_id, None):
            sequence.resources.close()
        elif task := next((task for task in self._waiting if task.id == request_id), None):
            self._forget_waiting(task)
        else:
            return
        self._stalled = False
        self.counters.num_aborted += 1

    def schedule(self) -> StepPlan:
        """Admit the requests that get pages, then plan every cheap pass, and expensive work within its budget.

        A step includes one expensive piece of work (an entry's build and probe, a refresh, a full pass), the one that
        has waited longest. If no cheap pass waits for the step to end, it includes more, up to `max_heavy_rows`. A
        reserved entry is built if there is no other expensive work.
        """
        self._admit()
        self._ask_for_epochs()
        passes = [
            ScheduledPass(sequence, sequence.next_pass()) for sequence in self._running.values() if sequence.is_ready
        ]
        cheap = [scheduled for scheduled in passes if not scheduled.run.is_heavy]
        heavy = sorted((scheduled for scheduled in passes if scheduled.run.is_heavy), key=age_rank)
        budget = 0 if cheap else self._config.max_heavy_rows
        builds: list[PrefixEntry] = []
        for entry in self._cache.due_entries():
            if not builds or len(entry.token_ids) <= budget:
                builds.append(entry)
                budget -= len(entry.token_ids)
        chosen: list[ScheduledPass] = []
        for scheduled in heavy:
            if not (builds or chosen) or scheduled.num_rows <= budget:
                chosen.append(scheduled)
                budget -= scheduled.num_rows
        if not (builds or chosen):
            builds.extend(islice(self._cache.background_entries(), 1))
        plan = StepPlan(tuple(builds), (*cheap, *chosen))
        self._stalled = not (plan.builds or plan.passes)
        return plan

    def apply(self, plan: StepPlan, result: StepResult) -> list[Outcome]:
        """Apply the step's decisions, and return the chunks and failures that follow from them, in order."""
        outcomes = self._apply_builds(plan, result)
        for scheduled in plan.passes:
            sequence = scheduled.sequence
            if sequence.id not in self._running:
                continue
            sequence.last_served = self._num_steps
            self.counters.num_forwards += sequence.task.forwards_per_pass
            decision = result.decisions[sequence.id]
            if isinstance(decision, WorkerError):
                outcomes.append(self.fail(sequence, decision))
            else:
                outcomes.extend(self._apply_decision(scheduled, decision))
        self._num_steps += 1
        return outcomes

    def fail_all(self, error: WorkerError) -> list[Outcome]:
        """End every running and waiting request."""
        waiting = [Failure(task.id, error) for task in self._waiting]
        for task in self._waiting:
            self._admission.forget(task)
        self._waiting.clear()
        self._relocating.clear()
        return [*[self.fail(sequence, error) for sequence in list(self._running.values())], *waiting]

    def _admit(self) -> None:
        """Admit requests in order. One that waits for an entry keeps its place in the batch; others may overtake it."""
        num_preparing = 0
        for task in tuple(self._waiting):
            if self.num_running + num_preparing >= self._config.max_batch:
                return
            granted = self._admission.allocate(task, alone=not self._running and task is self._waiting[0])
            if granted is None:
                if not self._admission.is_preparing(task):
                    return
                num_preparing += 1
                continue
            self._waiting.remove(task)
            allocation, resources = granted
            if allocation.entry:
                self.counters.num_prefix_hits += allocation.is_hit
                self.counters.num_prefix_misses += not allocation.is_hit
            self._running[task.id] = self._start(task, allocation, resources)

    def _start(self, task: Task, allocation: Allocation, resources: ExitStack) -> RunningRequest:
        if sequence := self._relocating.pop(task.id, None):
            sequence.resume(allocation, resources)
            return sequence
        canvas = task.new_canvas(mask_token_id=self._model.mask_token_id, eos_token_id=self._model.eos_token_id)
        return RunningRequest(task, allocation, canvas, resources)

    def _ask_for_epochs(self) -> None:
        for sequence in self._running.values():
            read = sequence.task.context
            if read and read.follows and not sequence.has_asked:
                sequence.has_asked = True
                self._questions.append(EpochQuestion(sequence.id, sequence.block_index, read))

    def _apply_builds(self, plan: StepPlan, result: StepResult) -> list[Outcome]:
        failures: list[Outcome] = []
        for entry in plan.builds:
            error = result.failed_builds.get(entry)
            if error is not None:
                self._cache.drop(entry)
                failures.extend(self._fail_waiting(entry, error))
                continue
            probed = result.similarities.get(entry, {})
            self.counters.num_forwards += bool(entry.missing) + len(probed)
            for bucket, similarities in probed.items():
                self._cache.record_finding(entry, bucket, self._rule.judge_probe(entry.key, bucket, similarities))
            self._cache.mark_built(entry, result.build_s.get(entry))
        return failures

    def _fail_waiting(self, entry: PrefixEntry, error: WorkerError) -> Iterator[Failure]:
        """Fail the requests that wait for a failed entry: without it their answers would be different."""
        for task in tuple(self._waiting):
            if self._admission.waits_for(task, entry):
                self._forget_waiting(task)
                yield Failure(task.id, error)

    def _forget_waiting(self, task: Task) -> None:
        self._waiting.remove(task)
        self._relocating.pop(task.id, None)
        self._admission.forget(task)

    def _apply_decision(self, scheduled: ScheduledPass, decision: Decision) -> list[Outcome]:
        sequence = scheduled.sequence
        sequence.canvas.commit(decision.positions, decision.token_ids, decision.probabilities)
        sequence.advance(scheduled.run, decision.attention)
        self.counters.num_canvas_tokens += len(decision.positions)
        token_ids = sequence.canvas.take_committed()
        reason = sequence.canvas.finish_reason
        if reason is None:
            self.counters.num_canvas_tokens -= sequence.remask()
            return [GenerateChunk(sequence.id, token_ids, usage=sequence.usage(self._replica))] if token_ids else []
        self._end(sequence)
        return [GenerateChunk(sequence.id, token_ids, reason, sequence.usage(self._replica))]

    def _end(self, sequence: RunningRequest) -> None:
        del self._running[sequence.id]
        sequence.resources.close()
        self._stalled = False


def age_rank(scheduled: ScheduledPass) -> tuple[bool, int]:
    """Return a sort key: requests without any pass come first, then those whose last pass is oldest."""
    last_served = scheduled.sequence.last_served
    return (last_served is not None, last_served or 0)
