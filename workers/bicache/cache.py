"""Cache whole-prefix entries: K/V and boundary states of a prefix computed alone, one copy for all its readers.

A request finds an entry by its key, compares the token ids, and holds it by a handle while it reads it:

    admit, reserve --> AWAITED --allow_build--> PENDING --mark_built--> LIVE --retire--> RETIRING
                          +------------- mark_copied --------------------+

Every entry ends in state GONE: a live one is evicted when it is idle, a pending or retiring one is freed with its
last reader, and any is dropped when its build or probe fails. A cache whose builds are not shared begins at PENDING. A
live entry may be widened by more reuse depths; until those are built it serves the ones that it had. A private entry
serves one request for which the budget has no room, and is freed with it.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Mapping, Set

from cache_service.core.types import PrefixKey
from workers.api import ContextEpoch
from workers.bicache.depth import Finding
from workers.bicache.entry import SUCCESSORS, Changes, EntryState, PrefixEntry, PrefixHandle, eviction_order
from workers.bicache.entry_memory import EntryAllocator
from workers.kv.pool import PagePool
from workers.kv.storage import PageStorage
from workers.models.base import ModelConfig


class PrefixCache:
    """Keeps entries in order of last use, within a budget of the pool's bytes. It alone writes their fields."""

    def __init__(
        self, pool: PagePool, storage: PageStorage, model: ModelConfig, *, budget_bytes: int, awaits: bool = False
    ) -> None:
        """Begin without entries. With `awaits`, new ones wait for `allow_build` or a copy."""
        self._allocator = EntryAllocator(pool, storage, model, budget_bytes=budget_bytes)
        self._num_layers = model.num_layers
        self._first_state = EntryState.AWAITED if awaits else EntryState.PENDING
        self._entries: OrderedDict[PrefixKey, PrefixEntry] = OrderedDict()
        self._detached: dict[PrefixEntry, None] = {}
        """Held entries that no request finds by key, in the order in which they were added."""
        self._reservations: dict[PrefixKey, PrefixHandle] = {}
        self._outdated: set[PrefixEntry] = set()
        """Entries that will retire once they are live and announced."""
        self._changes = Changes()

    @property
    def num_entries(self) -> int:
        return len(self._entries)

    @property
    def num_pages(self) -> int:
        """Return the number of the budget's pages in use; pages of private entries don't count."""
        return self._allocator.num_shared

    @property
    def size_bytes(self) -> int:
        return self._allocator.num_shared_bytes

    # Finding and admitting entries

    def find(self, key: PrefixKey) -> PrefixEntry | None:
        """Return the entry under a key, pending or live."""
        return self._entries.get(key)

    def match(self, key: PrefixKey, token_ids: tuple[int, ...]) -> PrefixHandle | None:
        """Return a handle on the entry of exactly these tokens, pending or live."""
        entry = self._entries.get(key)
        if entry is None or entry.token_ids != token_ids:
            return None
        self._entries.move_to_end(key)
        return self._hold(entry)

    def admit(
        self, key: PrefixKey, token_ids: tuple[int, ...], depths: Set[int], *, content_of: ContextEpoch | None = None
    ) -> PrefixHandle | None:
        """Return a handle on a new, pending entry that serves `depths`; idle entries may be evicted for it.

        Returns None if the key is taken, or the budget or the pool has no room.
        """
        return self._admit(key, token_ids, depths, content_of, may_evict=True)

    def admit_private(self, key: PrefixKey, token_ids: tuple[int, ...], depths: Set[int]) -> PrefixHandle | None:
        """Return a handle on a pending entry that no other request finds, and that is freed with the handle.

        Its pages don't count in the budget; idle entries may be evicted for it. Returns None if the pool has no room.
        """
        layout = self._allocator.lay_out(len(token_ids), depths)
        if not self._fit(self._allocator.num_pages(layout), is_private=True):
            return None
        memory = self._allocator.allocate(layout, is_private=True)
        entry = PrefixEntry(key, token_ids, memory, EntryState.PENDING, is_private=True)
        self._detached[entry] = None
        return self._hold(entry)

    def reserve(self, key: PrefixKey, token_ids: tuple[int, ...], depths: Set[int]) -> PrefixEntry | None:
        """Return a new pending entry without readers, which is kept until it is live for requests that may follow.

        Evicts nothing. Returns None if the key is taken, or there is no room.
        """
        if (handle := self._admit(key, token_ids, depths, None, may_evict=False)) is None:
            return None
        self._reservations[key] = handle
        return handle.entry

    def widen(self, entry: PrefixEntry, depths: Set[int]) -> bool:
        """Let a held entry serve `depths` too, once they are built. Without room, change nothing and return False."""
        if entry.state is EntryState.GONE:
            return False
        layout = self._allocator.include(entry.layout, depths)
        num_pages = self._allocator.num_pages(layout) - entry.num_pages
        if not self._fit(num_pages, is_private=entry.is_private):
            return False
        entry.memory = self._allocator.widen(entry.memory, layout, is_private=entry.is_private)
        return True

    def make_room(self, num_pages: int) -> bool:
        """Evict idle entries until the pool has `num_pages` free. Return False, and evict nothing, if it can't."""
        return self._evict(num_pages - self._allocator.num_free)

    # The life of an entry

    def due_entries(self) -> Iterator[PrefixEntry]:
        """Yield held entries to build or to probe: detached ones, then the least recently used first."""
        yield from (entry for entry in tuple(self._detached) if entry.is_due)
        held = (entry for entry in self._entries.values() if entry.num_readers and entry.is_due)
        yield from (entry for entry in held if not self._is_background(entry))

    def background_entries(self) -> Iterator[PrefixEntry]:
        """Yield entries to build that no request waits for yet."""
        reserved = [handle.entry for handle in self._reservations.values()]
        return (entry for entry in reserved if entry.is_due and self._is_background(entry))

    def allow_build(self, entry: PrefixEntry) -> None:
        """Let an awaited entry be built here."""
        if entry.state is EntryState.AWAITED:
            self._enter(entry, EntryState.PENDING)

    def request_probe(self, entry: PrefixEntry, bucket: int, depth: int) -> None:
        """Mark a held entry to be probed at the ratios of `bucket`, at least up to `depth`."""
        entry.to_probe[bucket] = max(depth, entry.to_probe.get(bucket, 0))

    def record_finding(self, entry: PrefixEntry, bucket: int, finding: Finding) -> None:
        """Record what the probe of one bucket found."""
        nominal_depth = entry.to_probe.pop(bucket)
        entry.findings[bucket] = finding
        depth = finding.depth(nominal_depth, self._num_layers)
        if depth is not None and depth < nominal_depth:
            entry.drifted[bucket] = depth

    def mark_built(self, entry: PrefixEntry, build_s: float | None = None) -> None:
        """Record that the entry serves all depths that it has pages for, and announce it, or its probes' findings.

        `build_s` is how long its first build took.
        """
        entry.build_s = entry.build_s if build_s is None else build_s
        self._announce(entry, entry.depths)

    def mark_copied(self, entry: PrefixEntry, depths: Set[int], findings: Mapping[int, Finding]) -> None:
        """Record that a copy from another replica gave the entry `depths` and that replica's findings."""
        entry.is_copy = True
        entry.findings.update(findings)
        for bucket, finding in findings.items():
            if finding.depth(entry.to_probe.get(bucket, 0), self._num_layers) is not None:
                entry.to_probe.pop(bucket, None)
        self._announce(entry, depths)

    def count_served(self, entry: PrefixEntry) -> None:
        """Count one more reader of the entry, and announce the number each time it has doubled."""
        entry.num_served += 1
        if entry.is_live and entry.num_served.bit_count() == 1:
            self._announce(entry, frozenset())

    def drop(self, entry: PrefixEntry) -> None:
        """Drop an entry whose build or probe failed; its pages are freed once its readers have released it."""
        if self._entries.get(entry.key) is entry:
            self._remove(entry, EntryState.GONE)
            self._end_reservation(entry.key)
        elif entry.state is not EntryState.GONE:
            self._enter(entry, EntryState.GONE)

    def retire(self, key: PrefixKey) -> PrefixEntry | None:
        """Remove the entry under a key from the cache and return it, if there is one. Its readers may finish.

        A pending one leaves once it is live and announced, or once no request waits for it.
        """
        entry = self._entries.get(key)
        if entry is not None and entry.is_live:
            self._retire(entry)
        elif entry is not None:
            self._outdated.add(entry)
            self._end_reservation(key)
        return entry

    def take_changes(self) -> Changes:
        """Return the changes to entries since the last call; for an entry added and removed since, only the removal.

        An outdated entry that is live now retires here, so that the next call reports it as gone.
        """
        changes, self._changes = self._changes, Changes()
        changes.live = [entry for entry in changes.live if self._entries.get(entry.key) is entry]
        changes.pending = [e for e in changes.pending if self._entries.get(e.key) is e and e.is_pending]
        for entry in changes.live:
            if entry in self._outdated:
                self._retire(entry)
        return changes

    def check_integrity(self) -> None:
        """Raise AssertionError if states, holds, pages and entries contradict each other."""
        for entry in self._entries.values():
            assert entry.is_pending or entry.is_live, f"{self!r}: {entry!r} can be found"
            assert entry.is_live or entry.num_readers, f"{self!r}: no request waits for {entry!r}"
            assert entry.is_live or not entry.ready, f"{self!r}: {entry!r} is not live, but serves {entry.ready}"
            assert not entry.is_private, f"{self!r}: {entry!r} is private, but can be found"
        for entry in self._detached:
            assert entry.num_readers, f"{self!r}: no reader holds {entry!r}"
            is_leaving = entry.state in (EntryState.RETIRING, EntryState.GONE)
            assert entry.is_private or is_leaving, f"{self!r}: {entry!r} can't be found"
        entries = (*self._entries.values(), *self._detached)
        assert all(entry.ready <= entry.depths for entry in entries), (
            f"{self!r}: an entry serves what it has no pages for"
        )
        assert all(entry.num_readers or not entry.to_probe for entry in entries), f"{self!r}: a probe for no reader"
        assert all(self._entries.get(e.key) is e for e in self._outdated), f"{self!r}: an outdated entry is gone"
        assert all(self._entries[key].is_pending for key in self._reservations), f"{self!r}: a reserved entry is live"
        self._allocator.check_integrity(sum(entry.num_pages for entry in entries if not entry.is_private))

    def _admit(
        self,
        key: PrefixKey,
        token_ids: tuple[int, ...],
        depths: Set[int],
        content_of: ContextEpoch | None,
        *,
        may_evict: bool,
    ) -> PrefixHandle | None:
        layout = self._allocator.lay_out(len(token_ids), depths)
        if key in self._entries or not self._fit(self._allocator.num_pages(layout), may_evict=may_evict):
            return None
        memory = self._allocator.allocate(layout, is_private=False)
        entry = self._entries[key] = PrefixEntry(key, token_ids, memory, self._first_state, content_of=content_of)
        self._changes.pending.append(entry)
        return self._hold(entry)

    def _hold(self, entry: PrefixEntry) -> PrefixHandle:
        entry.num_readers += 1
        return PrefixHandle(entry, self._remove_reader)

    def _remove_reader(self, entry: PrefixEntry) -> None:
        """Decrement the number of readers. A pending or detached entry is removed with its last reader."""
        entry.num_readers -= 1
        if entry.num_readers:
            return
        entry.to_probe.clear()
        if entry in self._detached:
            del self._detached[entry]
            if entry.state is not EntryState.GONE:
                self._enter(entry, EntryState.GONE)
            self._allocator.free(entry.memory, is_private=entry.is_private)
        elif entry.is_pending:
            self._remove(entry, EntryState.GONE)

    def _enter(self, entry: PrefixEntry, state: EntryState) -> None:
        assert state in SUCCESSORS[entry.state], f"{entry!r} can't become {state.value}"
        entry.state = state

    def _announce(self, entry: PrefixEntry, depths: Set[int]) -> None:
        """Let the entry serve `depths`, and report the change if other requests can find the entry."""
        entry.ready |= depths
        if entry.is_pending:
            self._enter(entry, EntryState.LIVE)
        if self._entries.get(entry.key) is entry:
            self._changes.live.append(entry)
            self._end_reservation(entry.key)

    def _fit(self, num_pages: int, *, is_private: bool = False, may_evict: bool = True) -> bool:
        """Make `num_pages` available, if need be by eviction. If that can't be done, evict nothing and return False."""
        short = self._allocator.shortage(num_pages, is_private=is_private)
        return short <= 0 or (may_evict and self._evict(short))

    def _evict(self, num_pages: int) -> bool:
        idle = eviction_order(self._entries.values(), self._allocator.budget_pages)
        if sum(entry.num_pages for entry in idle) < num_pages:
            return False
        for entry in idle:
            if num_pages <= 0:
                break
            num_pages -= entry.num_pages
            self._remove(entry, EntryState.GONE)
        return True

    def _retire(self, entry: PrefixEntry) -> None:
        self._remove(entry, EntryState.RETIRING if entry.num_readers else EntryState.GONE)

    def _remove(self, entry: PrefixEntry, state: EntryState) -> None:
        """Take the entry out of the index, so that no request finds it. Its readers keep its pages."""
        del self._entries[entry.key]
        self._outdated.discard(entry)
        (self._changes.gone if entry.is_live else self._changes.abandoned).append(entry.key)
        self._enter(entry, state)
        if entry.num_readers:
            self._detached[entry] = None
        else:
            self._allocator.free(entry.memory, is_private=entry.is_private)

    def _is_background(self, entry: PrefixEntry) -> bool:
        return entry.key in self._reservations and entry.num_readers == 1

    def _end_reservation(self, key: PrefixKey) -> None:
        if handle := self._reservations.pop(key, None):
            handle.release()

    def __repr__(self) -> str:
        return f"<PrefixCache [{len(self._entries)} entries, {self.num_pages} of {self._allocator.budget_pages} pages]>"
