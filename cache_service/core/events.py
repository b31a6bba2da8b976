"""Define the events of the service's log: a union of classes, one for each kind of change, with fields of its own.

`cache_service.core.facts` derives what each event changes; no other module interprets events.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from cache_service.core.types import (
    Build,
    Context,
    ContextId,
    DepthLimit,
    Edit,
    Lease,
    Lifetime,
    Placement,
    ReplicaId,
    Revision,
    Version,
)


@dataclass(frozen=True, slots=True)
class Joined:
    """A member joined under a new lease."""

    kind: ClassVar = "joined"
    revision: Revision
    lease: Lease

    @property
    def replica(self) -> ReplicaId:
        return self.lease.replica


@dataclass(frozen=True, slots=True)
class Left:
    """A member left or expired; its placements have ended, too."""

    kind: ClassVar = "left"
    revision: Revision
    replica: ReplicaId


@dataclass(frozen=True, slots=True)
class Draining:
    """A member takes no new work; other members can still fetch what it holds."""

    kind: ClassVar = "draining"
    revision: Revision
    replica: ReplicaId


@dataclass(frozen=True, slots=True)
class _PlacementEvent:
    revision: Revision
    placement: Placement

    @property
    def replica(self) -> ReplicaId:
        return self.placement.replica


@dataclass(frozen=True, slots=True)
class Announced(_PlacementEvent):
    """A member holds an entry, or holds it with other properties than before."""

    kind: ClassVar = "announced"


@dataclass(frozen=True, slots=True)
class Withdrawn(_PlacementEvent):
    """A member no longer holds an entry."""

    kind: ClassVar = "withdrawn"


@dataclass(frozen=True, slots=True)
class Created:
    """A shared context was created at epoch 0."""

    kind: ClassVar = "created"
    revision: Revision
    author: ReplicaId
    """The name that the author gave."""
    context: Context


@dataclass(frozen=True, slots=True)
class Edited:
    """A context has a new epoch, so entries of earlier epochs are stale. The wire calls this kind `committed`."""

    kind: ClassVar = "committed"
    revision: Revision
    author: ReplicaId
    context_id: ContextId
    version: Version
    """The version that the edits made."""
    edits: tuple[Edit, ...]
    """The edits, by positions in the epoch before."""
    lifetime: Lifetime | None = None
    """The lifetime of the context from now on."""


@dataclass(frozen=True, slots=True)
class Renewed:
    """The lifetime of a context began again, without a new epoch."""

    kind: ClassVar = "renewed"
    revision: Revision
    author: ReplicaId
    context_id: ContextId
    lifetime: Lifetime


@dataclass(frozen=True, slots=True)
class Deleted:
    """A context was deleted, by its author or because its lifetime had ended."""

    kind: ClassVar = "deleted"
    revision: Revision
    author: ReplicaId
    context_id: ContextId


@dataclass(frozen=True, slots=True)
class _BuildEvent:
    revision: Revision
    build: Build

    @property
    def replica(self) -> ReplicaId:
        return self.build.replica


@dataclass(frozen=True, slots=True)
class Granted(_BuildEvent):
    """A member was granted a build."""

    kind: ClassVar = "granted"


@dataclass(frozen=True, slots=True)
class Built(_BuildEvent):
    """A build ended with the placement that was announced just before."""

    kind: ClassVar = "built"


@dataclass(frozen=True, slots=True)
class Released(_BuildEvent):
    """A build ended without an entry: its holder gave it up, its lease lapsed, or its content has a newer epoch."""

    kind: ClassVar = "released"


@dataclass(frozen=True, slots=True)
class Limited:
    """A member measured drift and so limited how deep a prefix may be reused."""

    kind: ClassVar = "limited"
    revision: Revision
    replica: ReplicaId
    limit: DepthLimit


Event = (
    Joined
    | Left
    | Draining
    | Announced
    | Withdrawn
    | Created
    | Edited
    | Renewed
    | Deleted
    | Granted
    | Built
    | Released
    | Limited
)
