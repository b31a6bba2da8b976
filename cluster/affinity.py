"""Choose the replica that serves a request. Pure.

Affinity never decides alone: a replica that holds the prefix is chosen only while the prompt work it saves is more
than the work that is queued on it. A router that maximised hit rate would send everything to one replica; one that
minimises work spreads requests, and the replicas copy the entries.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from cache_service.core.types import PrefixKey, ReplicaId
from workers.api import PrefixCandidate


@dataclass(frozen=True)
class RouterWeights:
    """Configures the router's cost of a token, by kind of work."""

    uncached: float = 1.0
    """Cost of a prompt token that is in none of the replica's prefix entries."""
    queued: float = 1.0
    """Cost of a token of unfinished work that was sent to the replica."""

    def __post_init__(self) -> None:
        for name, weight in (("uncached", self.uncached), ("queued", self.queued)):
            if not 0 <= weight < math.inf:
                raise ValueError(f"router.{name} must be finite and not negative, got {weight}")


@dataclass(frozen=True)
class Demand:
    """Describes the work of one request, in tokens, and the prefixes that could save some of it."""

    request_id: str
    prompt_tokens: int
    canvas_tokens: int
    prefixes: tuple[PrefixCandidate, ...]
    """Boundaries at which its prompt may be cut, shortest first."""
    cut: PrefixCandidate | None
    """The boundary at which it is cut: only the entry of this prefix can serve it."""

    @property
    def keys(self) -> tuple[PrefixKey, ...]:
        """Return the keys of the prefixes whose holders can save work."""
        return (self.cut.key,) if self.cut else ()

    def work(self, cached_tokens: int) -> int:
        return self.prompt_tokens - cached_tokens + self.canvas_tokens


@dataclass(frozen=True)
class RankedReplica:
    """Holds a candidate replica, with the request's cost there in weighted tokens and its number of cached tokens."""

    replica: ReplicaId
    cost: float
    cached_tokens: int


def rank(
    demand: Demand,
    replicas: Sequence[ReplicaId],
    holders: Mapping[PrefixKey, frozenset[ReplicaId]],
    queued_tokens: Mapping[ReplicaId, int],
    weights: RouterWeights,
) -> list[RankedReplica]:
    """Return all `replicas`, cheapest first: cost = uncached prompt tokens + tokens of queued work, weighted.

    Equal costs are ordered by rendezvous hashing (Thaler & Ravishankar 1998) of the shortest prefix, so that the
    first requests of a prefix meet on one replica before any entry is known, different prefixes spread, and a
    replica that leaves moves only its own. A request without a prefix is hashed by itself.
    """
    anchor = demand.prefixes[0].key if demand.prefixes else demand.request_id.encode()

    def order(candidate: RankedReplica) -> tuple[float, bytes]:
        return candidate.cost, rendezvous(anchor, candidate.replica)

    ranked = []
    for replica in replicas:
        cached = cached_tokens(replica, demand.cut, holders)
        uncached = demand.prompt_tokens - cached
        cost = weights.uncached * uncached + weights.queued * queued_tokens.get(replica, 0)
        ranked.append(RankedReplica(replica, cost, cached))
    return sorted(ranked, key=order)


def cached_tokens(
    replica: ReplicaId, cut: PrefixCandidate | None, holders: Mapping[PrefixKey, frozenset[ReplicaId]]
) -> int:
    """Return the length of the request's prefix if the replica holds it; else 0."""
    return cut.num_tokens if cut and replica in holders.get(cut.key, frozenset()) else 0


def rendezvous(anchor: bytes, replica: ReplicaId) -> bytes:
    """Return the replica's rendezvous score for `anchor`; the smallest score wins."""
    return hashlib.blake2b(anchor, key=replica.encode()[:64], digest_size=8).digest()
