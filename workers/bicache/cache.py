r"""Whole-prefix entries: K/V and boundary states of a prefix run alone, one copy for all its readers.

An entry is found by key, its token ids are compared, and it is held by a handle while anyone reads it:

    admit -> pending -(mark_built)-> live -(evict, when idle)-> gone
                \-(drop, when the build failed)----------------> gone

Where replicas share the work of building, an entry begins as awaited: it is not built before `clear`, and a copy from
another replica may make it live instead.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Set
from types import TracebackType

from cache_service.types import PrefixKey
from workers.bicache.entry import Changes, PrefixEntry, is_due
from workers.kv.page_table import EntryLayout, EntryTable
from workers.kv.pool import PagePool
from workers.kv.storage import PageStorage
from workers.models.base import ModelConfig

MAX_REMEMBERED_KEYS = 4096
"""Keys remembered for admission on second sight."""
WARMER = "warmer"
"""Who asks for entries before any request does."""


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
        """Forgotten, but held; in the order in which they were."""
        self._warming: dict[PrefixKey, PrefixHandle] = {}
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
        those that come back. A live entry under the same key is replaced; the new one serves what the old one served
        too. A pending one stays, for those who wait for it, and the answer is None.
        """
        old = self._entries.get(key)
        if old is not None and not old.built:
            return None
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
        entry.awaited = self._awaits
        self._changes.wanted.append(entry)
        return PrefixHandle(self, entry)

    def warm(self, key: PrefixKey, token_ids: tuple[int, ...], depths: Set[int]) -> PrefixEntry | None:
        """A pending entry that is kept for whoever may come, until it is live. None where one is there, or no room.

        Evicts nothing the first time that a key is seen.
        """
        if key in self._entries or (handle := self.admit(key, token_ids, depths, asker=WARMER)) is None:
            return None
        self._warming[key] = handle
        return handle.entry

    def find(self, key: PrefixKey) -> PrefixEntry | None:
        """The entry under a key, pending or live."""
        return self._entries.get(key)

    def pending(self) -> Iterator[PrefixEntry]:
        """Entries to build or to probe that someone waits for: forgotten ones, then the longest not asked for first."""
        yield from filter(is_due, tuple(self._detached))
        yield from (entry for entry in self._entries.values() if is_due(entry) and not self._is_background(entry))

    def background(self) -> Iterator[PrefixEntry]:
        """Entries to build that nobody waits for yet."""
        warming = [handle.entry for handle in self._warming.values()]
        return (entry for entry in warming if is_due(entry) and self._is_background(entry))

    def clear(self, entry: PrefixEntry) -> None:
        """The entry may be built here."""
        entry.awaited = False

    def mark_built(self, entry: PrefixEntry) -> None:
        """The entry is live; said again, what is known of it has changed."""
        entry.built, entry.awaited = True, False
        if self._entries.get(entry.key) is entry:
            self._changes.built.append(entry)
            self._let_go(entry.key)

    def count_served(self, entry: PrefixEntry) -> None:
        """One more request reads the entry. Its heat is news each time that it has doubled."""
        entry.num_served += 1
        if entry.built and entry.num_served.bit_count() == 1 and self._entries.get(entry.key) is entry:
            self._changes.built.append(entry)

    def drop(self, entry: PrefixEntry) -> None:
        """Forget an entry whose build failed; its pages are free once its readers let go."""
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
        self._num_pages -= len(entry.pages)
        entry.pages.release()

    def __repr__(self) -> str:
        return f"<PrefixCache [{len(self._entries)} entries, {self.num_pages} of {self._budget_pages} pages]>"
