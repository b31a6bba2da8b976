"""Turns a batch's hidden states into a decision for each of its requests."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from workers.decoding.adjustment import guide
from workers.decoding.decision import Decision, decide
from workers.decoding.greedy import Candidates, greedy
from workers.decoding.sampling import Sampling
from workers.engine.batch import Lane
from workers.engine.forward import Forward
from workers.errors import WorkerError
from workers.models.base import DiffusionLM
from workers.scheduler.task import RequestId


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
