"""Lays one step's passes out as one ragged batch of rows.

rows    [ base rows of pass 1 | of pass 2 | ... | joining prefix rows, by reuse depth ]
          every layer                             from their depth on, to the last layer's K/V
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor

from workers.attention.base import Reader
from workers.decoding.greedy import is_greedy
from workers.decoding.timetable import Portion
from workers.kv.storage import PageStorage
from workers.models.base import DiffusionLM
from workers.scheduler.plan import ScheduledPass
from workers.scheduler.task import RequestId


@dataclass(frozen=True)
class Join:
    """Holds prefix rows that join at a layer, with the boundary states that the entry keeps for that layer."""

    layer: int
    states: Tensor
    """[n, hidden]"""


@dataclass(frozen=True)
class Lane:
    """Describes the part of a batch that belongs to one pass."""

    scheduled: ScheduledPass
    base: slice
    deep: slice
    """Empty if no prefix row joins."""
    candidates: tuple[int, ...]
    """Masked positions whose logits are computed."""
    logit_rows: tuple[int, ...]
    """Base rows at which those logits are read."""
    watched: tuple[int, ...]
    """Masked positions whose attention to the prefix is observed."""

    @property
    def id(self) -> RequestId:
        return self.scheduled.sequence.id

    @property
    def portion(self) -> Portion:
        return self.scheduled.sequence.portion()

    @property
    def keeps_probabilities(self) -> bool:
        return self.scheduled.sequence.task.decoding.remask > 0

    @property
    def is_wide(self) -> bool:
        """Return whether the pass takes its probabilities in float64."""
        task = self.scheduled.sequence.task
        return task.policy.wide_confidence or task.decoding.unmasking.is_adaptive

    @property
    def is_greedy(self) -> bool:
        return is_greedy(self.scheduled.sequence.task.decoding, self.candidates, wide=self.is_wide)

    @property
    def watched_layer(self) -> int:
        """Return the middle one of the layers that a refresh recomputes."""
        geometry = self.scheduled.sequence.allocation.geometry
        return min((geometry.depth + geometry.num_layers) // 2, geometry.num_layers - 1)

    @property
    def watched_rows(self) -> list[int]:
        """Return the base rows of the watched positions."""
        first = self.base.start - self.scheduled.run.rows.start
        return [first + position for position in self.watched]

    @property
    def reader(self) -> Reader:
        allocation = self.scheduled.sequence.allocation
        geometry = allocation.geometry
        return Reader(
            slots=allocation.slots,
            base=self.base,
            deep=self.deep,
            depth=geometry.depth,
            positions=(self.scheduled.run.rows, self.scheduled.run.deep),
            entry=allocation.entry,
            num_shared=geometry.prefix,
        )


@dataclass(frozen=True)
class Batch:
    """Holds the rows of all passes: N base rows, and M rows once all prefix rows have joined."""

    token_ids: Tensor
    """int64 [N]"""
    positions: Tensor
    """int64 [M]"""
    slots: Tensor
    """int64 [num_layers, M]: the slots to which each row's K/V are written."""
    joins: tuple[Join, ...]
    lanes: tuple[Lane, ...]

    @property
    def num_base(self) -> int:
        return len(self.token_ids)


def assemble(passes: Sequence[ScheduledPass], model: DiffusionLM, storage: PageStorage) -> Batch:
    """Concatenate the passes' rows; passes that read the same entry are adjacent."""
    device = storage.device
    passes = sorted(passes, key=lambda scheduled: id(scheduled.sequence.allocation.entry))
    bases = list(accumulate((len(scheduled.run.rows) for scheduled in passes), initial=0))
    by_depth = sorted(
        (scheduled for scheduled in passes if scheduled.run.deep),
        key=lambda scheduled: scheduled.sequence.allocation.geometry.depth,
    )
    deeps = list(accumulate((len(scheduled.run.deep) for scheduled in by_depth), initial=bases[-1]))
    deep_start = {scheduled.sequence.id: start for scheduled, start in zip(by_depth, deeps, strict=False)}
    spans = [
        *((scheduled, scheduled.run.rows) for scheduled in passes),
        *((scheduled, scheduled.run.deep) for scheduled in by_depth),
    ]
    token_ids = [
        token for scheduled in passes for token in scheduled.sequence.canvas.token_ids[as_slice(scheduled.run.rows)]
    ]
    positions = [position for _, rows in spans for position in rows]
    numbers = torch.tensor([*token_ids, *positions], dtype=torch.int64).to(device)
    return Batch(
        token_ids=numbers[: len(token_ids)],
        positions=numbers[len(token_ids) :],
        slots=torch.cat([select(scheduled.sequence.allocation.slots, rows) for scheduled, rows in spans], dim=1),
        joins=tuple(join(scheduled, model, storage) for scheduled in by_depth),
        lanes=tuple(
            lane(scheduled, base, deep_start.get(scheduled.sequence.id, 0))
            for scheduled, base in zip(passes, bases, strict=False)
        ),
    )


def join(scheduled: ScheduledPass, model: DiffusionLM, storage: PageStorage) -> Join:
    """Read the boundary states of a pass from its entry; at depth 0 they are the embeddings."""
    allocation, run = scheduled.sequence.allocation, scheduled.run
    depth = allocation.geometry.depth
    if allocation.entry is None or depth == 0:
        token_ids = [scheduled.sequence.canvas.token_ids[row] for row in run.deep]
        return Join(0, model.embed(torch.tensor(token_ids, dtype=torch.int64, device=storage.device)))
    pages = allocation.entry.table.state_pages[depth]
    states = storage.read_states(pages, len(allocation.entry.token_ids), model.config.hidden_size)
    return Join(depth, select(states.T, run.deep).T)


def select(tensor: Tensor, columns: Sequence[int]) -> Tensor:
    """Select columns, [n, m] -> [n, len(columns)]: as a view if they are a range, which needs no launch."""
    if isinstance(columns, range):
        return tensor[:, as_slice(columns)]
    return tensor[:, torch.tensor(columns, dtype=torch.int64, device=tensor.device)]


def as_slice(rows: range) -> slice:
    return slice(rows.start, rows.stop)


def lane(scheduled: ScheduledPass, base: int, deep: int) -> Lane:
    sequence, run = scheduled.sequence, scheduled.run
    candidates = tuple(sequence.canvas.masked(run.decode))
    first = base - run.rows.start
    shift = sequence.allocation.geometry.shift
    return Lane(
        scheduled=scheduled,
        base=slice(base, base + len(run.rows)),
        deep=slice(deep, deep + len(run.deep)),
        candidates=candidates,
        logit_rows=tuple(first + max(0, position - shift) for position in candidates),
        watched=tuple(sequence.canvas.masked(run.rows)) if sequence.is_watched else (),
    )
