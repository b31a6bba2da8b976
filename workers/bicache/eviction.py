"""Decide in which order idle entries are evicted. Pure."""

from __future__ import annotations

from collections.abc import Collection

from workers.bicache.entry import PrefixEntry

PROTECTED_SHARE = 0.8
"""The part of the budget whose entries are evicted last: those that have served more than one request."""


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
