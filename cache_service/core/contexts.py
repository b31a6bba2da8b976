"""Decide about edits of shared contexts, which are named prefixes. Pure.

    epoch 0          epoch 1            epoch 2              an edit names the epoch that it was made for;
    [A B _ _ C] ---> [A B x _ C] -----> [A B x y C]          only one that names the newest is accepted,
     key k0           key k1             key k2              so concurrent edits take turns; none is lost

Under bidirectional attention every edit changes the states of all positions, so each epoch has a key of its own.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import replace
from itertools import islice

from cache_service.core.events import Created, Deleted, Edited, Renewed
from cache_service.core.hashing import prefix_keys
from cache_service.core.lifetimes import Renewal
from cache_service.core.quotas import Usage, UsageLedger
from cache_service.core.types import (
    SOLE_TENANT,
    Context,
    ContextId,
    Edit,
    EditId,
    Epoch,
    Lifetime,
    PrefixKey,
    ReplicaId,
    Revision,
    TenantId,
    Version,
)
from cache_service.errors import InvalidRequest, StaleEpoch, UnknownContext

MAX_STALENESS = 4
"""Maximum number of epochs behind the newest that a reader may ask for; entries of older epochs are withdrawn."""
MAX_TOKENS = 262_144
"""Maximum number of tokens in one context; a context of that length still fits one gRPC message."""
MAX_EDITS = 65_536
"""Maximum number of edits in one epoch."""
MAX_EDIT_ID_LENGTH = 64
MAX_TENANT_LENGTH = 64
MAX_REMEMBERED_DELETIONS = 4096
"""Number of deleted contexts whose creations are remembered, so that a late copy of a creation has no effect."""
MAX_TOKEN_ID = 2**31 - 1


class Contexts:
    """Holds the contexts in the order of their creation."""

    def __init__(self) -> None:
        self._contexts: dict[ContextId, Context] = {}
        self._made_by: dict[EditId, ContextId] = {}
        self._deleted: dict[EditId, None] = {}
        """The creations of the contexts that were deleted last, oldest first."""
        self._current: dict[PrefixKey, set[ContextId]] = {}
        self._past: dict[PrefixKey, set[ContextId]] = {}
        self._ends: dict[ContextId, float] = {}
        self.usage = UsageLedger()

    def create(
        self,
        fingerprint: str,
        salt: str,
        token_ids: Sequence[int],
        masked: Sequence[int],
        edit_id: EditId,
        author: ReplicaId,
        at: Revision,
        *,
        tenant: TenantId = SOLE_TENANT,
        renewal: Renewal | None = None,
    ) -> tuple[Created, ...]:
        """Create a context at epoch 0 with holes at the positions `masked`, unless `edit_id` has created one before.

        That context may have been deleted since: see `find_by_edit`.
        """
        _require_id(edit_id)
        if edit_id in self._made_by or edit_id in self._deleted:
            return ()
        if len(tenant) > MAX_TENANT_LENGTH:
            raise InvalidRequest(f"tenant may have {MAX_TENANT_LENGTH} characters, got {len(tenant)}")
        tokens, holes = tuple(token_ids), tuple(sorted(set(masked)))
        if holes and not 0 <= holes[0] <= holes[-1] < len(tokens):
            raise InvalidRequest(f"masked positions must lie within the {len(tokens)} tokens of the context")
        version = Version(Epoch(0), _key(fingerprint, salt, tokens), edit_id)
        lifetime = renewal.lifetime_after(None) if renewal else None
        context = Context(
            _id(at, edit_id),
            fingerprint,
            salt,
            tokens,
            holes,
            at,
            edit_id,
            version,
            tenant=tenant,
            lifetime=lifetime,
        )
        return (Created(at, author, context),)

    def edit(
        self,
        context_id: ContextId,
        expected: Epoch,
        edits: Sequence[Edit],
        edit_id: EditId,
        author: ReplicaId,
        at: Revision,
        *,
        renewal: Renewal | None = None,
    ) -> tuple[Edited, ...]:
        """Make epoch `expected` + 1 if `expected` is the newest, unless this very edit was accepted before.

        Without a `renewal` the lifetime stays as it is.
        """
        context = self.get(context_id)
        if _find(context, edit_id) is not None:
            return ()
        _require_id(edit_id)
        if context.epoch != expected:
            raise StaleEpoch(f"context {context_id} is at epoch {context.epoch}, the edit was made for {expected}")
        if not 0 < len(edits) <= MAX_EDITS:
            raise InvalidRequest(f"a new epoch needs 1 to {MAX_EDITS} edits, got {len(edits)}")
        tokens, _ = splice(context, edits)
        version = Version(Epoch(expected + 1), _key(context.fingerprint, context.salt, tokens), edit_id)
        lifetime = renewal.lifetime_after(context.lifetime) if renewal else context.lifetime
        return (Edited(at, author, context_id, version, tuple(edits), lifetime),)

    def renew(self, context_id: ContextId, renewal: Renewal, author: ReplicaId, at: Revision) -> tuple[Renewed, ...]:
        """Begin the lifetime of the context again; one that has none, and gets none, changes nothing."""
        lifetime = renewal.lifetime_after(self.get(context_id).lifetime)
        return (Renewed(at, author, context_id, lifetime),) if lifetime else ()

    def delete(self, context_id: ContextId, author: ReplicaId, at: Revision) -> tuple[Deleted, ...]:
        """Delete the context. Raises UnknownContext."""
        self.get(context_id)
        return (Deleted(at, author, context_id),)

    def get(self, context_id: ContextId) -> Context:
        """Return the context. Raises UnknownContext."""
        context = self._contexts.get(context_id)
        if context is None:
            raise UnknownContext(f"there is no context {context_id!r}")
        return context

    def find(self, context_id: ContextId) -> Context | None:
        return self._contexts.get(context_id)

    def find_by_edit(self, edit_id: EditId) -> Context:
        """Return the context that was created under `edit_id`. Raises UnknownContext."""
        context_id = self._made_by.get(edit_id)
        if context_id is None:
            raise UnknownContext(f"there is no context that was created under {edit_id!r}")
        return self._contexts[context_id]

    def version_of_edit(self, context_id: ContextId, edit_id: EditId) -> Version:
        """Return the version that `edit_id` made, if it is among the latest. Raises UnknownContext, StaleEpoch."""
        version = _find(self.get(context_id), edit_id)
        if version is None:
            raise StaleEpoch(f"context {context_id} has been edited too often since edit {edit_id!r}")
        return version

    def with_content(self, key: PrefixKey) -> Context | None:
        """Return a context whose newest content has this key."""
        ids = self._current.get(key)
        return self._contexts[min(ids)] if ids else None

    def is_stale(self, key: PrefixKey) -> bool:
        """Return True if contexts had the content `key`, and none has it now."""
        return key in self._past and key not in self._current

    def page(self, salt: str, after: Revision, size: int) -> tuple[Context, ...]:
        """Return at most `size` contexts of one tenant that were created after the revision, in order of creation."""
        theirs = (c for c in self._contexts.values() if c.salt == salt and c.created > after)
        return tuple(islice(theirs, size))

    def expired(self, now: float) -> list[ContextId]:
        """Return the contexts whose lifetime has ended."""
        return [context_id for context_id, end in self._ends.items() if end <= now]

    def all(self) -> tuple[Context, ...]:
        return tuple(self._contexts.values())

    def put(self, context: Context) -> None:
        if (replaced := self._contexts.get(context.id)) is not None:
            self._remove_from_index(replaced)
        self.usage.add(context.tenant, _usage(context))
        if context.lifetime is not None:
            self._ends[context.id] = context.lifetime.expires_at
        self._contexts[context.id] = context
        self._made_by[context.origin] = context.id
        self._current.setdefault(context.key, set()).add(context.id)
        for version in context.past:
            self._past.setdefault(version.key, set()).add(context.id)

    def drop(self, context: Context) -> None:
        self._remove_from_index(self._contexts.pop(context.id))
        del self._made_by[context.origin]
        self._deleted[context.origin] = None
        if len(self._deleted) > MAX_REMEMBERED_DELETIONS:
            del self._deleted[next(iter(self._deleted))]

    def check_integrity(self) -> None:
        """Raise AssertionError if the usage that was counted, or the ends, are not those of the contexts."""
        counted = UsageLedger()
        for context in self._contexts.values():
            counted.add(context.tenant, _usage(context))
        if counted != self.usage:
            raise AssertionError(f"the contexts use {counted}, but {self.usage} was counted")
        ends = {context.id: context.lifetime.expires_at for context in self._contexts.values() if context.lifetime}
        if ends != self._ends:
            raise AssertionError(f"the contexts end at {ends}, but {self._ends} was recorded")

    def _remove_from_index(self, context: Context) -> None:
        self.usage.subtract(context.tenant, _usage(context))
        self._ends.pop(context.id, None)
        _discard(self._current, {context.key}, context.id)
        _discard(self._past, {version.key for version in context.past}, context.id)

    def __len__(self) -> int:
        return len(self._contexts)


def _usage(context: Context) -> Usage:
    return Usage(1, len(context.token_ids))


def _discard(index: dict[PrefixKey, set[ContextId]], keys: Iterable[PrefixKey], context: ContextId) -> None:
    for key in keys:
        index[key].discard(context)
        if not index[key]:
            del index[key]


def _find(context: Context, edit_id: EditId) -> Version | None:
    return next((version for version in (context.version, *context.past) if version.edit_id == edit_id), None)


def apply_edits(context: Context, version: Version, edits: Sequence[Edit], lifetime: Lifetime | None) -> Context:
    """Return `context` with `edits` carried out, at `version`, and with that lifetime.

    A context of which only the versions are known, as in a watch without content, stays without tokens.
    """
    tokens, masked = splice(context, edits) if context.token_ids else ((), ())
    past = (context.version, *context.past)[:MAX_STALENESS]
    return replace(context, token_ids=tokens, masked=masked, version=version, past=past, lifetime=lifetime)


def growth_by(edits: Iterable[Edit]) -> int:
    """Return the number of tokens that `edits` add to a context; it is negative where they shorten it."""
    return sum(len(edit.token_ids) - (edit.end - edit.start) for edit in edits)


def splice(context: Context, edits: Sequence[Edit]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return the tokens and holes after `edits`, which ascend and don't overlap; positions count before all edits."""
    tokens: list[int] = []
    masked: list[int] = []
    holes = iter(context.masked)
    hole = next(holes, None)
    taken = 0
    for edit in (*edits, None):
        start, end = (edit.start, edit.end) if edit else (len(context.token_ids),) * 2
        if not taken <= start <= end <= len(context.token_ids):
            raise InvalidRequest(
                f"edit {start}..{end} must come after position {taken} and end within {len(context.token_ids)} tokens"
            )
        while hole is not None and hole < end:
            if hole < start:
                masked.append(hole - taken + len(tokens))
            hole = next(holes, None)
        tokens.extend(context.token_ids[taken:start])
        if edit:
            if edit.masked:
                masked.extend(range(len(tokens), len(tokens) + len(edit.token_ids)))
            tokens.extend(edit.token_ids)
        taken = end
    return tuple(tokens), tuple(masked)


def _id(at: Revision, edit_id: EditId) -> ContextId:
    """Return an id for a new context that stays unique even if a store that lost its data restarts revisions at 1."""
    return ContextId(f"ctx-{at}-{hashlib.blake2b(edit_id.encode(), digest_size=4).hexdigest()}")


def _key(fingerprint: str, salt: str, token_ids: tuple[int, ...]) -> PrefixKey:
    if not 0 < len(token_ids) <= MAX_TOKENS:
        raise InvalidRequest(f"a context needs 1 to {MAX_TOKENS} tokens, got {len(token_ids)}")
    if not 0 <= min(token_ids) <= max(token_ids) <= MAX_TOKEN_ID:
        raise InvalidRequest(f"token ids must lie within 0 and {MAX_TOKEN_ID}")
    (key,) = prefix_keys(fingerprint, salt, token_ids, [len(token_ids)])
    return key


def _require_id(edit_id: EditId) -> None:
    if not 0 < len(edit_id) <= MAX_EDIT_ID_LENGTH:
        raise InvalidRequest(f"commit_id needs 1 to {MAX_EDIT_ID_LENGTH} characters, got {len(edit_id)}")
