"""Declares the interface between a batch and the attention backend.

    row of the batch    asks in
    base                every layer
    deep                layers depth..L-2: prefix rows that join at the reuse depth; nothing reads them after the last

All rows of a sequence see all its keys, unless the model masks some of them, and nothing else. In layers below its
depth the first keys of a sequence are an entry's: sequences that read the same entry share them, and a backend may
read those once for all.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from torch import Tensor


@dataclass(frozen=True)
class Reader:
    """Describes one sequence of the batch, and the rows by which it reads keys and values."""

    slots: Tensor
    """int64 [num_layers, T]: the key rows of its positions 0..T-1. The order matters only to a mask, since keys are
    already rotated by position.
    """
    base: slice
    """The sequence's rows among the batch's rows."""
    deep: slice = field(default_factory=lambda: slice(0, 0))
    depth: int = 0
    entry: Hashable | None = None
    """Equal for sequences that share, in layers below `depth`, their first `num_shared` keys."""
    num_shared: int = 0
    positions: tuple[Sequence[int], ...] = ()
    """Positions of the base rows, then of the deep rows, for a model that masks attention."""

    def asks_deep(self, layer: int, num_layers: int) -> bool:
        """Return whether the deep rows ask in a layer."""
        return num_rows(self.deep) > 0 and self.depth <= layer < num_layers - 1


class Attend(Protocol):
    """Computes attention for one batch, in any of its layers."""

    def __call__(self, layer: int, q: Tensor) -> Tensor:
        """Turn q [N, heads, head_dim] of all rows that ask in `layer` or a later one into [N, heads * head_dim].

        Each of the rows that ask belongs to exactly one reader; the result at others is undefined.
        """
        ...


class Backend(Protocol):
    """Computes attention over one page storage."""

    def plan(self, readers: Sequence[Reader], num_layers: int) -> Attend:
        """Prepare for a batch, until the next plan. The rows of readers of one entry should be adjacent."""
        ...


def num_rows(rows: slice) -> int:
    return int(rows.stop - rows.start)
