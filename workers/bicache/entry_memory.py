"""Allocate the pages of prefix entries within a budget. Pure."""

from __future__ import annotations

from collections.abc import Set
from dataclasses import dataclass

from workers.kv.page_table import EntryLayout, EntryTable
from workers.kv.pool import PagePool, Pages
from workers.kv.storage import PageStorage
from workers.models.base import ModelConfig


@dataclass(frozen=True)
class EntryMemory:
    """Owns the pages of one entry, and knows what each of them holds."""

    layout: EntryLayout
    table: EntryTable
    pages: tuple[Pages, ...]
    page_bytes: int

    @property
    def num_pages(self) -> int:
        return sum(map(len, self.pages))

    @property
    def num_bytes(self) -> int:
        return self.num_pages * self.page_bytes


class EntryAllocator:
    """Allocates entries' pages from the pool: private ones up to its size, shared ones within a budget."""

    def __init__(self, pool: PagePool, storage: PageStorage, model: ModelConfig, *, budget_bytes: int) -> None:
        self._pool, self._storage, self._model = pool, storage, model
        self.budget_pages = budget_bytes // storage.page_bytes
        self.num_shared = 0
        """Pages of the budget that are in use."""

    @property
    def num_shared_bytes(self) -> int:
        return self.num_shared * self._storage.page_bytes

    @property
    def num_free(self) -> int:
        """Return the number of free pages in the pool."""
        return self._pool.num_free

    def lay_out(self, num_tokens: int, depths: Set[int]) -> EntryLayout:
        """Return the smallest layout that serves `depths`."""
        return EntryLayout.for_depths(num_tokens, depths, self._model.num_layers)

    def include(self, layout: EntryLayout, depths: Set[int]) -> EntryLayout:
        """Return the smallest layout that serves `depths` and all depths of `layout`."""
        return layout.including(depths, self._model.num_layers)

    def num_pages(self, layout: EntryLayout) -> int:
        return layout.num_pages(self._storage, self._model.hidden_size)

    def shortage(self, num_pages: int, *, is_private: bool) -> int:
        """Return the number of pages to free before `num_pages` can be allocated; zero or less if none."""
        short = num_pages - self._pool.num_free
        return short if is_private else max(short, self.num_shared + num_pages - self.budget_pages)

    def allocate(self, layout: EntryLayout, *, is_private: bool) -> EntryMemory:
        """Return the pages of a new entry. Raises OutOfPagesError."""
        pages = self._take(self.num_pages(layout), is_private=is_private)
        table = EntryTable.lay_out(layout, pages, self._storage, self._model.hidden_size)
        return EntryMemory(layout, table, (pages,), self._storage.page_bytes)

    def widen(self, memory: EntryMemory, layout: EntryLayout, *, is_private: bool) -> EntryMemory:
        """Return `memory` extended by the pages that the wider `layout` needs in addition. Raises OutOfPagesError."""
        pages = self._take(self.num_pages(layout) - memory.num_pages, is_private=is_private)
        table = memory.table.widened(layout, pages, self._storage, self._model.hidden_size)
        return EntryMemory(layout, table, (*memory.pages, pages), memory.page_bytes)

    def free(self, memory: EntryMemory, *, is_private: bool) -> None:
        """Give the pages of an entry back to the pool."""
        self.num_shared -= 0 if is_private else memory.num_pages
        for pages in memory.pages:
            pages.release()

    def check_integrity(self, held: int) -> None:
        """Raise AssertionError if the pool contradicts itself, or `held` is not the number of shared pages."""
        self._pool.check_integrity()
        assert held == self.num_shared, f"{self!r}: {held} pages are held"
        assert self.num_shared <= self.budget_pages, f"{self!r} is over its budget"

    def _take(self, num_pages: int, *, is_private: bool) -> Pages:
        pages = self._pool.allocate(num_pages)
        self.num_shared += 0 if is_private else num_pages
        return pages

    def __repr__(self) -> str:
        return f"<EntryAllocator [{self.num_shared} of {self.budget_pages} pages | {self._pool!r}]>"
