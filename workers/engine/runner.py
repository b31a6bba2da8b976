"""Runs a step's plan on the model: entry builds one by one, then all passes as one ragged batch."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from dataclasses import replace

import torch

from workers.attention.base import Backend
from workers.bicache.entry import PrefixEntry
from workers.decoding.decision import Decision
from workers.engine.builder import EntryBuilder
from workers.engine.decider import Decider
from workers.engine.forward import Forward
from workers.errors import StepFailedError, WorkerError
from workers.kv.storage import PageStorage
from workers.models.base import DiffusionLM
from workers.scheduler.plan import ScheduledPass, StepPlan, StepResult
from workers.scheduler.task import RequestId

logger = logging.getLogger(__name__)


class Runner:
    """Runs the model for the engine. Its only state between steps is the content of the page storage."""

    def __init__(
        self, model: DiffusionLM, storage: PageStorage, attention: Backend, *, num_probe_positions: int
    ) -> None:
        self.forward = Forward(model, storage, attention)
        self.builder = EntryBuilder(model, storage, attention, num_probe_positions=num_probe_positions)
        self._decider = Decider(model, self.forward)

    def warm_up(self) -> Iterator[int]:
        """Record the steps of few rows as CUDA graphs, on a GPU; yield the rows of each graph once it is recorded."""
        return self.forward.warm_up()

    @torch.inference_mode()
    def run(self, plan: StepPlan) -> StepResult:
        """Carry out the plan and return its result. An exception fails only the builds or requests that it affects."""
        failed_builds: dict[PrefixEntry, WorkerError] = {}
        build_s: dict[PrefixEntry, float] = {}
        probed: dict[PrefixEntry, dict[int, list[float]]] = {}
        for entry in plan.builds:
            try:
                if not entry.ready:
                    build_s[entry] = self.builder.timed_build(entry)
                elif entry.missing:
                    self.builder.build(entry)
                probed[entry] = self.builder.probe(entry)
            except Exception as error:
                failed_builds[entry] = step_failed(error)
        return StepResult(self._decisions(plan.passes), failed_builds, build_s, probed)

    def _decisions(self, passes: tuple[ScheduledPass, ...]) -> Mapping[RequestId, Decision | WorkerError]:
        if not passes:
            return {}
        try:
            batch = self.forward.assemble(passes)
            hidden, watched = self.forward.run(batch)
            found = {lane.id: decision for lane, decision in self._decider.decide(batch.lanes, hidden)}
        except Exception as error:
            failure = step_failed(error)
            return {scheduled.sequence.id: failure for scheduled in passes}
        return {
            id_: replace(decision, attention=watched.get(id_)) if isinstance(decision, Decision) else decision
            for id_, decision in found.items()
        }


def step_failed(error: Exception) -> WorkerError:
    """Log an exception with its stack, and return the error for the requests that it affects."""
    logger.exception("an engine step failed")
    return StepFailedError.because_of(error)
