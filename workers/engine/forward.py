"""Runs the model's layers over one ragged batch, replayed from CUDA graphs if there are few rows."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

import torch
from torch import Tensor

from workers.attention.base import Backend
from workers.decoding.focus import ObservedAttention, attention_to_prefix
from workers.engine.batch import Batch, Lane, assemble
from workers.kv.storage import PageStorage
from workers.models.base import DiffusionLM
from workers.scheduler.plan import ScheduledPass
from workers.scheduler.task import RequestId


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
