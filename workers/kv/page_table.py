"""Map a sequence's keys and values, layer by layer, to pages.

    layer      prefix 0..P-1           suffix P..T-1
    0..b-1     the entry's, shared     private              b = reuse depth
    b..L-1     private                 private

A request whose K/V needn't outlive a step has pages for one layer, which all layers overwrite in turn.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from workers.kv.pool import PageId, Pages
from workers.kv.storage import PageStorage

SlotTable = Tensor
"""int64 [num_layers, num_tokens]: the key row of each token in each layer."""


def ceil_div(a: int, b: int) -> int:
    return -(-a // b)


@dataclass(frozen=True)
class EntryLayout:
    """Describes an entry's content: K/V of layers 0..kv_depth-1, and the states that enter layers `state_depths`."""

    num_tokens: int
    kv_depth: int
    state_depths: tuple[int, ...]

    @classmethod
    def for_depths(cls, num_tokens: int, depths: Iterable[int], num_layers: int) -> EntryLayout:
        """Return the smallest layout that serves `depths`: full depth needs no states, depth 0 no pages at all."""
        kept = sorted({depth for depth in depths if depth > 0})
        return cls(num_tokens, kept[-1] if kept else 0, tuple(depth for depth in kept if depth < num_layers))

    @property
    def depths(self) -> frozenset[int]:
        """Return the reuse depths that an entry with this layout serves."""
        return frozenset({self.kv_depth, *self.state_depths} - {0})

    def including(self, depths: Iterable[int], num_layers: int) -> EntryLayout:
        """Return the smallest layout that serves `depths` as well as this layout's depths."""
        return EntryLayout.for_depths(self.num_tokens, self.depths.union(depths), num_layers)

    def num_pages(self, storage: PageStorage, hidden_size: int) -> int:
        per_layer = ceil_div(self.num_tokens, storage.page_tokens)
        return self.kv_depth * per_layer + len(self.state_depths) * self.state_pages(storage, hidden_size)

    def state_pages(self, storage: PageStorage, hidden_size: int) -> int:
        """Return the number of pages that the states at one depth take."""
        return ceil_div(self.num_tokens * hidden_size, storage.page_elements)


@dataclass(frozen=True)
class EntryTable:
    """Maps an entry's content to its pages."""

    slots: Tensor
    """int64 [kv_depth, num_tokens]"""
    state_pages: Mapping[int, tuple[PageId, ...]]
    """Maps a depth to the pages of the hidden states that enter that layer."""

    @classmethod
    def lay_out(cls, layout: EntryLayout, pages: Pages, storage: PageStorage, hidden_size: int) -> EntryTable:
        empty = cls(torch.empty((0, layout.num_tokens), dtype=torch.int64, device=storage.device), {})
        return empty.widened(layout, pages, storage, hidden_size)

    def widened(self, layout: EntryLayout, pages: Pages, storage: PageStorage, hidden_size: int) -> EntryTable:
        """Return the table of a wider `layout`: the present content stays in place, and `pages` hold the rest."""
        num_layers = layout.kv_depth - len(self.slots)
        per_layer = ceil_div(layout.num_tokens, storage.page_tokens)
        kv, states = divide(pages.ids, num_layers * per_layer)
        per_state = layout.state_pages(storage, hidden_size)
        new = [depth for depth in layout.state_depths if depth not in self.state_pages]
        return EntryTable(
            slots=torch.cat((self.slots, layer_slots(kv, num_layers, per_layer, layout.num_tokens, storage))),
            state_pages={
                **self.state_pages,
                **{depth: states[index * per_state : (index + 1) * per_state] for index, depth in enumerate(new)},
            },
        )


@dataclass(frozen=True)
class PrivateLayout:
    """Describes the K/V that a request keeps for itself."""

    num_layers: int
    num_tokens: int
    shared_depth: int
    """The number of layers that read the first `shared_tokens` tokens from an entry."""
    shared_tokens: int
    keeps_kv: bool
    """True if K/V outlive a step; otherwise all layers use the same pages."""

    def num_pages(self, page_tokens: int) -> int:
        whole = ceil_div(self.num_tokens, page_tokens)
        if not self.keeps_kv:
            return whole
        suffix = ceil_div(self.num_tokens - self.shared_tokens, page_tokens)
        return self.shared_depth * suffix + (self.num_layers - self.shared_depth) * whole


def sequence_slots(layout: PrivateLayout, pages: Pages, entry: EntryTable | None, storage: PageStorage) -> Tensor:
    """Return key rows of every position in every layer, shared and private: int64 [num_layers, num_tokens]."""
    if not layout.keeps_kv:
        return storage.slots(pages.ids, layout.num_tokens).expand(layout.num_layers, -1)
    suffix = layout.num_tokens - layout.shared_tokens
    per_shallow, per_deep = ceil_div(suffix, storage.page_tokens), ceil_div(layout.num_tokens, storage.page_tokens)
    shallow, deep = divide(pages.ids, layout.shared_depth * per_shallow)
    deep_slots = layer_slots(deep, layout.num_layers - layout.shared_depth, per_deep, layout.num_tokens, storage)
    if entry is None:
        return deep_slots
    own = layer_slots(shallow, layout.shared_depth, per_shallow, suffix, storage)
    return torch.cat((torch.cat((entry.slots[: layout.shared_depth], own), dim=1), deep_slots))


def layer_slots(
    pages: tuple[PageId, ...], num_layers: int, per_layer: int, num_tokens: int, storage: PageStorage
) -> Tensor:
    """Return int64 [num_layers, num_tokens], where each layer's tokens fill the next `per_layer` pages."""
    slots = storage.slots(pages, num_layers * per_layer * storage.page_tokens)
    return slots.view(num_layers, per_layer * storage.page_tokens)[:, :num_tokens]


def divide(pages: tuple[PageId, ...], at: int) -> tuple[tuple[PageId, ...], tuple[PageId, ...]]:
    return pages[:at], pages[at:]
