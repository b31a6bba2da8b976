"""Keep the one index of what a replica holds, builds and has announced. Pure."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping

from cache_service.core.types import Build, DepthLimit, Placement, PrefixKey
from workers.bicache.entry_report import EntryReport, LiveEntry


class Inventory:
    """Records this replica's entries and builds, and those that the cache service knows under the present lease."""

    def __init__(self) -> None:
        self._present: set[PrefixKey] = set()
        """Keys of entries that are live or pending, or that the engine was asked to build."""
        self._live: dict[PrefixKey, LiveEntry] = {}
        self._builds: dict[PrefixKey, Build] = {}
        self._announced: dict[PrefixKey, Placement | None] = {}
        """The service's list, by key; None if it is uncertain, since a call got no answer."""
        self._reported: set[DepthLimit] = set()

    # The entries here

    def apply(self, report: EntryReport) -> None:
        """Record the changes to this replica's entries."""
        for key in (*report.gone, *report.abandoned):
            self._present.discard(key)
        for key in report.gone:
            self._live.pop(key, None)
        self._present.update(report.pending)
        for live in report.live:
            self._present.add(live.key)
            self._live[live.key] = live

    def has(self, key: PrefixKey) -> bool:
        """Return whether an entry of `key` is live or pending here, and not about to retire."""
        return key in self._present

    def find_live(self, key: PrefixKey) -> LiveEntry | None:
        return self._live.get(key)

    def live_entries(self) -> Collection[LiveEntry]:
        return self._live.values()

    def replace(self, key: PrefixKey, successor: PrefixKey | None) -> None:
        """Treat the entry of `key` as absent and that of `successor` as present, before the engine reports it.

        The next commit may be known before the engine has begun with the successor.
        """
        self._present.discard(key)
        if successor is not None:
            self._present.add(successor)

    # The builds here, each of which ends with the announcement of its entry

    def add_build(self, build: Build) -> None:
        self._builds[build.key] = build

    def find_build(self, key: PrefixKey) -> Build | None:
        return self._builds.get(key)

    def remove_build(self, key: PrefixKey) -> Build | None:
        """Forget the build of `key`, and return it, if there is one."""
        return self._builds.pop(key, None)

    # What the service knows

    def begin_lease(self) -> None:
        """Record that the service knows nothing: a new lease begins with no announcements and no builds."""
        self._announced.clear()
        self._reported.clear()
        self._builds.clear()

    def announced_except(self, placements: Mapping[PrefixKey, Placement]) -> list[PrefixKey]:
        """Return the keys that the service may list and that are not among `placements`."""
        return [key for key in self._announced if key not in placements]

    def unannounced(self, placements: Mapping[PrefixKey, Placement]) -> list[Placement]:
        """Return the placements that the service does not know, or knows with other values."""
        return [placement for key, placement in placements.items() if self._announced.get(key) != placement]

    def mark_uncertain(self, keys: Iterable[PrefixKey]) -> None:
        """Record that the service may or may not list these entries: a call about them is in progress."""
        self._announced.update((key, None) for key in keys)

    def mark_listed(self, keys: Iterable[PrefixKey]) -> None:
        """Record that the service listed these entries; those that are unknown here can then be withdrawn."""
        for key in keys:
            self._announced.setdefault(key, None)

    def mark_announced(self, placements: Iterable[Placement]) -> None:
        self._announced.update((placement.key, placement) for placement in placements)

    def mark_withdrawn(self, keys: Collection[PrefixKey]) -> None:
        """Record that the service no longer lists these entries; their depth limits may have ended with them."""
        for key in keys:
            self._announced.pop(key, None)
        gone = frozenset(keys)
        self._reported = {limit for limit in self._reported if limit.key not in gone}

    def is_announced(self, key: PrefixKey) -> bool:
        return self._announced.get(key) is not None

    def unreported(self, limits: set[DepthLimit]) -> set[DepthLimit]:
        """Return the depth limits that the service does not know."""
        return limits - self._reported

    def mark_reported(self, limits: Iterable[DepthLimit]) -> None:
        self._reported.update(limits)

    def __repr__(self) -> str:
        builds, announced = len(self._builds), len(self._announced)
        return f"<Inventory [{len(self._live)} live, {builds} being built, {announced} announced]>"
