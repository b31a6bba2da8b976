"""Define the vocabulary of the coherence protocol: typed ids and frozen values. All packages may import it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NewType

PrefixKey = NewType("PrefixKey", bytes)
"""The content address of a prefix: see `cache_service.core.hashing`."""
ReplicaId = NewType("ReplicaId", str)
"""The id of one replica of the worker in Ray Serve; unique over restarts."""
Revision = NewType("Revision", int)
"""The number of an event in its store: every event gets the next revision."""
Epoch = NewType("Epoch", int)
"""The number of a context's version; a prefix without a context has epoch 0."""
LeaseId = NewType("LeaseId", int)
"""The id of one registration of a replica, or of one build: the revision that began it, so it is never used twice."""
ContextId = NewType("ContextId", str)
"""The id of a shared context. It derives from revision and edit id of the creation, so it is never used twice."""
TenantId = NewType("TenantId", str)
"""The id of the API key under which a context was created: a digest of the key; empty if no API key is required."""
EditId = NewType("EditId", str)
"""An id that the author of an edit or a creation chooses, so that a request can be sent again without harm."""
FencingToken = NewType("FencingToken", int)
"""The revision at which a build was granted, so it rises at each grant."""

FIRST_EPOCH = Epoch(0)
SOLE_TENANT = TenantId("")
"""The tenant of all contexts where no API key is required."""


@dataclass(frozen=True, slots=True)
class Placement:
    """States that one replica holds the entry of one prefix."""

    key: PrefixKey
    replica: ReplicaId
    num_tokens: int
    safe_depth: int
    """Number of leading layers of the entry that may be reused."""
    size_bytes: int
    epoch: Epoch = FIRST_EPOCH
    context: ContextId | None = None
    """The shared context whose content at `epoch` the entry is for; without one, the epoch is 0."""
    heat: int = 0
    """The number of requests that the entry had served at its last announcement."""
    token: FencingToken | None = None
    """The build that made the entry, set by the service; None for an entry that was announced without a build."""


@dataclass(frozen=True, slots=True)
class DepthTable:
    """Says by what a member judges drift, which bounds what it may report."""

    version: int
    num_layers: int
    """The number of layers of the member's model."""


@dataclass(frozen=True, slots=True)
class Lease:
    """Gives a member the right to be listed until `ttl_s` passes without a keep-alive."""

    id: LeaseId
    replica: ReplicaId
    ttl_s: float
    depth_table: DepthTable | None = None
    """The version and layers that the member registered; a member without them reports no drift."""


@dataclass(frozen=True, slots=True)
class Edit:
    """Replaces the tokens at positions start..end-1; later tokens move if the lengths differ."""

    start: int
    end: int
    token_ids: tuple[int, ...]
    masked: bool = False
    """True if the new positions are holes, still to be denoised; `token_ids` then repeats the model's mask id."""


@dataclass(frozen=True, slots=True)
class Version:
    """Describes one epoch of a context by the key of its content and the edit that made it."""

    epoch: Epoch
    key: PrefixKey
    edit_id: EditId


@dataclass(frozen=True, slots=True)
class Lifetime:
    """Ends a context `ttl_s` seconds after its creation, its last edit or its last renewal."""

    ttl_s: float
    expires_at: float
    """Unix time in seconds."""


@dataclass(frozen=True, slots=True)
class Context:
    """Holds a named prefix that can be edited. `past` lists its latest versions before this one, newest first."""

    id: ContextId
    fingerprint: str
    salt: str
    token_ids: tuple[int, ...]
    masked: tuple[int, ...]
    """The positions of the holes, ascending. A mask id at any other position is text."""
    created: Revision
    origin: EditId
    """The id under which it was created."""
    version: Version
    past: tuple[Version, ...] = ()
    tenant: TenantId = SOLE_TENANT
    """The tenant whose quotas count the context."""
    lifetime: Lifetime | None = None
    """The time of its deletion, unless it is edited or renewed before; None: it stays until an author deletes it."""

    @property
    def epoch(self) -> Epoch:
        return self.version.epoch

    @property
    def key(self) -> PrefixKey:
        return self.version.key

    @property
    def keys(self) -> tuple[PrefixKey, ...]:
        """Return the keys of this version and the past ones, newest first."""
        return tuple(version.key for version in (self.version, *self.past))


@dataclass(frozen=True, slots=True)
class Build:
    """Gives one member the exclusive right to build the entry of (key, epoch) until the lease ends."""

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
    """Limits the reuse of one prefix to `depth` layers, for all members, at the prefix ratios of one bucket."""

    key: PrefixKey
    bucket: int
    """The prefix ratio in percent, rounded as in the depth table."""
    depth: int
    depth_table_version: int
    """The version of the depth table that judged the drift; under the same version a limit only falls."""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Holds everything that watchers may know at one revision, for a watcher that starts or has fallen behind."""

    revision: Revision
    members: tuple[ReplicaId, ...]
    placements: tuple[Placement, ...]
    draining: tuple[ReplicaId, ...] = ()
    contexts: tuple[Context, ...] = ()
    builds: tuple[Build, ...] = ()
    limits: tuple[DepthLimit, ...] = ()
