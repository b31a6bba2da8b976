"""Runs a step's plan on the model: entry builds one by one, then all passes as one ragged batch."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from workers.attention.base import Backend, Reader
from workers.attention.sdpa import SdpaBackend
from workers.bicache.entry import PrefixEntry
from workers.decoding.adjustment import guide
from workers.decoding.decision import Decision, decide
from workers.decoding.focus import Attention, attention_to_prefix
from workers.decoding.greedy import Candidates, greedy
from workers.decoding.sampling import Sampling
from workers.engine.batch import Batch, Lane, assemble
from workers.engine.probe import similarities
from workers.errors import StepFailedError, WorkerError
from workers.kv.storage import PageStorage
from workers.models.base import DiffusionLM, ModelConfig
from workers.scheduler.plan import StepPlan, StepResult, Turn
from workers.scheduler.task import RequestId

logger = logging.getLogger(__name__)


class Runner:
    """The only place where the model runs. Keeps no state between steps beyond what lies in `storage`."""

    def __init__(
        self, model: DiffusionLM, storage: PageStorage, attention: Backend, *, num_probe_positions: int
    ) -> None:
        self._model, self.storage, self._attention = model, storage, attention
        self._num_probe_positions = num_probe_positions
        self._replay: Callable[[Batch], Tensor | None] = lambda _: None

    def warm_up(self) -> Iterator[int]:
        """On a GPU, records the steps of few rows as CUDA graphs; yields the rows of each as it is done."""
        if self.storage.device.type != "cuda":
            return
        from workers.attention.ragged import RaggedBackend
        from workers.engine.graphs import GraphedForward

        assert isinstance(self._attention, RaggedBackend)
        graphs = GraphedForward(self._model, self.storage, self._attention)
        yield from graphs.record()
        self._replay = graphs.forward

    @torch.inference_mode()
    def run(self, plan: StepPlan) -> StepResult:
        """Never raises: what goes wrong belongs to the builds or requests that it struck."""
        failed_builds: dict[PrefixEntry, WorkerError] = {}
        build_s: dict[PrefixEntry, float] = {}
        probed: dict[PrefixEntry, dict[int, list[float]]] = {}
        for entry in plan.builds:
            try:
                if not entry.ready:
                    build_s[entry] = self._timed_build(entry)
                elif entry.missing:
                    self.build(entry)
                probed[entry] = self._probe(entry)
            except Exception as error:
                failed_builds[entry] = step_failed(error)
        return StepResult(self._decisions(plan.turns), failed_builds, build_s, probed)

    def _timed_build(self, entry: PrefixEntry) -> float:
        started = time.perf_counter()
        self.build(entry)
        if self.storage.device.type == "cuda":
            torch.cuda.synchronize(self.storage.device)
        return time.perf_counter() - started

    def build(self, entry: PrefixEntry) -> None:
        """Run the prefix alone, as deep as the entry has pages for.

        A widened entry is completed from its deepest states that are not too deep. What it serves already is written
        again with the same numbers: a prefix alone is always computed in the same shape.
        """
        model, storage, table, layout = self._model, self.storage, entry.table, entry.layout
        begin = max((depth for depth in entry.ready if depth < min(entry.missing)), default=0)
        if begin:
            x = storage.read_states(table.state_pages[begin], layout.num_tokens, model.config.hidden_size)
        else:
            x = model.embed(torch.tensor(entry.token_ids, dtype=torch.int64, device=storage.device))
        cos, sin = model.rope(torch.arange(layout.num_tokens, device=storage.device))
        attend = self._attention.plan([Reader(table.slots, slice(0, len(x)))], model.config.num_layers)
        for index in range(begin, layout.kv_depth):
            layer = model.stack[index]
            q, k, v = layer.qkv(x, cos, sin)
            storage.write(table.slots[index], k, v)
            if index + 1 == model.config.num_layers:
                return
            x = layer.finish(x, attend(index, q))
            if pages := table.state_pages.get(index + 1):
                storage.write_states(pages, x)

    def _probe(self, entry: PrefixEntry) -> dict[int, list[float]]:
        """Return, for each bucket that is to be probed, how similar the entry's K/V are to the true ones, by layer."""
        return {
            bucket: similarities(
                entry, bucket, self._model, self.storage, most=most, num_positions=self._num_probe_positions
            )
            for bucket, most in entry.to_probe.items()
        }

    def forward(self, batch: Batch) -> tuple[Tensor, Mapping[RequestId, Attention]]:
        """All layers over the batch's rows -> hidden states of the base rows [N, hidden], and the watched attention."""
        if (hidden := self._replay(batch)) is not None:
            return hidden, {}
        model, storage = self._model, self.storage
        watched: dict[RequestId, Attention] = {}
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

    def _watch(self, lanes: Sequence[Lane], layer: int, q: Tensor) -> Iterator[tuple[RequestId, Attention]]:
        for lane in lanes:
            if lane.watched and lane.watched_layer == layer:
                placing = lane.turn.sequence.placing
                k, _ = self.storage.read(placing.slots[layer])
                weights = attention_to_prefix(q[lane.watched_rows], k, placing.geometry.prefix)
                yield lane.turn.sequence.id, Attention(lane.watched, weights)

    def _decisions(self, turns: tuple[Turn, ...]) -> Mapping[RequestId, Decision | WorkerError]:
        if not turns:
            return {}
        try:
            batch = assemble(turns, self._model, self.storage)
            hidden, watched = self.forward(batch)
            found = {lane.id: decision for lane, decision in self._decide(batch.lanes, hidden)}
        except Exception as error:
            failure = step_failed(error)
            return {turn.sequence.id: failure for turn in turns}
        return {
            id_: replace(decision, attention=watched.get(id_)) if isinstance(decision, Decision) else decision
            for id_, decision in found.items()
        }

    def _decide(self, lanes: Sequence[Lane], hidden: Tensor) -> Iterator[tuple[Lane, Decision | WorkerError]]:
        """All usual requests at once, then each of the others by itself."""
        usual = [lane for lane in lanes if lane.is_greedy]
        if usual:
            rows = hidden[[row for lane in usual for row in lane.logit_rows]]
            asked = [Candidates(lane.candidates, lane.portion, lane.keeps_probabilities) for lane in usual]
            mask_token_id = self._model.config.mask_token_id
            yield from zip(usual, greedy(rows, self._model.logits, asked, mask_token_id=mask_token_id), strict=True)
        others = [lane for lane in lanes if not lane.is_greedy]
        seeing = self._logits(others, hidden)
        blind = self._blind([lane for lane in others if lane.turn.sequence.task.decoding.is_guided])
        for lane in others:
            logits = seeing[lane.id]
            if lane.id in blind:
                logits = guide(logits, blind[lane.id], lane.turn.sequence.task.decoding.guidance)
            yield lane, self._decision(lane, logits)

    def _logits(self, lanes: Sequence[Lane], hidden: Tensor) -> dict[RequestId, Tensor]:
        """Each request's logits at its candidates [n, vocab], in one product."""
        if not lanes:
            return {}
        logits = self._model.logits(hidden[[row for lane in lanes for row in lane.logit_rows]])
        split = torch.split(logits, [len(lane.logit_rows) for lane in lanes])
        return {lane.id: own for lane, own in zip(lanes, split, strict=True)}

    def _blind(self, lanes: Sequence[Lane]) -> dict[RequestId, Tensor]:
        """Logits with the prompts masked, for the lanes that guidance compares with them: a second forward.

        It overwrites their K/V, which is why guidance needs a policy that keeps none.
        """
        if not lanes:
            return {}
        batch = assemble([lane.turn for lane in lanes], self._model, self.storage)
        token_ids = [
            token for lane in batch.lanes for token in lane.turn.sequence.canvas.unprompted(lane.turn.run.rows)
        ]
        hidden, _ = self.forward(replace(batch, token_ids=batch.token_ids.new_tensor(token_ids)))
        return self._logits(batch.lanes, hidden)

    def _decision(self, lane: Lane, logits: Tensor) -> Decision | WorkerError:
        if not lane.candidates:
            return Decision()
        sequence, config = lane.turn.sequence, self._model.config
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


def backend_for(storage: PageStorage, config: ModelConfig) -> Backend:
    """The reference on a CPU, the kernels on a GPU, where alone there is Triton to import."""
    if storage.device.type != "cuda":
        return SdpaBackend(storage)
    from workers.attention.ragged import RaggedBackend

    return RaggedBackend(storage.rows, page_tokens=storage.page_tokens, num_heads=config.num_heads)


def step_failed(error: Exception) -> WorkerError:
    """Log an exception with its stack, and return what the requests that it struck end with."""
    logger.exception("an engine step failed")
    return StepFailedError.because_of(error)
