"""Decide where a replica gets an entry that it lacks. Pure.

Entries belong to replicas, so waiting for another's build only pays if its entry can be fetched then. Waiting
saves work for the model, and time for the request only if the other replica began earlier. `patience` limits the delay
of a request to this multiple of its own build time, so that the cluster builds once.

    1. a fetch takes longer than a build        build alone, and ask no other replica
    2. another replica holds the entry          fetch it
    3. no other replica builds it               claim the build
    4. another replica builds it                if the rest of its build and a fetch fit into the patience,
                                                wait until that has passed; else build alone
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection
from dataclasses import dataclass

from cache_service.core.types import Build, PrefixKey, ReplicaId
from workers.coherence.estimate import Costs
from workers.config import CoherenceConfig


@dataclass(frozen=True)
class BuildAlone:
    """Build here at once, even if other replicas build the entry too."""


@dataclass(frozen=True)
class Claim:
    """Ask to be the only replica that builds."""


@dataclass(frozen=True)
class Fetch:
    """Fetch a copy of the entry from `holder`."""

    holder: ReplicaId


@dataclass(frozen=True)
class Wait:
    """Wait for the end of another replica's build, `timeout_s` at most."""

    build: Build
    timeout_s: float


Source = BuildAlone | Claim | Fetch | Wait


@dataclass(frozen=True)
class Situation:
    """Describes the known facts about one entry that is awaited here."""

    key: PrefixKey
    replica: ReplicaId
    """This replica."""
    holders: Collection[ReplicaId]
    """Other replicas that hold it, except those that failed to send it."""
    build: Build | None
    """Another replica's build in progress."""
    waited_s: float
    """Seconds since the entry was asked for."""


def is_cheaper_to_fetch(costs: Costs, config: CoherenceConfig) -> bool:
    """Return whether to prefer a fetch to a build, by the configuration or by the estimates."""
    match config.transfer:
        case "always":
            return True
        case "never":
            return False
        case "auto":
            return costs.fetch_s < costs.build_s


def choose(situation: Situation, costs: Costs, config: CoherenceConfig) -> Source:
    """Return the source to try next."""
    if not is_cheaper_to_fetch(costs, config):
        return BuildAlone()
    if situation.holders:
        return Fetch(nearest(situation))
    if situation.build is None:
        return Claim()
    patience_s = config.max_wait_s
    if config.transfer == "auto":
        patience_s = min(patience_s, config.patience * costs.build_s)
    rest_s = max(0.0, costs.build_s - situation.waited_s)
    if config.transfer == "auto" and situation.waited_s + rest_s + costs.fetch_s > patience_s:
        return BuildAlone()
    left_s = patience_s - situation.waited_s
    return Wait(situation.build, left_s) if left_s > 0 else BuildAlone()


def nearest(situation: Situation) -> ReplicaId:
    """Return one of the holders. Different replicas ask different ones, so that none serves all copies."""

    def score(holder: ReplicaId) -> bytes:
        return hashlib.blake2b(f"{situation.replica} {holder}".encode() + situation.key, digest_size=8).digest()

    return min(situation.holders, key=score)
