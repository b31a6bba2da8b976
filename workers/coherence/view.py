"""Answer the questions that a replica asks about the others. Pure."""

from __future__ import annotations

from cache_service.core.mirror import Mirror
from cache_service.core.types import Build, Context, ContextId, Epoch, Placement, PrefixKey, ReplicaId, Revision
from workers.api import ContextEpoch


class ClusterView:
    """Answers from a mirror which replicas hold a prefix, and which keys are the content of a shared context.

    Its answers are hints: the mirror may be behind the service.
    """

    def __init__(self, mirror: Mirror) -> None:
        self._mirror = mirror

    @property
    def revision(self) -> Revision:
        return self._mirror.revision

    def holders(self, key: PrefixKey) -> frozenset[ReplicaId]:
        """Return the replicas that hold `key`."""
        found = self._mirror.state.directory.lookup([key])
        return frozenset(placement.replica for placement in found.get(key, ()))

    def build(self, key: PrefixKey, epoch: Epoch) -> Build | None:
        """Return the build of (key, epoch) that is in progress."""
        return self._mirror.state.builds.get(key, epoch)

    def held_by(self, replica: ReplicaId) -> tuple[Placement, ...]:
        """Return the entries that the service lists for `replica`."""
        return self._mirror.state.directory.held_by(replica)

    def context(self, context_id: ContextId) -> Context | None:
        """Return the context at its newest known epoch, maybe without its content; None if it is unknown or deleted."""
        return self._mirror.state.contexts.find(context_id)

    def context_of(self, key: PrefixKey) -> ContextEpoch | None:
        """Return a context whose newest content has this key."""
        context = self._mirror.state.contexts.with_content(key)
        return ContextEpoch(context.id, context.epoch) if context else None

    def is_stale(self, key: PrefixKey) -> bool:
        """Return True if `key` was the content of a context and no context has it now."""
        return self._mirror.state.contexts.is_stale(key)

    def is_over(self, at: ContextEpoch, key: PrefixKey) -> bool:
        """Return True if the context had the content `key` at that epoch, and is known to have another now."""
        newest = self._mirror.state.contexts.find(at.context)
        return newest is not None and newest.epoch > at.epoch and self.context_of(key) is None

    def __repr__(self) -> str:
        return f"<ClusterView of {self._mirror}>"
