"""One step's passes as one ragged batch of rows.

rows    [ base rows of turn 1 | of turn 2 | ... | joining prefix rows, by reuse depth ]
          every layer                             from their depth on, to the last layer's K/V
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor

from workers.attention.sdpa import Reader
from workers.kv.storage import PageStorage
from workers.models.base import DiffusionLM
from workers.scheduler.plan import Turn


@dataclass(frozen=True)
class Join:
    """Prefix rows that enter at a layer with the states they have there in the entry."""

    layer: int
    states: Tensor
    """[n, hidden]"""


@dataclass(frozen=True)
class Lane:
    """One turn's part of the batch."""

    turn: Turn
    base: slice
    deep: slice
    """Empty where no prefix row joins."""
    candidates: tuple[int, ...]
    """Masked positions whose logits are wanted."""
    logit_rows: tuple[int, ...]
    """The base rows that they are read at."""
    watched: tuple[int, ...]
    """Masked positions whose attention to the prefix is wanted."""

    @property
    def watched_layer(self) -> int:
        """The middle one of the layers that a refresh recomputes."""
        geometry = self.turn.sequence.placing.geometry
        return min((geometry.depth + geometry.num_layers) // 2, geometry.num_layers - 1)

    @property
    def watched_rows(self) -> list[int]:
        """The base rows of `watched`."""
        first = self.base.start - self.turn.run.rows.start
        return [first + position for position in self.watched]

    def reader(self, layer: int, *, deep: bool) -> Reader:
        """What its rows see in a layer; `deep` says whether its prefix rows ask too."""
        placing = self.turn.sequence.placing
        joined = deep and self.turn.run.deep and layer >= placing.geometry.depth
        return Reader((self.base, self.deep) if joined else (self.base,), placing.slots[layer])


@dataclass(frozen=True)
class Batch:
    """The rows of all turns. N base rows, M rows in the end."""

    token_ids: Tensor
    """int64 [N]"""
    positions: Tensor
    """int64 [M]"""
    slots: Tensor
    """int64 [num_layers, M]: where each row's K/V go."""
    joins: tuple[Join, ...]
    lanes: tuple[Lane, ...]

    @property
    def num_base(self) -> int:
        return len(self.token_ids)

    @property
    def logit_rows(self) -> list[int]:
        return [row for lane in self.lanes for row in lane.logit_rows]


def assemble(turns: Sequence[Turn], model: DiffusionLM, storage: PageStorage) -> Batch:
    """Lay the turns' rows side by side."""
    device = storage.device
    bases = list(accumulate((len(turn.run.rows) for turn in turns), initial=0))
    by_depth = sorted((turn for turn in turns if turn.run.deep), key=lambda turn: turn.sequence.placing.geometry.depth)
    deeps = list(accumulate((len(turn.run.deep) for turn in by_depth), initial=bases[-1]))
    deep_start = {turn.sequence.id: start for turn, start in zip(by_depth, deeps, strict=False)}
    spans = [(turn, rows_index(turn.run.rows, device)) for turn in turns]
    spans += [(turn, rows_index(turn.run.deep, device)) for turn in by_depth]
    token_ids = [turn.sequence.canvas.token_ids[row] for turn in turns for row in turn.run.rows]
    return Batch(
        token_ids=torch.tensor(token_ids, dtype=torch.int64, device=device),
        positions=torch.cat([rows for _, rows in spans]),
        slots=torch.cat([turn.sequence.placing.slots[:, rows] for turn, rows in spans], dim=1),
        joins=tuple(join(turn, model, storage) for turn in by_depth),
        lanes=tuple(
            lane(turn, base, deep_start.get(turn.sequence.id, 0)) for turn, base in zip(turns, bases, strict=False)
        ),
    )


def join(turn: Turn, model: DiffusionLM, storage: PageStorage) -> Join:
    """The boundary states come from the entry; at depth 0 they are the embeddings."""
    placing, run = turn.sequence.placing, turn.run
    depth = placing.geometry.depth
    if placing.entry is None or depth == 0:
        token_ids = [turn.sequence.canvas.token_ids[row] for row in run.deep]
        return Join(0, model.embed(torch.tensor(token_ids, dtype=torch.int64, device=storage.device)))
    pages = placing.entry.table.state_pages[depth]
    states = storage.read_states(pages, len(placing.entry.token_ids), model.config.hidden_size)
    return Join(depth, states[rows_index(run.deep, storage.device)])


def rows_index(rows: Sequence[int], device: torch.device) -> Tensor:
    """int64 [len(rows)], made on the device where rows are a range."""
    if isinstance(rows, range):
        return torch.arange(rows.start, rows.stop, device=device)
    return torch.tensor(rows, dtype=torch.int64, device=device)


def lane(turn: Turn, base: int, deep: int) -> Lane:
    sequence, run = turn.sequence, turn.run
    candidates = tuple(sequence.canvas.masked(run.decode))
    first = base - run.rows.start
    shift = sequence.placing.geometry.shift
    return Lane(
        turn=turn,
        base=slice(base, base + len(run.rows)),
        deep=slice(deep, deep + len(run.deep)),
        candidates=candidates,
        logit_rows=tuple(first + max(0, position - shift) for position in candidates),
        watched=tuple(sequence.canvas.masked(run.rows)) if sequence.is_watched else (),
    )
