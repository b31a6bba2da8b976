"""Records steps of few rows as CUDA graphs: launching their kernels one by one takes longer than running them."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from workers.attention.ragged import FixedPlan, RaggedBackend
from workers.engine.batch import Batch
from workers.kv.storage import PageStorage
from workers.models.base import DiffusionLM

logger = logging.getLogger(__name__)

GRAPH_SIZES = (32, 48, 64, 96, 128, 192, 256, 384, 512)
"""Numbers of rows that graphs are recorded for; a batch uses the next larger one. With more rows, kernels take
longer than their launches.
"""


@dataclass(frozen=True)
class RecordedGraph:
    """Holds one CUDA graph, with the tensors that it reads and writes."""

    graph: torch.cuda.CUDAGraph
    token_ids: Tensor
    """int64 [size]"""
    positions: Tensor
    slots: Tensor
    """int64 [num_layers, size]"""
    plan: FixedPlan
    hidden: Tensor
    """[size, hidden]"""


class GraphedForward:
    """Replays recorded forwards."""

    def __init__(self, model: DiffusionLM, storage: PageStorage, attention: RaggedBackend) -> None:
        self._model, self._storage, self._attention = model, storage, attention
        self._recordings: dict[int, RecordedGraph] = {}

    def record(self) -> Iterator[int]:
        """Record a graph of each size, which takes seconds, and yield its number of rows."""
        before, _ = torch.cuda.mem_get_info(self._storage.device)
        pool = torch.cuda.graph_pool_handle()
        for size in reversed(GRAPH_SIZES):  # the largest first: the others fit into its memory
            self._recordings[size] = self._record(size, pool)
            yield size
        after, _ = torch.cuda.mem_get_info(self._storage.device)
        logger.info("CUDA graphs for up to %d rows take %d MiB", GRAPH_SIZES[-1], (before - after) >> 20)

    @torch.inference_mode()
    def forward(self, batch: Batch) -> Tensor | None:
        """Return the hidden states of the base rows [N, hidden]; None for a batch that no graph was recorded for."""
        if batch.joins or any(lane.watched for lane in batch.lanes):
            return None
        size = next((size for size in GRAPH_SIZES if size >= batch.num_base), None)
        recording = self._recordings.get(size) if size else None
        if recording is None or not recording.plan.fill([lane.reader for lane in batch.lanes]):
            return None
        num_rows = batch.num_base
        recording.token_ids[:num_rows] = batch.token_ids
        recording.positions[:num_rows] = batch.positions
        recording.slots[:, num_rows:] = self._storage.scratch_slot
        recording.slots[:, :num_rows] = batch.slots
        recording.graph.replay()
        return recording.hidden[:num_rows].clone()  # the next replay writes where this one did

    @torch.inference_mode()
    def _record(self, size: int, pool: Any) -> RecordedGraph:
        """Record with empty tables, and with all rows written to the scratch page."""
        device, num_layers = self._storage.device, self._model.config.num_layers
        token_ids = torch.zeros(size, dtype=torch.int64, device=device)
        positions = torch.zeros_like(token_ids)
        slots = torch.full((num_layers, size), self._storage.scratch_slot, dtype=torch.int64, device=device)
        plan = self._attention.fixed(size, num_layers)

        def run() -> Tensor:
            x = self._model.embed(token_ids)
            rope = self._model.rope(positions)
            for index, layer in enumerate(self._model.stack):
                q, k, v = layer.qkv(x, *rope)
                self._storage.write(slots[index], k, v)
                x = layer.finish(x, plan(index, q))
            return x

        side_stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        side_stream.wait_stream(torch.cuda.current_stream(device))
        with torch.cuda.stream(side_stream):
            run()
        torch.cuda.current_stream(device).wait_stream(side_stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=pool):
            hidden = run()
        return RecordedGraph(graph, token_ids, positions, slots, plan, hidden)
