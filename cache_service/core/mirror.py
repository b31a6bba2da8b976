"""Keep a copy of the service's state from a watch, and report the changes in each update. Pure.

The copy is a hint, never a promise: it becomes stale while the watch is interrupted.
"""

from __future__ import annotations

from dataclasses import dataclass

from cache_service.core.events import Event
from cache_service.core.facts import Change, Drop, Put
from cache_service.core.state import State
from cache_service.core.types import Build, Context, DepthLimit, FencingToken, PrefixKey, Revision, Snapshot


@dataclass(frozen=True)
class Moved:
    """Reports that no context has the content `old` any more."""

    old: PrefixKey
    context: Context | None
    """The context that had it, as it is now; None if it was deleted."""


@dataclass(frozen=True)
class News:
    """Lists the changes in an update that matter to members and routers."""

    lifted: frozenset[PrefixKey] = frozenset()
    """Keys whose earlier depth limits have ended; with a snapshot, all keys that were limited before."""
    limits: tuple[DepthLimit, ...] = ()
    """The depth limits that hold from now on."""
    moved: tuple[Moved, ...] = ()
    renamed: frozenset[PrefixKey] = frozenset()
    """Keys that may now be the content of another context, or of none."""
    ended_builds: frozenset[FencingToken] = frozenset()
    is_restart: bool = False
    """True if the update is a snapshot, which replaced the whole state."""


class Mirror:
    """Keeps the state that results from the updates of one watch."""

    def __init__(self) -> None:
        self.state = State()

    @property
    def revision(self) -> Revision:
        return self.state.revision

    def take(self, update: Snapshot | Event) -> News:
        """Apply one update of the watch. An event that is known already changes nothing."""
        if isinstance(update, Snapshot):
            return self._restart(update)
        if update.revision <= self.revision:
            return News()
        return self._news_of(self.state.apply(update))

    def _restart(self, snapshot: Snapshot) -> News:
        before, self.state = self.state, State.of(snapshot)
        contexts = self.state.contexts
        moved = [
            Moved(version.key, context)
            for context in snapshot.contexts
            for version in context.past
            if contexts.is_stale(version.key)
        ]
        deleted = (context for context in before.contexts.all() if contexts.find(context.id) is None)
        moved += [Moved(context.key, None) for context in deleted if contexts.with_content(context.key) is None]
        in_progress = {build.token for build in snapshot.builds}
        ended = frozenset(build.token for build in before.builds.all() if build.token not in in_progress)
        lifted = frozenset(limit.key for limit in before.depths.all())
        limits = self.state.depths.all()
        return News(lifted, limits, tuple(moved), ended_builds=ended, is_restart=True)

    def _news_of(self, changes: tuple[Change, ...]) -> News:
        lifted: set[PrefixKey] = set()
        limits: list[DepthLimit] = []
        moved: list[Moved] = []
        renamed: set[PrefixKey] = set()
        ended: set[FencingToken] = set()
        for change in changes:
            match change:
                case Put(DepthLimit() as limit):
                    limits.append(limit)
                case Drop(DepthLimit(key=key)):
                    lifted.add(key)
                case Put(Context() as context, replaced):
                    renamed.update(context.keys, replaced.keys if replaced else ())
                    moved += self._moved(replaced, context)
                case Drop(Context() as context):
                    renamed.update(context.keys)
                    moved += self._moved(context, None)
                case Drop(Build() as build):
                    ended.add(build.token)
                case _:
                    pass
        return News(frozenset(lifted), tuple(limits), tuple(moved), frozenset(renamed), frozenset(ended))

    def _moved(self, before: Context | None, after: Context | None) -> list[Moved]:
        """Report the old content of a context unless a context has it still; an edit may change nothing."""
        if before is None or self.state.contexts.with_content(before.key) is not None:
            return []
        return [Moved(before.key, after)]

    def __repr__(self) -> str:
        return f"<Mirror of {self.state}>"
