"""Runs a step's plan on the model: entry builds one by one, then all passes as one ragged batch, and decides."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from workers.attention.base import Backend
from workers.bicache.entry import PrefixEntry
from workers.decoding.adjustment import guide
from workers.decoding.decision import Decision, decide
from workers.decoding.focus import ObservedAttention, attention_to_prefix
from workers.decoding.greedy import Candidates, greedy
from workers.decoding.sampling import Sampling
from workers.engine.batch import Batch, Lane, assemble
from workers.engine.builder import EntryBuilder
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


class Forward:
    """Runs batches on the model. It writes K/V and states to the page storage."""

    def __init__(self, model: DiffusionLM, storage: PageStorage, attention: Backend) -> None:
        self._model, self._storage, self._attention = model, storage, attention
        self._replay: Callable[[Batch], Tensor | None] = lambda _: None

    def warm_up(self) -> Iterator[int]:
        """Record the steps of few rows as CUDA graphs, on a GPU; yield the rows of each graph once it is recorded."""
        if self._storage.device.type != "cuda":
            return
        from workers.attention.ragged import RaggedBackend
        from workers.engine.graphs import GraphedForward

        assert isinstance(self._attention, RaggedBackend)
        graphs = GraphedForward(self._model, self._storage, self._attention)
        yield from graphs.record()
        self._replay = graphs.forward

    def assemble(self, passes: Sequence[ScheduledPass]) -> Batch:
        """Lay the passes' rows side by side."""
        return assemble(passes, self._model, self._storage)

    def run(self, batch: Batch) -> tuple[Tensor, Mapping[RequestId, ObservedAttention]]:
        """Return the hidden states of the base rows [N, hidden] after all layers, and the watched attention."""
        if (hidden := self._replay(batch)) is not None:
            return hidden, {}
        model, storage = self._model, self._storage
        watched: dict[RequestId, ObservedAttention] = {}
        x = model.embed(batch.token_ids)
        cos, sin = model.rope(batch.positions)
        attend = self._attention.plan([lane.reader for lane in batch.lanes], model.config.num_layers)
        for index, layer in enumerate(model.stack):
            if joining := [join.states for join in batch.joins if join.layer == index]:
                x = torch.cat((x, *joining))
            num_rows = len(x)
            q, k, v = layer.qkv(x, cos[:num_rows], sin[:num_rows])
            storage.write(batch.slots[index, :num_rows], k, v)
            watched.update(self._watch(batch.lanes, index, q))
            is_last = index + 1 == model.config.num_layers
            if is_last:  # nothing reads what prefix rows become after it
                x, q = x[: batch.num_base], q[: batch.num_base]
            x = layer.finish(x, attend(index, q))
        return x, watched

    def _watch(self, lanes: Sequence[Lane], layer: int, q: Tensor) -> Iterator[tuple[RequestId, ObservedAttention]]:
        for lane in lanes:
            if lane.watched and lane.watched_layer == layer:
                allocation = lane.scheduled.sequence.allocation
                k, _ = self._storage.read(allocation.slots[layer])
                mask = self._model.config.visible(lane.watched, range(len(k)), k.device)
                weights = attention_to_prefix(q[lane.watched_rows], k, allocation.geometry.prefix, mask)
                yield lane.scheduled.sequence.id, ObservedAttention(lane.watched, weights)


class Decider:
    """Decides for the lanes of a batch: greedy lanes together, each of the others by itself."""

    def __init__(self, model: DiffusionLM, forward: Forward) -> None:
        self._model, self._forward = model, forward

    def decide(self, lanes: Sequence[Lane], hidden: Tensor) -> Iterator[tuple[Lane, Decision | WorkerError]]:
        """Yield every lane with its decision, or with the error that its logits caused."""
        yield from self._decide_greedy([lane for lane in lanes if lane.is_greedy], hidden)
        others = [lane for lane in lanes if not lane.is_greedy]
        conditional = self._logits(others, hidden)
        unconditional = self._unconditional_logits(
            [lane for lane in others if lane.scheduled.sequence.task.decoding.is_guided]
        )
        for lane in others:
            logits = conditional[lane.id]
            if lane.id in unconditional:
                logits = guide(logits, unconditional[lane.id], lane.scheduled.sequence.task.decoding.guidance)
            yield lane, self._decision(lane, logits)

    def _decide_greedy(
        self, greedy_lanes: Sequence[Lane], hidden: Tensor
    ) -> Iterator[tuple[Lane, Decision | WorkerError]]:
        if not greedy_lanes:
            return
        rows = hidden[[row for lane in greedy_lanes for row in lane.logit_rows]]
        asked = [Candidates(lane.candidates, lane.portion, lane.keeps_probabilities) for lane in greedy_lanes]
        decisions = greedy(rows, self._model.logits, asked, mask_token_id=self._model.config.mask_token_id)
        yield from zip(greedy_lanes, decisions, strict=True)

    def _logits(self, lanes: Sequence[Lane], hidden: Tensor) -> dict[RequestId, Tensor]:
        """Return each request's logits at its candidates [n, vocab], computed in one product."""
        if not lanes:
            return {}
        logits = self._model.logits(hidden[[row for lane in lanes for row in lane.logit_rows]])
        split = torch.split(logits, [len(lane.logit_rows) for lane in lanes])
        return {lane.id: own for lane, own in zip(lanes, split, strict=True)}

    def _unconditional_logits(self, lanes: Sequence[Lane]) -> dict[RequestId, Tensor]:
        """Return the logits of a second forward with the prompts masked, as guidance needs them.

        It overwrites the requests' K/V, so guidance needs a policy that keeps none between steps.
        """
        if not lanes:
            return {}
        batch = self._forward.assemble([lane.scheduled for lane in lanes])
        token_ids = [
            token
            for lane in batch.lanes
            for token in lane.scheduled.sequence.canvas.token_ids_without_prompt(lane.scheduled.run.rows)
        ]
        hidden, _ = self._forward.run(replace(batch, token_ids=batch.token_ids.new_tensor(token_ids)))
        return self._logits(batch.lanes, hidden)

    def _decision(self, lane: Lane, logits: Tensor) -> Decision | WorkerError:
        if not lane.candidates:
            return Decision()
        sequence, config = lane.scheduled.sequence, self._model.config
        sampling = Sampling(
            decoding=sequence.task.decoding,
            generator=lambda: sequence.generator,
            mask_token_id=config.mask_token_id,
            eos_token_id=config.eos_token_id,
            wide=lane.is_wide,
        )
        try:
            return decide(logits, lane.candidates, lane.portion, sampling)
        except WorkerError as error:
            return error
