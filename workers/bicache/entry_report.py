"""Carry the changes to entries to other threads, as immutable snapshots. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from cache_service.core.types import PrefixKey
from workers.api import ContextEpoch
from workers.bicache.entry import Changes, EntryState, PrefixEntry


@dataclass(frozen=True)
class LiveEntry:
    """Carries the values of a live entry that other replicas may know."""

    key: PrefixKey
    num_tokens: int
    depths: frozenset[int]
    safe_depth: int
    size_bytes: int
    heat: int
    """Requests served, rounded down to a power of two, so that it does not change at every request."""
    drifted: tuple[tuple[int, int], ...]
    """Pairs of a ratio bucket and its depth."""
    build_s: float | None
    content_of: ContextEpoch | None = None

    @classmethod
    def of(cls, entry: PrefixEntry) -> LiveEntry:
        """Return a snapshot of the entry's present values."""
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
    """Carries the values of a pending entry with which another replica can be asked for a copy."""

    key: PrefixKey
    token_ids: tuple[int, ...]
    depths: tuple[int, ...]
    """The depths that it is to serve, ascending."""
    num_states: int

    @classmethod
    def of(cls, entry: PrefixEntry) -> PendingEntry:
        """Return a snapshot of the entry's present values."""
        return cls(entry.key, entry.token_ids, tuple(sorted(entry.depths)), len(entry.layout.state_depths))

    @property
    def token_layers(self) -> int:
        return len(self.token_ids) * max(self.depths)


@dataclass(frozen=True)
class EntryReport:
    """Carries immutable snapshots of changed entries to other threads."""

    live: tuple[LiveEntry, ...] = ()
    gone: tuple[PrefixKey, ...] = ()
    pending: tuple[PrefixKey, ...] = ()
    awaited: tuple[PendingEntry, ...] = ()
    """The subset of the pending entries that are awaited."""
    abandoned: tuple[PrefixKey, ...] = ()

    @classmethod
    def of(cls, changes: Changes) -> EntryReport:
        """Return the values of the changed entries. Runs on the thread that owns them."""
        return cls(
            live=tuple(LiveEntry.of(entry) for entry in changes.live),
            gone=tuple(changes.gone),
            pending=tuple(entry.key for entry in changes.pending),
            awaited=tuple(PendingEntry.of(entry) for entry in changes.pending if entry.state is EntryState.AWAITED),
            abandoned=tuple(changes.abandoned),
        )
