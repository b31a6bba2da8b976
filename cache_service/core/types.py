"""The words of the coherence protocol: ids with types, and frozen values. The floor of all packages."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import NewType

PrefixKey = NewType("PrefixKey", bytes)
"""Content address of a prefix: see `cache_service.core.hashing`."""
ReplicaId = NewType("ReplicaId", str)
"""One Serve copy of the worker; unique over restarts."""
Revision = NewType("Revision", int)
"""Store-wide counter; every mutation gets the next one."""
Epoch = NewType("Epoch", int)
"""Version of what is cached under a name; content-addressed prefixes stay at their first epoch."""
LeaseId = NewType("LeaseId", int)
"""Names one registration of a replica, or one build: the revision that began it, so never used twice."""
ContextId = NewType("ContextId", str)
"""Names a shared context. Made from the revision and the commit of its creation, so never used twice."""
CommitId = NewType("CommitId", str)
"""Chosen by who commits, so that a commit whose answer was lost can be sent again without harm."""
FencingToken = NewType("FencingToken", int)
"""The revision at which a build was granted: rises at each grant."""

FIRST_EPOCH = Epoch(0)


@dataclass(frozen=True, slots=True)
class Placement:
    """One replica holds the entry of one prefix."""

    key: PrefixKey
    replica: ReplicaId
    num_tokens: int
    safe_depth: int
    """Layers 0..safe_depth-1 of the entry may be reused."""
    size_bytes: int
    epoch: Epoch = FIRST_EPOCH
    context: ContextId | None = None
    """The shared context whose content at `epoch` this is; without one, the epoch is 0."""
    heat: int = 0
    """Requests that the entry has served, as of its last announcement."""
    token: FencingToken | None = None
    """The build that made it, set by the service; an entry that is announced without a build has none."""


@dataclass(frozen=True, slots=True)
class Lease:
    """A member's right to be listed until `ttl_s` passes without a keep-alive."""

    id: LeaseId
    replica: ReplicaId
    ttl_s: float


@dataclass(frozen=True, slots=True)
class Edit:
    """Replaces the tokens at positions start..end-1; what follows moves where the lengths differ."""

    start: int
    end: int
    token_ids: tuple[int, ...]
    masked: bool = False
    """The new positions are holes, still to be denoised; `token_ids` then are the model's mask id."""


@dataclass(frozen=True, slots=True)
class Version:
    """One epoch of a context: what its content is cached under, and the commit that made it."""

    epoch: Epoch
    key: PrefixKey
    commit: CommitId


@dataclass(frozen=True, slots=True)
class Context:
    """A named, mutable prefix. `past` are its latest versions before this one, newest first."""

    id: ContextId
    fingerprint: str
    salt: str
    token_ids: tuple[int, ...]
    masked: tuple[int, ...]
    """Positions of the holes, ascending. A mask id elsewhere is text."""
    created: Revision
    origin: CommitId
    """The commit that created it."""
    version: Version
    past: tuple[Version, ...] = ()

    @property
    def epoch(self) -> Epoch:
        return self.version.epoch

    @property
    def key(self) -> PrefixKey:
        return self.version.key


@dataclass(frozen=True, slots=True)
class Commit:
    """One accepted change of a context: `edits`, by positions in the epoch before, make `version`."""

    context: ContextId
    version: Version
    edits: tuple[Edit, ...]


@dataclass(frozen=True, slots=True)
class Build:
    """The right of one member to be the only one that builds the entry of (key, epoch) under the lease."""

    key: PrefixKey
    epoch: Epoch
    replica: ReplicaId
    token: FencingToken
    ttl_s: float
    context: ContextId | None = None

    @property
    def lease(self) -> Lease:
        return Lease(LeaseId(self.token), self.replica, self.ttl_s)


@dataclass(frozen=True, slots=True)
class DepthLimit:
    """At prefix ratios of this bucket, no node may reuse more than `depth` layers of the prefix."""

    key: PrefixKey
    bucket: int
    """Whole percents, as the profile's table counts them."""
    depth: int
    profile: int
    """Version of the profile that the depth is judged by; under the same one a limit only falls."""


class EventKind(enum.Enum):
    JOINED = "joined"
    DRAINING = "draining"
    """The member takes no new work; what it holds can still be fetched."""
    LEFT = "left"
    """The member is gone (left or expired), and with it all its placements."""
    ANNOUNCED = "announced"
    WITHDRAWN = "withdrawn"
    CREATED = "created"
    COMMITTED = "committed"
    """A context has a new epoch: entries of the ones before are stale."""
    DELETED = "deleted"
    GRANTED = "granted"
    BUILT = "built"
    """The build ended with the placement announced just before."""
    RELEASED = "released"
    """The build ended without an entry: given up, lapsed, or its content has moved on."""
    LIMITED = "limited"


@dataclass(frozen=True, slots=True)
class Event:
    """One mutation, as watchers see it. Which of the optional fields is set follows from `kind`."""

    revision: Revision
    kind: EventKind
    replica: ReplicaId
    """Whom it is about; for contexts, the author as it named itself."""
    placement: Placement | None = None
    """ANNOUNCED, WITHDRAWN"""
    lease: Lease | None = None
    """JOINED"""
    context: Context | None = None
    """CREATED"""
    commit: Commit | None = None
    """COMMITTED"""
    context_id: ContextId | None = None
    """DELETED"""
    build: Build | None = None
    """GRANTED, BUILT, RELEASED"""
    limit: DepthLimit | None = None
    """LIMITED"""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The whole view at one revision, for a watcher that starts or has fallen behind."""

    revision: Revision
    members: tuple[ReplicaId, ...]
    placements: tuple[Placement, ...]
    draining: tuple[ReplicaId, ...] = ()
    contexts: tuple[Context, ...] = ()
    builds: tuple[Build, ...] = ()
    limits: tuple[DepthLimit, ...] = ()
