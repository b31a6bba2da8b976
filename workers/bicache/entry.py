"""Define the prefix entry, the handle for its readers, and the order in which idle entries are evicted. Pure."""

from __future__ import annotations

import enum
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType, TracebackType

from cache_service.core.types import PrefixKey
from workers.api import ContextEpoch
from workers.bicache.depth import Finding
from workers.bicache.entry_memory import EntryMemory
from workers.kv.page_table import EntryLayout, EntryTable

PROTECTED_SHARE = 0.8
"""The part of the budget whose entries are evicted last: those that have served more than one request."""


class EntryState(enum.Enum):
    """Lists the states of an entry's life, from its admission until its pages are freed."""

    AWAITED = "awaited"
    """Pending, but not built here until `allow_build` is called: a copy may make it live instead."""
    PENDING = "pending"
    """To be built here, for its readers."""
    LIVE = "live"
    """Serving the depths in `ready`. Probes, and depths by which it is widened, may still be missing."""
    RETIRING = "retiring"
    """Out of date: requests no longer find it. It still serves its readers, and is widened and probed for them."""
    GONE = "gone"
    """Evicted, abandoned or failed: nothing is computed for it, and its last reader frees its pages."""


SUCCESSORS: Mapping[EntryState, frozenset[EntryState]] = MappingProxyType(
    {
        EntryState.AWAITED: frozenset({EntryState.PENDING, EntryState.LIVE, EntryState.GONE}),
        EntryState.PENDING: frozenset({EntryState.LIVE, EntryState.GONE}),
        EntryState.LIVE: frozenset({EntryState.RETIRING, EntryState.GONE}),
        EntryState.RETIRING: frozenset({EntryState.GONE}),
        EntryState.GONE: frozenset(),
    }
)


@dataclass(eq=False)
class PrefixEntry:
    """Describes one prefix. Its table is valid while a handle is held. `PrefixCache` alone writes its fields.

    A live entry may be widened by further depths at any time; those that it serves already stay where they are.
    """

    key: PrefixKey
    token_ids: tuple[int, ...]
    memory: EntryMemory
    state: EntryState
    is_private: bool = False
    """True if the entry serves only one request. Its pages don't count in the entries' budget."""
    content_of: ContextEpoch | None = None
    """The shared context whose content it is, according to the request that it was made for."""
    ready: frozenset[int] = frozenset()
    """The reuse depths whose K/V and states are in place."""
    num_readers: int = 0
    build_s: float | None = None
    """Seconds that its build took here."""
    is_copy: bool = False
    """True if the entry was copied from another replica."""
    num_served: int = 0
    """Requests that it has served."""
    findings: dict[int, Finding] = field(default_factory=dict)
    """Findings of probes, by ratio bucket."""
    to_probe: dict[int, int] = field(default_factory=dict)
    """Maps each ratio bucket that is still to be probed to the greatest depth that the probe covers."""
    drifted: dict[int, int] = field(default_factory=dict)
    """Safe depths found by probes, by ratio bucket, if they are below the depth table's."""

    @property
    def is_pending(self) -> bool:
        """Return whether the entry is awaited or pending: it serves no depth yet."""
        return self.state in (EntryState.AWAITED, EntryState.PENDING)

    @property
    def is_live(self) -> bool:
        return self.state is EntryState.LIVE

    @property
    def is_due(self) -> bool:
        """Return whether the entry has a depth or a probe to compute now."""
        can_compute = self.state not in (EntryState.AWAITED, EntryState.GONE)
        return can_compute and bool(self.missing or self.to_probe)

    @property
    def layout(self) -> EntryLayout:
        """Return the layout of the pages that the entry has."""
        return self.memory.layout

    @property
    def table(self) -> EntryTable:
        return self.memory.table

    @property
    def depths(self) -> frozenset[int]:
        """Return the reuse depths that the entry serves, or will serve once it is complete."""
        return self.layout.depths

    @property
    def missing(self) -> frozenset[int]:
        """Return the reuse depths that are yet to be computed."""
        return self.depths - self.ready

    @property
    def num_pages(self) -> int:
        return self.memory.num_pages

    @property
    def size_bytes(self) -> int:
        return self.memory.num_bytes

    @property
    def safe_depth(self) -> int:
        """Return the number of layers that may be reused at all ratios that were probed."""
        return min((self.layout.kv_depth, *self.drifted.values()))

    def __repr__(self) -> str:
        size = f"{len(self.token_ids)} tokens"
        return f"<PrefixEntry {self.key.hex()[:8]} [{size} | {self.state.value}, {self.num_readers} readers]>"


@dataclass
class Changes:
    """Lists the changes to entries since the last call, for the cache service.

    A removed key may return with a new entry, so process `gone` and `abandoned` before `live` and `pending`.
    """

    live: list[PrefixEntry] = field(default_factory=list)
    """Entries that became live, and live ones whose announced values changed."""
    gone: list[PrefixKey] = field(default_factory=list)
    """Keys of entries that were live and left the cache."""
    pending: list[PrefixEntry] = field(default_factory=list)
    """New entries that are not live yet."""
    abandoned: list[PrefixKey] = field(default_factory=list)
    """Keys of entries that left the cache before they were live."""

    def __bool__(self) -> bool:
        return bool(self.live or self.gone or self.pending or self.abandoned)


class PrefixHandle:
    """Holds an entry for a reader, until `release` or the end of a `with`."""

    def __init__(self, entry: PrefixEntry, on_release: Callable[[PrefixEntry], None]) -> None:
        self.entry = entry
        self._on_release = on_release
        self._is_held = True

    def __enter__(self) -> PrefixHandle:
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self.release()

    def release(self) -> None:
        """End the hold. A second call changes nothing."""
        if self._is_held:
            self._is_held = False
            self._on_release(self.entry)


def eviction_order(by_last_use: Collection[PrefixEntry], budget_pages: int) -> list[PrefixEntry]:
    """Return the idle entries of `by_last_use` (least recently used first) in the order of their eviction.

    The order is that of a segmented LRU (Karedla et al. 1994). Entries that served more than one request come last,
    up to `PROTECTED_SHARE` of the budget, so that prefixes which are requested once don't displace those which are
    requested again.
    """
    room, protected = PROTECTED_SHARE * budget_pages, set[PrefixEntry]()
    for entry in reversed(tuple(by_last_use)):
        if entry.num_served > 1 and entry.num_pages <= room:
            room -= entry.num_pages
            protected.add(entry)
    return sorted((entry for entry in by_last_use if not entry.num_readers), key=lambda entry: entry in protected)
