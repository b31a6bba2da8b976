"""Offer short calls that build the values of tests."""

from __future__ import annotations

from cache_service.core.types import ContextId, Epoch, Placement, PrefixKey, ReplicaId

ANNA, BORIS = ReplicaId("anna"), ReplicaId("boris")


def key(name: str) -> PrefixKey:
    return PrefixKey(name.encode().ljust(20, b"."))


def placed(
    name: str,
    replica: ReplicaId,
    *,
    key: PrefixKey | None = None,
    depth: int = 4,
    epoch: int = 0,
    context: ContextId | None = None,
    heat: int = 0,
) -> Placement:
    return Placement(
        key or PrefixKey(name.encode().ljust(20, b".")),
        replica,
        num_tokens=128,
        safe_depth=depth,
        size_bytes=128 * 768 * 1024,
        epoch=Epoch(epoch),
        context=context,
        heat=heat,
    )
