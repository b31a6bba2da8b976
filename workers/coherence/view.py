"""What this replica knows of the others, fed by a watch. Pure: `apply` is the only way in, and says what follows."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from cache_service.core.events import Created, Deleted, Edited, Event, Limited
from cache_service.core.state import State
from cache_service.core.types import Context, ContextId, DepthLimit, PrefixKey, ReplicaId, Revision, Snapshot
from workers.api import ContextEpoch


@dataclass(frozen=True)
class Moved:
    """What was a context's content under `old` is so no longer."""

    old: PrefixKey
    context: Context | None
    """As it is now; None once it is deleted."""


@dataclass(frozen=True)
class News:
    """What an update of the view means to a replica."""

    limits: tuple[DepthLimit, ...] = ()
    moved: tuple[Moved, ...] = ()
    renamed: frozenset[PrefixKey] = frozenset()
    """Keys of which an event may have changed whose content they are, or whether they are anybody's."""


class ClusterView:
    """Who holds what, and which keys are a shared context's content. It is a hint: it may be behind the service."""

    def __init__(self) -> None:
        self._state = State()
        self._current: dict[PrefixKey, set[ContextId]] = {}
        self._past: dict[PrefixKey, set[ContextId]] = {}

    def apply(self, update: Snapshot | Event) -> News:
        """Take one message of a watch."""
        if isinstance(update, Snapshot):
            return self._restart(update)
        limits = (update.limit,) if isinstance(update, Limited) else ()
        return replace(self._follow(update), limits=limits)

    @property
    def revision(self) -> Revision:
        return self._state.revision

    def holders(self, key: PrefixKey) -> frozenset[ReplicaId]:
        return frozenset(placement.replica for placement in self._state.directory.lookup([key]).get(key, ()))

    def context(self, context_id: ContextId) -> Context | None:
        """Its newest content, as far as was told; None where nothing was, or that it is gone."""
        return self._state.contexts.find(context_id)

    def context_of(self, key: PrefixKey) -> ContextEpoch | None:
        """A context whose newest content has this key."""
        ids = self._current.get(key)
        context = self._state.contexts.find(min(ids)) if ids else None
        return ContextEpoch(context.id, context.epoch) if context else None

    def is_stale(self, key: PrefixKey) -> bool:
        """Whether the key was a context's content, and is no context's now."""
        return key in self._past and key not in self._current

    def is_over(self, at: ContextEpoch, key: PrefixKey) -> bool:
        """Whether the content `key` that a context had `at` its epoch is known to be no context's now."""
        newest = self._state.contexts.find(at.context)
        return newest is not None and newest.epoch > at.epoch and key not in self._current

    def _restart(self, snapshot: Snapshot) -> News:
        before = self._state.contexts.all()
        self._state = State.of(snapshot)
        self._current, self._past = {}, {}
        for context in snapshot.contexts:
            self._index(context)
        moved = [
            Moved(version.key, context)
            for context in snapshot.contexts
            for version in context.past
            if self.is_stale(version.key)
        ]
        deleted = (context for context in before if self._state.contexts.find(context.id) is None)
        moved += [Moved(context.key, None) for context in deleted if context.key not in self._current]
        return News(snapshot.limits, tuple(moved))

    def _follow(self, event: Event) -> News:
        """Take an event of a context in; an edit that changes nothing leaves its key current."""
        context_id: ContextId | None = None
        match event:
            case Created(context=context):
                context_id = context.id
            case Edited(context_id=edited) | Deleted(context_id=edited):
                context_id = edited
            case _:
                pass
        old = self._state.contexts.find(context_id) if context_id else None
        self._state.apply(event)
        if old is not None:
            self._forget(old)
        new = self._state.contexts.find(context_id) if context_id else None
        if new is not None:
            self._index(new)
        renamed = frozenset(version.key for c in (old, new) if c for version in (c.version, *c.past))
        moved = (Moved(old.key, new),) if old is not None and old.key not in self._current else ()
        return News(moved=moved, renamed=renamed)

    def _index(self, context: Context) -> None:
        self._current.setdefault(context.key, set()).add(context.id)
        for version in context.past:
            self._past.setdefault(version.key, set()).add(context.id)

    def _forget(self, context: Context) -> None:
        remove(self._current, [context.key], context.id)
        remove(self._past, {version.key for version in context.past}, context.id)

    def __repr__(self) -> str:
        return f"<ClusterView at {self.revision}: {self._state.directory}, {len(self._state.contexts)} contexts>"


def remove(index: dict[PrefixKey, set[ContextId]], keys: Iterable[PrefixKey], context: ContextId) -> None:
    for key in keys:
        index[key].discard(context)
        if not index[key]:
            del index[key]
