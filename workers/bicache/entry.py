"""A prefix entry, and what is told of entries."""

from __future__ import annotations

from dataclasses import dataclass, field

from cache_service.types import PrefixKey
from workers.kv.page_table import EntryLayout, EntryTable
from workers.kv.pool import Pages


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
    awaited: bool = False
    """Its build waits for word from outside: who builds, or a copy."""
    num_readers: int = 0
    build_s: float | None = None
    """Seconds that its build took here; None for a copy."""
    num_served: int = 0
    """Requests that it has served."""
    trusted: dict[int, int] = field(default_factory=dict)
    """By ratio bucket: the depth that a comparison with true states allows."""
    to_probe: dict[int, int] = field(default_factory=dict)
    """Ratio buckets that are still to be compared -> tokens of the suffix to compare with."""
    drifted: dict[int, int] = field(default_factory=dict)
    """Those of `trusted` that are less than the depth table allows."""

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


def is_due(entry: PrefixEntry) -> bool:
    """Whether there is something to compute for it."""
    return not entry.awaited and (not entry.built or bool(entry.to_probe))


@dataclass
class Changes:
    """What came of entries since the last look, for the cache service."""

    built: list[PrefixEntry] = field(default_factory=list)
    """Live; said again where what is known of them has changed."""
    gone: list[PrefixKey] = field(default_factory=list)
    """No longer live."""
    wanted: list[PrefixEntry] = field(default_factory=list)
    """Pending, and awaited."""
    unwanted: list[PrefixKey] = field(default_factory=list)
    """Given up before they were live."""

    def __bool__(self) -> bool:
        return bool(self.built or self.gone or self.wanted or self.unwanted)
