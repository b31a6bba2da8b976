r"""Whole-prefix entries: K/V and boundary states of a prefix run alone, one copy for all its readers.

An entry is found by key, its token ids are compared, and it is held by a handle while anyone reads it:

    admit -> pending -(mark_built)-> live -(evict, when idle)-> gone
                \-(drop, when the build failed)----------------> gone

A live entry may be widened by more reuse depths; until those are built it serves the ones that it had. Where replicas
share the work of building, an entry begins as awaited: it is not built before `clear`, and a copy from another replica
may make it live instead. A private entry serves one request that the budget has no room for.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Set
from types import TracebackType

from cache_service.core.types import PrefixKey
from workers.bicache.entry import Changes, PrefixEntry, is_due
from workers.kv.page_table import EntryLayout, EntryTable
from workers.kv.pool import PagePool
from workers.kv.storage import PageStorage
from workers.models.base import ModelConfig

PROTECTED_SHARE = 0.8
"""Part of the budget whose entries are evicted last: those that have served more than one request."""


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


class PrefixCache:
    """Entries in order of last use, within a budget of the pool's bytes."""

    def __init__(
        self, pool: PagePool, storage: PageStorage, model: ModelConfig, *, budget_bytes: int, awaits: bool = False
    ) -> None:
        """With `awaits`, entries begin as awaited."""
        self._pool, self._storage, self._model = pool, storage, model
        self._awaits = awaits
        self._budget_pages = budget_bytes // storage.page_bytes
        self._entries: OrderedDict[PrefixKey, PrefixEntry] = OrderedDict()
        self._detached: dict[PrefixEntry, None] = {}
        """Held entries that nobody finds by key, any more or ever, in the order in which they came here."""
        self._warming: dict[PrefixKey, PrefixHandle] = {}
        self._num_pages = 0
        self._changes = Changes()

    @property
    def num_entries(self) -> int:
        return len(self._entries)

    @property
    def num_pages(self) -> int:
        """Pages within the budget; those of private entries don't count."""
        return self._num_pages

    @property
    def size_bytes(self) -> int:
        return self.num_pages * self._storage.page_bytes

    def match(self, key: PrefixKey, token_ids: tuple[int, ...]) -> PrefixHandle | None:
        """Return a hold on the entry of exactly these tokens, pending or live."""
        entry = self._entries.get(key)
        if entry is None or entry.token_ids != token_ids:
            return None
        self._entries.move_to_end(key)
        return PrefixHandle(self, entry)

    def admit(self, key: PrefixKey, token_ids: tuple[int, ...], depths: Set[int]) -> PrefixHandle | None:
        """Return a hold on a new, pending entry that serves `depths`; idle entries are evicted for it.

        Returns None where the key is taken, or the budget or the pool has no room.
        """
        return self._admit(key, token_ids, depths, may_evict=True)

    def admit_private(self, key: PrefixKey, token_ids: tuple[int, ...], depths: Set[int]) -> PrefixHandle | None:
        """Return a hold on a pending entry that nobody else finds, and that goes with the hold.

        It takes pages beside the budget; idle entries are evicted for it. Returns None where the pool has no room.
        """
        layout = EntryLayout.for_depths(len(token_ids), depths, self._model.num_layers)
        if not self.make_room(layout.num_pages(self._storage, self._model.hidden_size)):
            return None
        entry = self._new_entry(key, token_ids, layout, is_private=True)
        self._detached[entry] = None
        return PrefixHandle(self, entry)

    def widen(self, entry: PrefixEntry, depths: Set[int]) -> bool:
        """Let a held entry serve `depths` too, once they are built. Return False, and change nothing, without room."""
        layout = entry.layout.including(depths, self._model.num_layers)
        num_pages = layout.num_pages(self._storage, self._model.hidden_size) - entry.num_pages
        if not (self.make_room(num_pages) if entry.is_private else self._fit(num_pages, may_evict=True)):
            return False
        pages = self._pool.allocate(num_pages)
        entry.table = entry.table.widened(layout, pages, self._storage, self._model.hidden_size)
        entry.layout = layout
        entry.pages.append(pages)
        self._num_pages += 0 if entry.is_private else num_pages
        return True

    def reserve(self, key: PrefixKey, token_ids: tuple[int, ...], depths: Set[int]) -> PrefixEntry | None:
        """Return a pending entry that is kept, until it is live, for requests that may come.

        Evicts nothing. Returns None where the key is taken, or there is no room.
        """
        if (handle := self._admit(key, token_ids, depths, may_evict=False)) is None:
            return None
        self._warming[key] = handle
        return handle.entry

    def find(self, key: PrefixKey) -> PrefixEntry | None:
        """Return the entry under a key, pending or live."""
        return self._entries.get(key)

    def pending(self) -> Iterator[PrefixEntry]:
        """Yield entries to build or to probe that are held: detached ones, then the least recently used first."""
        yield from filter(is_due, tuple(self._detached))
        listed = (entry for entry in self._entries.values() if entry.num_readers and is_due(entry))
        yield from (entry for entry in listed if not self._is_background(entry))

    def background(self) -> Iterator[PrefixEntry]:
        """Yield entries to build that nobody waits for yet."""
        warming = [handle.entry for handle in self._warming.values()]
        return (entry for entry in warming if is_due(entry) and self._is_background(entry))

    def allow_build(self, entry: PrefixEntry) -> None:
        """Let the entry be built here."""
        entry.awaited = False

    def mark_built(self, entry: PrefixEntry, depths: Set[int] | None = None) -> None:
        """Note that the entry is live and serves `depths`; None for all that it has pages for.

        Called again, it announces that what is known of the entry has changed.
        """
        entry.built, entry.awaited = True, False
        entry.ready |= entry.depths if depths is None else depths
        if self._entries.get(entry.key) is entry:
            self._changes.built.append(entry)
            self._let_go(entry.key)

    def count_served(self, entry: PrefixEntry) -> None:
        """One more request reads the entry. Its heat is news each time that it has doubled."""
        entry.num_served += 1
        if entry.built and entry.num_served.bit_count() == 1 and self._entries.get(entry.key) is entry:
            self._changes.built.append(entry)

    def drop(self, entry: PrefixEntry) -> None:
        """Forget an entry whose build or probe failed; its pages are free once its readers let go."""
        entry.dropped = True
        if self._entries.get(entry.key) is entry:
            self._remove(entry)
            self._let_go(entry.key)

    def retire(self, key: PrefixKey) -> PrefixEntry | None:
        """Forget the entry under a key, if there is one. Who reads it may finish; a pending one goes once it is live or
        nobody waits for it.
        """
        entry = self._entries.get(key)
        if entry is not None and entry.built:
            self._remove(entry)
        elif entry is not None:
            entry.retired = True
            self._let_go(key)
        return entry

    def make_room(self, num_pages: int) -> bool:
        """Evict idle entries until the pool has `num_pages` free.

        Returns False, and evicts nothing, where that can't be had.
        """
        return self._evict(num_pages - self._pool.num_free)

    def settle(self, entry: PrefixEntry) -> None:
        """Called when a reader lets go: nobody waits any more for a pending entry, nobody reads a detached one."""
        if entry.num_readers:
            return
        entry.to_probe.clear()
        if entry in self._detached:
            del self._detached[entry]
            self._free(entry)
        elif not entry.built:
            self._remove(entry)

    def take_changes(self) -> Changes:
        """Since the last call; of entries that came and went meanwhile, only that they went. A retired one that is live
        now goes, which is for the next call to tell.
        """
        changes, self._changes = self._changes, Changes()
        changes.built = [e for e in changes.built if self._entries.get(e.key) is e]
        changes.wanted = [e for e in changes.wanted if self._entries.get(e.key) is e and not e.built]
        for entry in changes.built:
            if entry.retired and self._entries.get(entry.key) is entry:
                self._remove(entry)
        return changes

    def check_integrity(self) -> None:
        """Raises AssertionError where holds, pages and entries contradict each other."""
        self._pool.check_integrity()
        assert all(entry.num_readers for entry in self._detached), f"{self!r}: a detached entry has no reader"
        assert all(entry.built or entry.num_readers for entry in self._entries.values()), f"{self!r}: build for nobody"
        shared = (entry for entry in (*self._entries.values(), *self._detached) if not entry.is_private)
        held = sum(entry.num_pages for entry in shared)
        assert held == self._num_pages, f"{self!r}: {held} pages are held"
        assert self.num_pages <= self._budget_pages, f"{self!r} is over its budget"

    def _admit(
        self, key: PrefixKey, token_ids: tuple[int, ...], depths: Set[int], *, may_evict: bool
    ) -> PrefixHandle | None:
        layout = EntryLayout.for_depths(len(token_ids), depths, self._model.num_layers)
        num_pages = layout.num_pages(self._storage, self._model.hidden_size)
        if key in self._entries or not self._fit(num_pages, may_evict=may_evict):
            return None
        entry = self._entries[key] = self._new_entry(key, token_ids, layout)
        self._num_pages += num_pages
        entry.awaited = self._awaits
        self._changes.wanted.append(entry)
        return PrefixHandle(self, entry)

    def _new_entry(
        self, key: PrefixKey, token_ids: tuple[int, ...], layout: EntryLayout, *, is_private: bool = False
    ) -> PrefixEntry:
        pages = self._pool.allocate(layout.num_pages(self._storage, self._model.hidden_size))
        table = EntryTable.lay_out(layout, pages, self._storage, self._model.hidden_size)
        return PrefixEntry(key, token_ids, layout, table, [pages], self._storage.page_bytes, is_private)

    def _fit(self, num_pages: int, *, may_evict: bool) -> bool:
        """Return whether the budget and the pool have `num_pages` free, if need be by eviction."""
        short = max(self.num_pages + num_pages - self._budget_pages, num_pages - self._pool.num_free)
        return short <= 0 or (may_evict and num_pages <= self._budget_pages and self._evict(short))

    def _evict(self, num_pages: int) -> bool:
        idle = self._idle()
        if sum(entry.num_pages for entry in idle) < num_pages:
            return False
        for entry in idle:
            if num_pages <= 0:
                break
            num_pages -= entry.num_pages
            self._remove(entry)
        return True

    def _idle(self) -> list[PrefixEntry]:
        """Return the entries that nobody reads, in the order in which they are evicted.

        Least recently used first, as in a segmented LRU (Karedla et al. 1994): entries that have served more than one
        request come last, as far as `PROTECTED_SHARE` of the budget holds them, so that prefixes which come once don't
        push out those which come back.
        """
        room, protected = PROTECTED_SHARE * self._budget_pages, set[PrefixEntry]()
        for entry in reversed(self._entries.values()):
            if entry.num_served > 1 and entry.num_pages <= room:
                room -= entry.num_pages
                protected.add(entry)
        idle = (entry for entry in self._entries.values() if not entry.num_readers)
        return sorted(idle, key=lambda entry: entry in protected)

    def _remove(self, entry: PrefixEntry) -> None:
        del self._entries[entry.key]
        (self._changes.gone if entry.built else self._changes.unwanted).append(entry.key)
        if entry.num_readers:
            self._detached[entry] = None
        else:
            self._free(entry)

    def _is_background(self, entry: PrefixEntry) -> bool:
        return entry.key in self._warming and entry.num_readers == 1

    def _let_go(self, key: PrefixKey) -> None:
        if handle := self._warming.pop(key, None):
            handle.release()

    def _free(self, entry: PrefixEntry) -> None:
        self._num_pages -= 0 if entry.is_private else entry.num_pages
        for pages in entry.pages:
            pages.release()

    def __repr__(self) -> str:
        return f"<PrefixCache [{len(self._entries)} entries, {self.num_pages} of {self._budget_pages} pages]>"
