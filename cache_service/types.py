"""The words of the coherence protocol: ids with types, and frozen values. The floor of all packages."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import NewType

PrefixKey = NewType("PrefixKey", bytes)
"""Content address of a prefix: see `cache_service.hashing`."""
ReplicaId = NewType("ReplicaId", str)
"""One Serve copy of the worker; unique over restarts."""
Revision = NewType("Revision", int)
"""Store-wide counter; every mutation gets the next one."""
Epoch = NewType("Epoch", int)
"""Version of what is cached under a name; content-addressed prefixes stay at their first epoch."""
LeaseId = NewType("LeaseId", int)
"""Names one registration of a replica; a re-registration gets a new one."""


@dataclass(frozen=True, slots=True)
class Placement:
    """One replica holds the entry of one prefix."""

    key: PrefixKey
    replica: ReplicaId
    num_tokens: int
    safe_depth: int
    """Layers 0..safe_depth-1 of the entry may be reused."""
    size_bytes: int
    epoch: Epoch = Epoch(0)


@dataclass(frozen=True, slots=True)
class Lease:
    """A member's right to be listed until `ttl_s` passes without a keep-alive."""

    id: LeaseId
    replica: ReplicaId
    ttl_s: float


class EventKind(enum.Enum):
    JOINED = "joined"
    LEFT = "left"
    """The member is gone (left or expired), and with it all its placements."""
    ANNOUNCED = "announced"
    WITHDRAWN = "withdrawn"


@dataclass(frozen=True, slots=True)
class Event:
    """One mutation, as watchers see it. `placement` is set for ANNOUNCED and WITHDRAWN, `lease` for JOINED."""

    revision: Revision
    kind: EventKind
    replica: ReplicaId
    placement: Placement | None = None
    lease: Lease | None = None


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The whole view at one revision, for a watcher that starts or has fallen behind."""

    revision: Revision
    members: tuple[ReplicaId, ...]
    placements: tuple[Placement, ...]
