"""Plant bugs in the service, each of which breaks an invariant that the checker must find broken."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import pytest

from cache_service.core.builds import Builds
from cache_service.core.contexts import Contexts, apply_edits
from cache_service.core.cursor import Cursor, Update
from cache_service.core.depths import Depths
from cache_service.core.directory import Directory
from cache_service.core.events import Event, Renewed
from cache_service.core.facts import Change, ChangeReader, Drop
from cache_service.core.hashing import prefix_keys
from cache_service.core.leases import Leases
from cache_service.core.quotas import ContextQuotas, UsageLedger
from cache_service.core.state import State
from cache_service.core.types import Context, FencingToken, Placement, PrefixKey, ReplicaId, Snapshot, Version
from cache_service.errors import Compacted, FencedToken, StaleEpoch
from cache_service.store.feed import Feed

Plant = Callable[[pytest.MonkeyPatch], None]


def reads_that_forget_epochs(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(State, "_is_fresh", lambda self, placement, max_staleness: True)


def edits_of_any_epoch(patch: pytest.MonkeyPatch) -> None:
    whole = Contexts.edit

    def edit(self: Contexts, context_id: Any, expected: Any, *rest: Any, renewal: Any) -> tuple[Event, ...]:
        try:
            return whole(self, context_id, expected, *rest, renewal=renewal)
        except StaleEpoch:
            (event,) = whole(self, context_id, self.get(context_id).epoch, *rest, renewal=renewal)
            return (replace(event, version=replace(event.version, epoch=expected + 1)),)

    patch.setattr(Contexts, "edit", edit)


def writes_under_any_token(patch: pytest.MonkeyPatch) -> None:
    whole = Builds.require

    def require(self: Builds, replica: Any, key: Any, epoch: Any, token: FencingToken) -> Any:
        try:
            return whole(self, replica, key, epoch, token)
        except FencedToken:
            build = self.get(key, epoch)
            if build is None:
                raise
            return build

    patch.setattr(Builds, "require", require)


def builds_for_every_caller(patch: pytest.MonkeyPatch) -> None:
    whole = Builds.acquire

    def acquire(self: Builds, lease: Any, key: Any, epoch: Any, *rest: Any) -> tuple[Event, ...]:
        held = self._builds.pop((key, epoch), None)
        try:
            return whole(self, lease, key, epoch, *rest)
        finally:
            if held is not None:
                self.put(held)

    patch.setattr(Builds, "acquire", acquire)


def leases_that_lapse_early(patch: pytest.MonkeyPatch) -> None:
    whole = Leases.grant
    patch.setattr(Leases, "grant", lambda self, lease, ttl_s, now: whole(self, lease, ttl_s / 2, now))


def leases_that_never_lapse(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Leases, "lapsed", lambda self, now: frozenset())


def watchers_that_skip_gaps(patch: pytest.MonkeyPatch) -> None:
    def take(self: Cursor, update: Update) -> Sequence[Snapshot | Event]:
        if update.part is not None:
            return self._take_part(update.incarnation, update.part)
        if self._revision is None:
            raise Compacted("no snapshot yet")
        fresh = [event for event in update.events if event.revision > self._revision]
        self._revision = fresh[-1].revision if fresh else self._revision
        return fresh

    patch.setattr(Cursor, "take", take)


def a_log_that_forgets_in_silence(patch: pytest.MonkeyPatch) -> None:
    whole = Feed.read

    def read(self: Feed, after: Any, limit: int) -> list[Event]:
        try:
            return whole(self, after, limit)
        except Compacted:
            return whole(self, type(after)(self.head - len(self._events)), limit)

    patch.setattr(Feed, "read", read)
    watchers_that_skip_gaps(patch)


def keys_without_salt(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(
        "cache_service.core.contexts.prefix_keys", lambda fingerprint, salt, *rest: prefix_keys(fingerprint, "", *rest)
    )


def withdrawals_that_watchers_miss(patch: pytest.MonkeyPatch) -> None:
    whole = State.apply

    def apply(self: State, event: Event) -> tuple[Change, ...]:
        changes = whole(self, event)
        if event.revision % 500 == 0:
            ghost = Placement(PrefixKey(b"ghost"), ReplicaId("ghost"), event.revision, id(self) % 999, 1)
            self.directory.put_placement(ghost)
        return changes

    patch.setattr(State, "apply", apply)


def limits_that_never_end(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Depths, "drop", lambda self, limit: None)


def limits_that_rise(patch: pytest.MonkeyPatch) -> None:
    patch.setattr("cache_service.core.depths._rank", lambda limit: (limit.depth_table_version, limit.depth))


def edits_that_every_seventh_epoch_drops(patch: pytest.MonkeyPatch) -> None:
    def apply(context: Context, version: Version, edits: Any, lifetime: Any) -> Context:
        return apply_edits(context, version, () if version.epoch % 7 == 0 else edits, lifetime)

    patch.setattr("cache_service.core.facts.apply_edits", apply)


def holes_that_stay_where_they_were(patch: pytest.MonkeyPatch) -> None:
    def apply(context: Context, version: Version, edits: Any, lifetime: Any) -> Context:
        after = apply_edits(context, version, edits, lifetime)
        return replace(after, masked=tuple(hole for hole in context.masked if hole < len(after.token_ids)))

    patch.setattr("cache_service.core.facts.apply_edits", apply)


def creations_that_act_at_every_try(patch: pytest.MonkeyPatch) -> None:
    whole = Contexts.create

    def create(self: Contexts, *rest: Any, **owner: Any) -> tuple[Event, ...]:
        made, self._made_by = self._made_by, {}
        try:
            return whole(self, *rest, **owner)
        finally:
            self._made_by = made

    patch.setattr(Contexts, "create", create)


def edits_that_act_at_every_try(patch: pytest.MonkeyPatch) -> None:
    whole = Contexts.edit

    def edit(
        self: Contexts, context_id: Any, expected: Any, edits: Any, edit_id: Any, *rest: Any, renewal: Any
    ) -> tuple[Event, ...]:
        events = whole(self, context_id, expected, edits, edit_id, *rest, renewal=renewal)
        if events:
            return events
        newest = self.get(context_id).epoch
        (event,) = whole(self, context_id, newest, edits, type(edit_id)("new"), *rest, renewal=renewal)
        return (replace(event, version=replace(event.version, edit_id=edit_id)),)

    patch.setattr(Contexts, "edit", edit)


def registrations_that_keep_builds(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(State, "register", lambda self, *rest: self.directory.register(*rest))


def stale_entries_that_stay(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Directory, "withdraw_stale", lambda *_: ())


def deletions_that_leave_builds(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Builds, "before_epoch", lambda self, context, epoch: [])


def lookups_that_find_nothing(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(State, "lookup", lambda self, keys, max_staleness: {})


def lookups_that_find_one_holder(patch: pytest.MonkeyPatch) -> None:
    whole = State.lookup
    patch.setattr(
        State,
        "lookup",
        lambda self, *rest: {key: holders[:1] for key, holders in whole(self, *rest).items()},
    )


def announcements_that_get_lost(patch: pytest.MonkeyPatch) -> None:
    whole = Directory.announce

    def announce(self: Directory, lease: Any, placements: Any, at: Any) -> tuple[Event, ...]:
        return whole(self, lease, placements, at) if at % 50 else ()

    patch.setattr(Directory, "announce", announce)


def withdrawals_that_do_nothing(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Directory, "withdraw", lambda *_: ())


def releases_that_do_nothing(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(State, "release", lambda *_: ())


def lists_without_the_newest_context(patch: pytest.MonkeyPatch) -> None:
    whole = Contexts.page
    patch.setattr(Contexts, "page", lambda self, *rest: whole(self, *rest)[:-1])


def limits_that_the_last_report_replaces(patch: pytest.MonkeyPatch) -> None:
    ranks = iter(range(10**9))
    patch.setattr("cache_service.core.depths._rank", lambda limit: -next(ranks))


def limits_that_end_with_any_placement(patch: pytest.MonkeyPatch) -> None:
    def withdraw(self: ChangeReader, placement: Placement) -> Iterator[Change]:
        yield Drop(placement)
        for limit in self._depths.lookup([placement.key]):
            yield Drop(limit)

    patch.setattr(ChangeReader, "_withdraw", withdraw)


def contexts_without_bounds(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(ContextQuotas, "require_room", lambda self, growth, tenant, ledger: None)


def edits_without_bounds(patch: pytest.MonkeyPatch) -> None:
    whole = ContextQuotas.require_room
    patch.setattr(
        ContextQuotas,
        "require_room",
        lambda self, growth, *rest: whole(self, replace(growth, num_tokens=0), *rest),
    )


def contexts_that_count_for_no_tenant(patch: pytest.MonkeyPatch) -> None:
    whole = Contexts.create
    patch.setattr(Contexts, "create", lambda self, *rest, tenant, renewal: whole(self, *rest, renewal=renewal))


def usage_that_never_falls(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(UsageLedger, "subtract", lambda self, tenant, usage: None)


def lifetimes_that_never_end(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(State, "expire_context", lambda *_: ())


def lifetimes_that_end_early(patch: pytest.MonkeyPatch) -> None:
    expired, expire = Contexts.expired, State.expire_context
    patch.setattr(Contexts, "expired", lambda self, now: expired(self, now + 1.0))
    patch.setattr(State, "expire_context", lambda self, context, now, at: expire(self, context, now + 1.0, at))


def lifetimes_that_edits_leave(patch: pytest.MonkeyPatch) -> None:
    whole = Contexts.edit
    patch.setattr(Contexts, "edit", lambda self, *rest, renewal: whole(self, *rest, renewal=None))


def renewals_that_get_lost(patch: pytest.MonkeyPatch) -> None:
    whole = ChangeReader.changes_of

    def changes_of(self: ChangeReader, event: Event) -> Iterator[Change]:
        return iter(()) if isinstance(event, Renewed) else whole(self, event)

    patch.setattr(ChangeReader, "changes_of", changes_of)
