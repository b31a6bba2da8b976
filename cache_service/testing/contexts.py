"""Check what clients observe of shared contexts: epochs, contents, and that a change acts once however often sent."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from cache_service.core.contexts import MAX_STALENESS
from cache_service.core.quotas import UNBOUNDED, ContextQuotas
from cache_service.core.types import (
    SOLE_TENANT,
    Context,
    ContextId,
    Edit,
    EditId,
    Epoch,
    Lifetime,
    TenantId,
    Version,
)
from cache_service.testing.contents import Content, KeyBook, content_from, content_of, edited
from cache_service.testing.lifetimes import LifetimeHistory
from cache_service.testing.moments import Clock, Moments, Rising, Violation
from cache_service.testing.tenants import TenantHistory


@dataclass(frozen=True, slots=True)
class _Attempt:
    """Holds an edit that a client has sent: it is carried out once or never."""

    context: ContextId
    epoch: Epoch
    """The epoch that it makes."""
    edits: tuple[Edit, ...]


class ContextHistory:
    """Checks the calls about contexts of one history. A method raises Violation if an observation can't be true."""

    def __init__(
        self,
        moments: Moments,
        *,
        clock: Clock,
        wall_clock: Clock,
        strays_s: float,
        quotas: ContextQuotas = UNBOUNDED,
    ) -> None:
        self._moments = moments
        self.lifetimes = LifetimeHistory(moments, clock=clock, wall_clock=wall_clock, strays_s=strays_s)
        self.tenants = TenantHistory(quotas)
        self.num_contents = 0
        """Contents that were compared with the accepted edits."""
        self._checked: dict[ContextId, Context] = {}
        self._epochs: defaultdict[ContextId, Rising] = defaultdict(Rising)
        self._highest: dict[ContextId, Epoch] = {}
        self._deletions: set[ContextId] = set()
        self._deleted: dict[ContextId, int] = {}
        self._creations: dict[EditId, Content] = {}
        self._created: dict[EditId, ContextId] = {}
        self._existing: dict[ContextId, tuple[int, str]] = {}
        """The moment at which the creation was acknowledged, and the salt."""
        self._attempts: dict[EditId, _Attempt] = {}
        self._made: dict[EditId, tuple[ContextId, Epoch]] = {}
        self._versions: dict[tuple[ContextId, Epoch], Version] = {}
        self._contents: dict[tuple[ContextId, Epoch], Content] = {}
        self._keys = KeyBook()

    # Changes

    def begin_create(
        self,
        edit_id: EditId,
        token_ids: Sequence[int],
        masked: Iterable[int] = (),
        *,
        tenant: TenantId = SOLE_TENANT,
    ) -> int:
        """Record that a creation will be sent, for the first time or again."""
        self._creations[edit_id] = content_from(token_ids, masked)
        self.lifetimes.begin_change(edit_id)
        self.tenants.begin_create(edit_id, tenant)
        return self._moments.begin()

    def end_create(self, edit_id: EditId, context: Context) -> None:
        """Require that the creation made this context and no other, within the quotas."""
        if context.origin != edit_id:
            raise Violation(f"the creation {edit_id} returned {context}")
        self._check(context)
        self.lifetimes.end_change(edit_id, context.id, context.lifetime)
        self._epochs[context.id].rise(self._moments.now, context.epoch)
        self._existing.setdefault(context.id, (self._moments.now, context.salt))
        self.tenants.end_create(edit_id, context, self._surely_exists)

    def begin_edit(
        self,
        context: ContextId,
        expected: Epoch,
        edits: Sequence[Edit],
        edit_id: EditId,
        *,
        ttl_s: float | None = None,
    ) -> int:
        """Record that an edit will be sent, for the first time or again."""
        self.lifetimes.begin_change(edit_id, context, ttl_s)
        epoch = Epoch(expected + 1)
        self._attempts[edit_id] = _Attempt(context, epoch, tuple(edits))
        self._highest[context] = max(epoch, self._highest.get(context, epoch))
        return self._moments.begin()

    def end_edit(self, context: ContextId, edit_id: EditId, version: Version, lifetime: Lifetime | None = None) -> None:
        """Require that of the edits to one epoch only one is accepted, and that it makes one epoch."""
        if version.edit_id != edit_id:
            raise Violation(f"the edit {edit_id} of {context} returned {version}")
        self._check_version(context, version)
        self.lifetimes.end_change(edit_id, context, lifetime)
        self._epochs[context].rise(self._moments.now, version.epoch)

    def begin_renew(self, context: ContextId, renewal: EditId, ttl_s: float | None) -> int:
        """Record that a renewal will be sent; its id is known only here."""
        self.lifetimes.begin_change(renewal, context, ttl_s)
        return self._moments.begin()

    def end_renew(self, context: ContextId, renewal: EditId, lifetime: Lifetime | None) -> None:
        self.lifetimes.end_change(renewal, context, lifetime)

    def begin_delete(self, context: ContextId) -> int:
        self._deletions.add(context)
        return self._moments.begin()

    def end_delete(self, context: ContextId) -> None:
        self._deleted.setdefault(context, self._moments.now)
        self.tenants.forget(context)

    # Reads

    def end_get(self, began: int, context: Context) -> None:
        """Require the newest epoch that was acknowledged before, with the content that the accepted edits made."""
        self.require_fresh(began, context.id, context.epoch, 0)
        self._check(context)
        self.lifetimes.end_read(began, context)

    def end_unknown(self, began: int, context: ContextId) -> None:
        """Require of a context that the service doesn't know that it may have been deleted, or have ended."""
        created, _ = self._existing.get(context, (began, ""))
        if created < began and self._surely_exists(context):
            raise Violation(f"{context} is unknown, though its creation had been acknowledged before")
        self._deletions.add(context)
        self.end_delete(context)

    def end_list(self, began: int, salt: str, contexts: Iterable[Context]) -> None:
        """Require of the whole list of a salt's contexts each that surely exists once, and none that was deleted."""
        listed: set[ContextId] = set()
        for context in contexts:
            self.require_fresh(began, context.id, context.epoch, 0)
            self._check_origin(context)
            self._check_version(context.id, context.version)
            self.lifetimes.end_read(began, context)
            if context.id in listed or context.salt != salt:
                raise Violation(f"{context.id} of salt {context.salt!r} is listed wrongly, or twice, for {salt!r}")
            listed.add(context.id)
        for context_id, (created, owner) in self._existing.items():
            is_due = owner == salt and created < began and context_id not in listed
            if is_due and self._surely_exists(context_id):
                raise Violation(f"{context_id} is not listed, though its creation had been acknowledged before")

    def require_fresh(self, began: int, context: ContextId, epoch: Epoch, max_staleness: int) -> None:
        newest = self._epochs[context].before(began)
        if newest - epoch > max_staleness:
            raise Violation(f"stale read of {context}: {epoch}, though {newest} had been acknowledged before")
        if self._deleted.get(context, began) < began:
            raise Violation(f"stale read of {context}: its deletion had been acknowledged before")

    def is_surely_within(self, context: ContextId, epoch: Epoch, max_staleness: int) -> bool:
        """Return whether no edit, deletion or end of a lifetime can have made `epoch` older than allowed."""
        return self._surely_exists(context) and self._highest.get(context, epoch) - epoch <= max_staleness

    def _surely_exists(self, context: ContextId) -> bool:
        """Return whether a context, once its creation was acknowledged, can't have been deleted since."""
        return context not in self._deletions and not self.lifetimes.may_have_ended(context)

    # What every view of a context must be

    def _check(self, context: Context) -> None:
        if self._checked.get(context.id) == context:
            return
        self._check_origin(context)
        self._check_past(context)
        self._keys.check(context)
        content, expected = content_of(context), self._expected(context)
        if expected is not None and content != expected:
            raise Violation(f"epoch {context.epoch} of {context.id} reads {content}, the edits made {expected}")
        self.num_contents += expected is not None
        self._contents[context.id, context.epoch] = content
        self._checked[context.id] = context

    def _check_origin(self, context: Context) -> None:
        if context.origin not in self._creations:
            raise Violation(f"no client has asked for the creation of {context}")
        first = self._created.setdefault(context.origin, context.id)
        if first != context.id:
            raise Violation(f"the creation {context.origin} made two contexts: {first} and {context.id}")

    def _check_past(self, context: Context) -> None:
        versions = (context.version, *context.past)
        epochs = [version.epoch for version in versions]
        oldest = max(0, context.epoch - MAX_STALENESS)
        if epochs != list(range(context.epoch, oldest - 1, -1)):
            raise Violation(f"{context.id} lists the epochs {epochs}, not {context.epoch} down to {oldest}")
        for version in versions:
            self._check_version(context.id, version)

    def _check_version(self, context: ContextId, version: Version) -> None:
        accepted = self._versions.setdefault((context, version.epoch), version)
        if accepted != version:
            raise Violation(f"two edits made epoch {version.epoch} of {context}: {accepted} and {version}")
        made = self._made.setdefault(version.edit_id, (context, version.epoch))
        if made != (context, version.epoch):
            raise Violation(f"the edit {version.edit_id} acted twice: it made {made} and {(context, version.epoch)}")
        if version.epoch > 0:
            attempt = self._attempts.get(version.edit_id)
            if attempt is None or (attempt.context, attempt.epoch) != (context, version.epoch):
                raise Violation(f"no client has sent the edit that made {version} of {context}")

    def _expected(self, context: Context) -> Content | None:
        """Return what the accepted edits make of the newest content that is known; None where one isn't known."""
        edits: list[Sequence[Edit]] = []
        for epoch in range(context.epoch, 0, -1):
            content = self._contents.get((context.id, Epoch(epoch)))
            version = self._versions.get((context.id, Epoch(epoch)))
            if content is not None or version is None:
                break
            edits.append(self._attempts[version.edit_id].edits)
        else:
            content = self._creations[context.origin]
        if content is None:
            return None
        for accepted in reversed(edits):
            content = edited(content, accepted)
        return content
