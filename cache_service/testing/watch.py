"""Check what one watcher receives, by a model of the service that shares no code with it."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import replace
from typing import assert_never

from cache_service.core.contexts import MAX_STALENESS
from cache_service.core.events import (
    Announced,
    Built,
    Created,
    Deleted,
    Draining,
    Edited,
    Event,
    Granted,
    Joined,
    Left,
    Limited,
    Released,
    Renewed,
    Withdrawn,
)
from cache_service.core.quotas import UNBOUNDED, ContextQuotas
from cache_service.core.state import EXPIRY
from cache_service.core.types import (
    Build,
    Context,
    ContextId,
    DepthLimit,
    EditId,
    Epoch,
    Placement,
    PrefixKey,
    ReplicaId,
    Revision,
    Snapshot,
)
from cache_service.testing.contents import KeyBook, content_of, edited
from cache_service.testing.moments import Violation


class WatchChecker:
    """Checks a snapshot, then every event: once, in order, and one that may follow what is known."""

    def __init__(self, quotas: ContextQuotas = UNBOUNDED) -> None:
        self._quotas = quotas
        self.num_events = 0
        self.num_snapshots = 0
        self._revision: Revision | None = None
        self._members: set[ReplicaId] = set()
        self._draining: set[ReplicaId] = set()
        self._entries: defaultdict[PrefixKey, dict[ReplicaId, Placement]] = defaultdict(dict)
        self._contexts: dict[ContextId, Context] = {}
        self._builds: dict[tuple[PrefixKey, Epoch], Build] = {}
        self._limits: dict[tuple[PrefixKey, int], DepthLimit] = {}
        self._overdue: set[Placement | Build] = set()
        self._origins: dict[EditId, ContextId] = {}
        self._edits: dict[EditId, tuple[ContextId, Epoch]] = {}
        self._keys = KeyBook()

    def take(self, item: Snapshot | Event) -> None:
        """Check the next item. Raises Violation for one that can't follow what came before."""
        if isinstance(item, Snapshot):
            self.num_snapshots += 1
            self._restart(item)
        else:
            self.num_events += 1
            if self._revision is None or item.revision != self._revision + 1:
                raise Violation(f"event {item.revision} came after revision {self._revision}")
            if not isinstance(item, Withdrawn | Released):
                self.require_nothing_overdue()
            self._follow(item)
        self._revision = item.revision

    def view(self) -> Snapshot:
        """Return what a watcher of these items must know by now."""
        return Snapshot(
            Revision(self._revision or 0),
            tuple(self._members),
            tuple(self._placements()),
            tuple(self._draining),
            tuple(self._contexts.values()),
            tuple(self._builds.values()),
            tuple(self._limits.values()),
        )

    def require_nothing_overdue(self) -> None:
        """Raise Violation where entries or builds have outlived the content that they are of."""
        if self._overdue:
            raise Violation(f"these should have gone with their content: {self._overdue}")

    def _restart(self, snapshot: Snapshot) -> None:
        self._members, self._draining = set(snapshot.members), set(snapshot.draining)
        self._entries.clear()
        for placement in snapshot.placements:
            self._entries[placement.key][placement.replica] = placement
        self._contexts = {}
        for context in snapshot.contexts:
            self._add_context(context)
        self._builds = {(build.key, build.epoch): build for build in snapshot.builds}
        self._limits = {(limit.key, limit.bucket): limit for limit in snapshot.limits}
        self._overdue.clear()
        for context in snapshot.contexts:
            self._expect_end(context.id, context.epoch)

    def _follow(self, event: Event) -> None:
        match event:
            case Joined(lease=lease):
                self._require(lease.replica not in self._members and int(lease.id) == event.revision, event)
                self._members.add(lease.replica)
            case Left(replica=replica):
                self._require(replica in self._members, event)
                self._require(all(build.replica != replica for build in self._builds.values()), event)
                self._members.remove(replica)
                self._draining.discard(replica)
                for placement in [placement for placement in self._placements() if placement.replica == replica]:
                    self._remove(placement)
            case Draining(replica=replica):
                self._require(replica in self._members - self._draining, event)
                self._draining.add(replica)
            case Announced(placement=placement):
                self._require(placement.replica in self._members, event)
                self._require_current(placement, event)
                self._entries[placement.key][placement.replica] = placement
            case Withdrawn(placement=placement):
                self._require(self._entries[placement.key].get(placement.replica) == placement, event)
                self._remove(placement)
            case Created() | Edited() | Renewed() | Deleted():
                self._follow_context(event)
            case Granted() | Built() | Released():
                self._follow_build(event)
            case Limited(limit=limit):
                self._require(bool(self._entries[limit.key]), event)
                known = self._limits.get((limit.key, limit.bucket))
                if known is not None and _rank(limit) <= _rank(known):
                    raise Violation(f"{event} does not lower {known}")
                self._limits[limit.key, limit.bucket] = limit
            case _:
                assert_never(event)

    def _follow_context(self, event: Created | Edited | Renewed | Deleted) -> None:
        match event:
            case Created(context=context):
                self._require(context.id not in self._contexts and context.epoch == 0, event)
                self._add_context(context)
                self._require_within_quotas(event, context)
            case Edited(context_id=context_id, version=version, edits=edits, lifetime=lifetime):
                before = self._contexts[context_id]
                if version.epoch != before.epoch + 1:
                    raise Violation(f"{event} came after epoch {before.epoch}")
                content = edited(content_of(before), edits)
                past = (before.version, *before.past)[:MAX_STALENESS]
                tokens = tuple(token for token, _ in content)
                masked = tuple(position for position, (_, is_hole) in enumerate(content) if is_hole)
                after = replace(before, token_ids=tokens, masked=masked, version=version, past=past, lifetime=lifetime)
                self._require(lifetime is not None or before.lifetime is None, event)
                self._add_context(after)
                if len(tokens) > len(before.token_ids):
                    self._require_within_quotas(event, after)
                self._expect_end(context_id, version.epoch)
            case Renewed(context_id=context_id, lifetime=lifetime):
                self._require(context_id in self._contexts, event)
                self._contexts[context_id] = replace(self._contexts[context_id], lifetime=lifetime)
            case Deleted(context_id=context_id, author=author):
                deleted = self._contexts.pop(context_id, None)
                self._require(deleted is not None, event)
                self._require(author != EXPIRY or (deleted is not None and deleted.lifetime is not None), event)
                self._expect_end(context_id, None)

    def _require_within_quotas(self, event: Event, grown: Context) -> None:
        """Require that neither the contexts of the tenant of `grown` nor all have grown beyond a quota."""
        lengths = [(context.tenant, len(context.token_ids)) for context in self._contexts.values()]
        own = [length for tenant, length in lengths if tenant == grown.tenant]
        quotas = self._quotas
        is_within = len(own) <= quotas.max_per_tenant and len(lengths) <= quotas.max_total
        is_within &= sum(own) <= quotas.max_tokens_per_tenant
        is_within &= sum(length for _, length in lengths) <= quotas.max_total_tokens
        if not is_within:
            raise Violation(f"{event} is beyond a quota: {lengths}")

    def _follow_build(self, event: Granted | Built | Released) -> None:
        build = event.build
        known = self._builds.get((build.key, build.epoch))
        if isinstance(event, Granted):
            self._require(known is None and int(build.token) == event.revision, event)
            self._require(build.replica in self._members, event)
            self._require_current(build, event)
            self._builds[build.key, build.epoch] = build
            return
        self._require(known == build, event)
        if isinstance(event, Built):
            made = self._entries[build.key].get(build.replica)
            self._require(made is not None and made.token == build.token, event)
        del self._builds[build.key, build.epoch]
        self._overdue.discard(build)

    def _add_context(self, context: Context) -> None:
        first = self._origins.setdefault(context.origin, context.id)
        if first != context.id:
            raise Violation(f"the creation {context.origin} made two contexts: {first} and {context.id}")
        for version in (context.version, *context.past):
            made = self._edits.setdefault(version.edit_id, (context.id, version.epoch))
            if made != (context.id, version.epoch):
                raise Violation(f"the edit {version.edit_id} acted twice: on {made} and {context.id}")
        self._keys.check(context)
        self._contexts[context.id] = context

    def _expect_end(self, context: ContextId, newest: Epoch | None) -> None:
        """Expect the end of what is too old at epoch `newest`, or of all that is of a deleted context."""
        self._overdue.update(
            placement
            for placement in self._placements()
            if placement.context == context and (newest is None or placement.epoch < newest - MAX_STALENESS)
        )
        self._overdue.update(
            build
            for build in self._builds.values()
            if build.context == context and (newest is None or build.epoch < newest)
        )

    def _remove(self, placement: Placement) -> None:
        holders = self._entries[placement.key]
        del holders[placement.replica]
        self._overdue.discard(placement)
        if not holders:
            self._limits = {identity: limit for identity, limit in self._limits.items() if limit.key != placement.key}

    def _placements(self) -> list[Placement]:
        return [placement for holders in self._entries.values() for placement in holders.values()]

    def _require_current(self, subject: Placement | Build, event: Event) -> None:
        if subject.context is not None:
            version = self._contexts[subject.context].version
            self._require((version.epoch, version.key) == (subject.epoch, subject.key), event)

    def _require(self, fits: bool, event: Event) -> None:
        if not fits:
            raise Violation(f"{event} can't follow what came before revision {event.revision}")


def _rank(limit: DepthLimit) -> tuple[int, int]:
    return limit.depth_table_version, -limit.depth


def require_same_view(view: Snapshot, store: Snapshot) -> None:
    """Raise Violation unless a watcher knows what the store knows. Order within a snapshot has no meaning."""
    for name in ("members", "placements", "draining", "contexts", "builds", "limits"):
        seen, known = set(getattr(view, name)), set(getattr(store, name))
        if seen != known:
            raise Violation(f"{name} differ at {view.revision}: only seen {seen - known}, only known {known - seen}")
    if view.revision != store.revision:
        raise Violation(f"the watcher is at {view.revision}, the store at {store.revision}")
