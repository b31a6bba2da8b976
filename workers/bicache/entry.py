"""A prefix entry, and what is told of entries."""

from __future__ import annotations

from dataclasses import dataclass, field

from cache_service.core.types import PrefixKey
from workers.api import ContextEpoch
from workers.bicache.depth import Finding
from workers.kv.page_table import EntryLayout, EntryTable
from workers.kv.pool import Pages


@dataclass(eq=False)
class PrefixEntry:
    """One prefix. Its table is valid while a handle is held.

    An entry is live once it serves some depth. It may be widened by further depths at any time; those that it serves
    already stay where they are.
    """

    key: PrefixKey
    token_ids: tuple[int, ...]
    layout: EntryLayout
    """What it has pages for."""
    table: EntryTable
    pages: list[Pages]
    page_bytes: int
    is_private: bool = False
    """It serves one request, outside the entries' budget, and nobody else finds it."""
    ready: frozenset[int] = frozenset()
    """The reuse depths whose K/V and states are in place."""
    built: bool = False
    """Whether it is live."""
    dropped: bool = False
    """A build or a probe of it failed; nothing more is computed for it."""
    content_of: ContextEpoch | None = None
    """The shared context whose content it is, by the word of the request that it was made for."""
    retired: bool = False
    """Its content went out of date before it was live; it goes as soon as its readers have it."""
    awaited: bool = False
    """Its build waits for word from outside: who builds, or a copy."""
    num_readers: int = 0
    build_s: float | None = None
    """Seconds that its build took here."""
    copied: bool = False
    """It came from another replica."""
    num_served: int = 0
    """Requests that it has served."""
    findings: dict[int, Finding] = field(default_factory=dict)
    """What probes found, by ratio bucket."""
    to_probe: dict[int, int] = field(default_factory=dict)
    """Ratio buckets that are yet to be probed -> the depth up to which."""
    drifted: dict[int, int] = field(default_factory=dict)
    """By ratio bucket: depths that a probe found to be less than the depth table allows."""

    @property
    def depths(self) -> frozenset[int]:
        """The reuse depths that it serves, or will serve once it is complete."""
        return self.layout.depths

    @property
    def missing(self) -> frozenset[int]:
        """The reuse depths that are yet to be computed."""
        return self.depths - self.ready

    @property
    def num_pages(self) -> int:
        return sum(map(len, self.pages))

    @property
    def size_bytes(self) -> int:
        return self.num_pages * self.page_bytes

    @property
    def safe_depth(self) -> int:
        """Layers that may be reused at any of the ratios that were probed."""
        return min((self.layout.kv_depth, *self.drifted.values()))

    def __repr__(self) -> str:
        state = "live" if self.built else "pending"
        return (
            f"<PrefixEntry {self.key.hex()[:8]} [{len(self.token_ids)} tokens | {state}, {self.num_readers} readers]>"
        )


def is_due(entry: PrefixEntry) -> bool:
    """Whether there is something to compute for it."""
    return not (entry.awaited or entry.dropped) and bool(entry.missing or entry.to_probe)


@dataclass
class Changes:
    """What came of entries since the last look, for the cache service. A key that went may be there again, as another
    entry: `gone` and `unwanted` come before `built` and `wanted`.
    """

    built: list[PrefixEntry] = field(default_factory=list)
    """Live; said again where what is known of them has changed."""
    gone: list[PrefixKey] = field(default_factory=list)
    """No longer live."""
    wanted: list[PrefixEntry] = field(default_factory=list)
    """Pending."""
    unwanted: list[PrefixKey] = field(default_factory=list)
    """Given up before they were live."""

    def __bool__(self) -> bool:
        return bool(self.built or self.gone or self.wanted or self.unwanted)


@dataclass(frozen=True)
class LiveEntry:
    """A live entry as others may know it."""

    key: PrefixKey
    num_tokens: int
    depths: frozenset[int]
    safe_depth: int
    size_bytes: int
    heat: int
    """Requests served, down to a power of two, so that it is not news at every request."""
    drifted: tuple[tuple[int, int], ...]
    """(ratio bucket, depth)"""
    build_s: float | None
    content_of: ContextEpoch | None = None

    @classmethod
    def of(cls, entry: PrefixEntry) -> LiveEntry:
        """Return the entry's present values."""
        return cls(
            key=entry.key,
            num_tokens=len(entry.token_ids),
            depths=entry.depths,
            safe_depth=entry.safe_depth,
            size_bytes=entry.size_bytes,
            heat=1 << entry.num_served.bit_length() - 1 if entry.num_served else 0,
            drifted=tuple(sorted(entry.drifted.items())),
            build_s=entry.build_s,
            content_of=entry.content_of,
        )

    @property
    def token_layers(self) -> int:
        return self.num_tokens * max(self.depths, default=0)


@dataclass(frozen=True)
class PendingEntry:
    """A pending entry that is awaited."""

    key: PrefixKey
    token_ids: tuple[int, ...]
    depths: tuple[int, ...]
    """Ascending."""
    num_states: int

    @classmethod
    def of(cls, entry: PrefixEntry) -> PendingEntry:
        """Return the entry's present values."""
        return cls(entry.key, entry.token_ids, tuple(sorted(entry.depths)), len(entry.layout.state_depths))

    @property
    def token_layers(self) -> int:
        return len(self.token_ids) * max(self.depths)


@dataclass(frozen=True)
class Report:
    """Changes as values, for other threads."""

    live: tuple[LiveEntry, ...] = ()
    gone: tuple[PrefixKey, ...] = ()
    pending: tuple[PrefixKey, ...] = ()
    wanted: tuple[PendingEntry, ...] = ()
    """Those of the pending that are awaited."""
    unwanted: tuple[PrefixKey, ...] = ()

    @classmethod
    def of(cls, changes: Changes) -> Report:
        """Called where the entries live. What has passed already is left out."""
        return cls(
            live=tuple(LiveEntry.of(entry) for entry in changes.built),
            gone=tuple(changes.gone),
            pending=tuple(entry.key for entry in changes.wanted),
            wanted=tuple(PendingEntry.of(entry) for entry in changes.wanted if entry.awaited),
            unwanted=tuple(changes.unwanted),
        )
