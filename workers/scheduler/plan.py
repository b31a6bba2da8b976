"""What one step is to do, and what came of it."""

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
class Turn:
    """One pass of one sequence in this step."""

    sequence: RunningRequest
    run: Pass

    @property
    def num_rows(self) -> int:
        """Rows that the model computes for it."""
        return self.run.num_rows * self.sequence.task.forwards_per_pass


@dataclass(frozen=True)
class Question:
    """What is the newest content of this context? Asked at a block start of a sequence in follow mode, which has no
    pass before `Scheduler.continue_in_place` or `Scheduler.relocate` ends its waiting.
    """

    request_id: RequestId
    block_index: int
    read: ContextRead
    """What the sequence goes by."""


@dataclass(frozen=True)
class StepPlan:
    """Entries to build or to probe, and passes to run; they don't depend on each other."""

    builds: tuple[PrefixEntry, ...] = ()
    turns: tuple[Turn, ...] = ()


@dataclass(frozen=True)
class StepResult:
    """A decision, or an error, for every turn of the plan; an error for every entry whose build failed."""

    decisions: Mapping[RequestId, Decision | WorkerError]
    failed_builds: Mapping[PrefixEntry, WorkerError] = field(default_factory=dict)
    build_s: Mapping[PrefixEntry, float] = field(default_factory=dict)
    """Seconds that each build took."""
    similarities: Mapping[PrefixEntry, Mapping[int, list[float]]] = field(default_factory=dict)
    """By entry and probed ratio bucket: how like their true ones its K/V are, layer by layer."""


@dataclass(frozen=True)
class Failure:
    """The end of a request that can't be answered."""

    request_id: str
    error: WorkerError
