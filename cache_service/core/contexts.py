"""Shared contexts: named prefixes that can be rewritten, one epoch at a time. Pure.

    epoch 0          epoch 1            epoch 2              a commit names the epoch that it was made for;
    [A B _ _ C] ---> [A B x _ C] -----> [A B x y C]          only the one that names the newest is accepted,
     key k0           key k1             key k2              so concurrent commits line up, none is lost

Under bidirectional attention every edit changes the states of all positions, so each epoch has a key of its own.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from itertools import islice

from cache_service.core.hashing import prefix_keys
from cache_service.core.types import (
    Commit,
    CommitId,
    Context,
    ContextId,
    Edit,
    Epoch,
    Event,
    EventKind,
    PrefixKey,
    ReplicaId,
    Revision,
    Version,
)
from cache_service.errors import InvalidRequest, StaleEpoch, UnknownContext

MAX_STALENESS = 4
"""Epochs behind the newest that a reader may ask for; entries older than that are withdrawn."""
MAX_TOKENS = 262_144
"""Tokens in one context; a context with this many still fits one gRPC message."""
MAX_EDITS = 65_536
"""Edits in one commit."""
MAX_COMMIT_ID = 64
MAX_TOKEN_ID = 2**31 - 1


class Contexts:
    """Contexts in the order of their creation."""

    def __init__(self) -> None:
        self._contexts: dict[ContextId, Context] = {}
        self._made_by: dict[CommitId, ContextId] = {}

    def create(
        self,
        fingerprint: str,
        salt: str,
        token_ids: Sequence[int],
        masked: Sequence[int],
        commit: CommitId,
        author: ReplicaId,
        at: Revision,
    ) -> tuple[Event, ...]:
        """A new context at epoch 0, with holes at the positions `masked`; none where `commit` has made it before."""
        _require_id(commit)
        if commit in self._made_by:
            return ()
        tokens, holes = tuple(token_ids), tuple(sorted(set(masked)))
        if holes and not 0 <= holes[0] <= holes[-1] < len(tokens):
            raise InvalidRequest(f"masked positions must lie within the {len(tokens)} tokens of the context")
        version = Version(Epoch(0), _key(fingerprint, salt, tokens), commit)
        context = Context(_id(at, commit), fingerprint, salt, tokens, holes, at, commit, version)
        return (Event(at, EventKind.CREATED, author, context=context),)

    def commit(
        self,
        context_id: ContextId,
        expected: Epoch,
        edits: Sequence[Edit],
        commit: CommitId,
        author: ReplicaId,
        at: Revision,
    ) -> tuple[Event, ...]:
        """Epoch `expected` + 1, if `expected` is the newest. None where this very commit was accepted before."""
        context = self.get(context_id)
        if _find(context, commit) is not None:
            return ()
        _require_id(commit)
        if context.epoch != expected:
            raise StaleEpoch(f"context {context_id} is at epoch {context.epoch}, the commit was made for {expected}")
        if not 0 < len(edits) <= MAX_EDITS:
            raise InvalidRequest(f"a commit needs 1 to {MAX_EDITS} edits, got {len(edits)}")
        tokens, _ = spliced(context, edits)
        version = Version(Epoch(expected + 1), _key(context.fingerprint, context.salt, tokens), commit)
        return (Event(at, EventKind.COMMITTED, author, commit=Commit(context_id, version, tuple(edits))),)

    def delete(self, context_id: ContextId, author: ReplicaId, at: Revision) -> tuple[Event, ...]:
        self.get(context_id)
        return (Event(at, EventKind.DELETED, author, context_id=context_id),)

    def get(self, context_id: ContextId) -> Context:
        """Raises UnknownContext."""
        context = self._contexts.get(context_id)
        if context is None:
            raise UnknownContext(f"there is no context {context_id!r}")
        return context

    def find(self, context_id: ContextId) -> Context | None:
        return self._contexts.get(context_id)

    def made_by(self, commit: CommitId) -> Context:
        """The context that `commit` created. Raises UnknownContext."""
        context_id = self._made_by.get(commit)
        if context_id is None:
            raise UnknownContext(f"there is no context that {commit!r} created")
        return self._contexts[context_id]

    def version_by(self, context_id: ContextId, commit: CommitId) -> Version:
        """The version that `commit` made, among the latest. Raises UnknownContext, StaleEpoch."""
        version = _find(self.get(context_id), commit)
        if version is None:
            raise StaleEpoch(f"context {context_id} has moved on since commit {commit!r}")
        return version

    def page(self, salt: str, after: Revision, size: int) -> tuple[Context, ...]:
        """At most `size` contexts of one tenant, in order of creation, of those created after the revision."""
        theirs = (c for c in self._contexts.values() if c.salt == salt and c.created > after)
        return tuple(islice(theirs, size))

    def all(self) -> tuple[Context, ...]:
        return tuple(self._contexts.values())

    def restore(self, context: Context) -> None:
        """Write one context as a fact."""
        self._contexts[context.id] = context
        self._made_by[context.origin] = context.id

    def apply(self, event: Event) -> None:
        """Make `event` so; kinds that are not about contexts are passed over."""
        match event:
            case Event(context=Context() as context):
                self.restore(context)
            case Event(commit=Commit() as commit):
                self._contexts[commit.context] = committed(self._contexts[commit.context], commit)
            case Event(kind=EventKind.DELETED, context_id=str() as context_id):
                del self._made_by[self._contexts.pop(context_id).origin]
            case _:
                pass

    def __len__(self) -> int:
        return len(self._contexts)


def _find(context: Context, commit: CommitId) -> Version | None:
    return next((version for version in (context.version, *context.past) if version.commit == commit), None)


def committed(context: Context, commit: Commit) -> Context:
    """`context` as `commit` leaves it."""
    tokens, masked = spliced(context, commit.edits)
    past = (context.version, *context.past)[:MAX_STALENESS]
    return replace(context, token_ids=tokens, masked=masked, version=commit.version, past=past)


def spliced(context: Context, edits: Sequence[Edit]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Tokens and holes after `edits`, which ascend, don't overlap and name positions before all of them."""
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


def _id(at: Revision, commit: CommitId) -> ContextId:
    """A store that lost its memory counts from the start again, so the revision alone would come twice."""
    return ContextId(f"ctx-{at}-{hashlib.blake2b(commit.encode(), digest_size=4).hexdigest()}")


def _key(fingerprint: str, salt: str, token_ids: tuple[int, ...]) -> PrefixKey:
    if not 0 < len(token_ids) <= MAX_TOKENS:
        raise InvalidRequest(f"a context needs 1 to {MAX_TOKENS} tokens, got {len(token_ids)}")
    if not 0 <= min(token_ids) <= max(token_ids) <= MAX_TOKEN_ID:
        raise InvalidRequest(f"token ids must lie within 0 and {MAX_TOKEN_ID}")
    (key,) = prefix_keys(fingerprint, salt, token_ids, [len(token_ids)])
    return key


def _require_id(commit: CommitId) -> None:
    if not 0 < len(commit) <= MAX_COMMIT_ID:
        raise InvalidRequest(f"commit_id needs 1 to {MAX_COMMIT_ID} characters, got {len(commit)}")
