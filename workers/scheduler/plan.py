"""Describe the plan of one step, and its result."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from workers.api import ContextRead
from workers.bicache.entry import PrefixEntry
from workers.decoding.decision import Decision
from workers.errors import WorkerError
from workers.scheduler.policy import Pass
from workers.scheduler.task import RequestId, RunningRequest


@dataclass(frozen=True)
class ScheduledPass:
    """Assigns one pass of this step to one sequence."""

    sequence: RunningRequest
    run: Pass

    @property
    def num_rows(self) -> int:
        """Return the number of rows that the model computes for the pass."""
        return self.run.num_rows * self.sequence.task.forwards_per_pass


@dataclass(frozen=True)
class EpochQuestion:
    """Asks for the newest content of a context.

    A sequence in follow mode asks it at a block start, and has no pass until `Scheduler.continue_in_place` or
    `Scheduler.relocate` is called.
    """

    request_id: RequestId
    block_index: int
    read: ContextRead
    """The epoch that the sequence reads now."""


@dataclass(frozen=True)
class StepPlan:
    """Lists independent work: entries to build or to probe, and passes to run."""

    builds: tuple[PrefixEntry, ...] = ()
    passes: tuple[ScheduledPass, ...] = ()


@dataclass(frozen=True)
class StepResult:
    """Holds a decision or an error for every pass of the plan, and an error for every entry whose build failed."""

    decisions: Mapping[RequestId, Decision | WorkerError]
    failed_builds: Mapping[PrefixEntry, WorkerError] = field(default_factory=dict)
    build_s: Mapping[PrefixEntry, float] = field(default_factory=dict)
    """Seconds that each build took."""
    similarities: Mapping[PrefixEntry, Mapping[int, list[float]]] = field(default_factory=dict)
    """By entry and probed ratio bucket: the similarity of its K/V to the true ones, layer by layer."""


@dataclass(frozen=True)
class Failure:
    """Ends a request with an error."""

    request_id: str
    error: WorkerError
