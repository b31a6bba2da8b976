r"""Whole-prefix entries: K/V and boundary states of a prefix run alone, one copy for all its readers.

An entry is found by key, its token ids are compared, and it is held by a handle while anyone reads it:

    admit -> pending -(mark_built)-> live -(evict, when idle)-> gone
                \-(drop, when the build failed)----------------> gone
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Set
from dataclasses import dataclass, field
from types import TracebackType

from cache_service.types import PrefixKey
from workers.kv.page_table import EntryLayout, EntryTable
from workers.kv.pool import PagePool, Pages
from workers.kv.storage import PageStorage
from workers.models.base import ModelConfig

MAX_REMEMBERED_KEYS = 4096
"""Keys remembered for admission on second sight."""


@dataclass(eq=False)
class PrefixEntry:
    """One prefix. Its table is valid while a handle is held."""

    key: PrefixKey
    token_ids: tuple[int, ...]
    layout: EntryLayout
    table: EntryTable
    pages: Pages
    size_bytes: int
    built: bool = False
    dropped: bool = False
    """Its build failed; it never becomes live."""
    num_readers: int = 0
    trusted: dict[int, int] = field(default_factory=dict)
    """By ratio bucket: the depth that a comparison with true states allows."""
    to_probe: dict[int, int] = field(default_factory=dict)
    """Ratio buckets that are still to be compared -> tokens of the suffix to compare with."""

    @property
    def depths(self) -> frozenset[int]:
        """The reuse depths it holds all for."""
        return frozenset({self.layout.kv_depth, *self.layout.state_depths})

    @property
    def safe_depth(self) -> int:
        """Layers that may be reused at any of the ratios that were looked at."""
        return min((self.layout.kv_depth, *self.trusted.values()))

    def __repr__(self) -> str:
        state = "live" if self.built else "pending"
        return (
            f"<PrefixEntry {self.key.hex()[:8]} [{len(self.token_ids)} tokens | {state}, {self.num_readers} readers]>"
        )


class PrefixHandle:
    """A reader's hold on an entry, until `release` or the end of a `with`."""

    def __init__(self, cache: PrefixCache, entry: PrefixEntry) -> None:
        self._cache = cache
        self.entry = entry
        self._held = True
        entry.num_readers += 1

    def __enter__(self) -> PrefixHandle:
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self.release()

    def release(self) -> None:
        if self._held:
            self._held = False
            self.entry.num_readers -= 1
            self._cache.settle(self.entry)


@dataclass
class Changes:
    """Which keys became live and which are gone since the last look, for the cache service."""

    built: list[PrefixEntry] = field(default_factory=list)
    gone: list[PrefixKey] = field(default_factory=list)

    def __bool__(self) -> bool:
        return bool(self.built or self.gone)


class PrefixCache:
    """Entries in order of last use, within a budget of the pool's bytes."""

    def __init__(self, pool: PagePool, storage: PageStorage, model: ModelConfig, *, budget_bytes: int) -> None:
        self._pool, self._storage, self._model = pool, storage, model
        self._budget_pages = budget_bytes // storage.page_bytes
        self._entries: OrderedDict[PrefixKey, PrefixEntry] = OrderedDict()
        self._detached: set[PrefixEntry] = set()
        self._first_askers: OrderedDict[PrefixKey, str] = OrderedDict()
        self._num_pages = 0
        self._changes = Changes()

    @property
    def num_entries(self) -> int:
        return len(self._entries)

    @property
    def num_pages(self) -> int:
        return self._num_pages

    @property
    def size_bytes(self) -> int:
        return self.num_pages * self._storage.page_bytes

    def match(self, key: PrefixKey, token_ids: tuple[int, ...], depths: Set[int]) -> PrefixHandle | None:
        """A hold on the entry of exactly these tokens, pending or live, if it serves one of `depths`."""
        entry = self._entries.get(key)
        if entry is None or entry.token_ids != token_ids or not entry.depths & depths:
            return None
        self._entries.move_to_end(key)
        return PrefixHandle(self, entry)

    def admit(self, key: PrefixKey, token_ids: tuple[int, ...], depths: Set[int], *, asker: str) -> PrefixHandle | None:
        """A hold on a new, pending entry that serves `depths`; None where the budget or the pool has no room.

        Others are evicted for it only if another `asker` has wanted it before: prefixes that come once don't push out
        those that come back. An entry under the same key is replaced; the new one serves what the old one served too.
        """
        old = self._entries.get(key)
        if old is not None and old.token_ids == token_ids:
            depths = depths | old.depths
        layout = EntryLayout.for_depths(len(token_ids), depths, self._model.num_layers)
        num_pages = layout.num_pages(self._storage, self._model.hidden_size)
        if not self._fit(num_pages, may_evict=self._is_second_sight(key, asker)):
            return None
        pages = self._pool.allocate(num_pages)
        if key in self._entries:
            self._remove(self._entries[key])
        table = EntryTable.lay_out(layout, pages, self._storage, self._model.hidden_size)
        entry = PrefixEntry(key, token_ids, layout, table, pages, num_pages * self._storage.page_bytes)
        self._entries[key] = entry
        self._num_pages += num_pages
        return PrefixHandle(self, entry)

    def pending(self) -> Iterator[PrefixEntry]:
        """Entries to build or to probe, least recently asked for first."""
        return (entry for entry in self._entries.values() if not entry.built or entry.to_probe)

    def mark_built(self, entry: PrefixEntry) -> None:
        """The entry is live; said again, what is known of it has changed."""
        entry.built = True
        if self._entries.get(entry.key) is entry:
            self._changes.built.append(entry)

    def drop(self, entry: PrefixEntry) -> None:
        """Forget an entry whose build failed; its pages are free once its readers let go."""
        entry.dropped = True
        if self._entries.get(entry.key) is entry:
            self._remove(entry)

    def make_room(self, num_pages: int) -> bool:
        """Evict idle entries, least recently used first, until the pool has `num_pages` free.

        Returns False, and evicts nothing, where that can't be had.
        """
        return self._evict(num_pages - self._pool.num_free)

    def settle(self, entry: PrefixEntry) -> None:
        """Called when a reader lets go: nobody waits any more for a pending entry, nobody reads a detached one."""
        if entry.num_readers:
            return
        entry.to_probe.clear()
        if entry in self._detached:
            self._detached.remove(entry)
            self._free(entry)
        elif not entry.built:
            self._remove(entry)

    def take_changes(self) -> Changes:
        changes, self._changes = self._changes, Changes()
        return changes

    def check_integrity(self) -> None:
        """Raises AssertionError where holds, pages and entries contradict each other."""
        self._pool.check_integrity()
        assert all(entry.num_readers for entry in self._detached), f"{self!r}: a detached entry has no reader"
        assert all(entry.built or entry.num_readers for entry in self._entries.values()), f"{self!r}: build for nobody"
        held = sum(len(entry.pages) for entry in (*self._entries.values(), *self._detached))
        assert held == self._num_pages, f"{self!r}: {held} pages are held"
        assert self.num_pages <= self._budget_pages, f"{self!r} is over its budget"

    def _fit(self, num_pages: int, *, may_evict: bool) -> bool:
        short = max(self.num_pages + num_pages - self._budget_pages, num_pages - self._pool.num_free)
        return num_pages <= self._budget_pages and (short <= 0 or (may_evict and self._evict(short)))

    def _is_second_sight(self, key: PrefixKey, asker: str) -> bool:
        """Whether someone else asked for the key before, as far as memory goes back."""
        first = self._first_askers.setdefault(key, asker)
        self._first_askers.move_to_end(key)
        if len(self._first_askers) > MAX_REMEMBERED_KEYS:
            self._first_askers.popitem(last=False)
        return first != asker

    def _evict(self, num_pages: int) -> bool:
        idle = [entry for entry in self._entries.values() if not entry.num_readers]
        if sum(len(entry.pages) for entry in idle) < num_pages:
            return False
        for entry in idle:
            if num_pages <= 0:
                break
            num_pages -= len(entry.pages)
            self._remove(entry)
        return True

    def _remove(self, entry: PrefixEntry) -> None:
        del self._entries[entry.key]
        if entry.built:
            self._changes.gone.append(entry.key)
        if entry.num_readers:
            self._detached.add(entry)
        else:
            self._free(entry)

    def _free(self, entry: PrefixEntry) -> None:
        self._num_pages -= len(entry.pages)
        entry.pages.release()

    def __repr__(self) -> str:
        return f"<PrefixCache [{len(self._entries)} entries, {self.num_pages} of {self._budget_pages} pages]>"
