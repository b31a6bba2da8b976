"""Adapt routing to Ray Serve's request router. This module has no rules of its own.

Serve makes a router in every process that holds a handle and calls it on the router's event loop. What to choose is
decided in `cluster.affinity`, from `cluster.placement` (which replica holds what) and `cluster.ledger` (how much work
each has). Serve's FIFOMixin is left out on purpose: under backlog it hands a replica that was chosen for one request to
another one. Serve pickles this module by value, so nothing here may refer to what can't be pickled.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from functools import partial
from typing import Protocol

from ray import serve
from ray.serve.exceptions import RayServeException
from ray.serve.request_router import PendingRequest, ReplicaID, RequestRouter, RunningReplica

from cache_service.background import run_forever
from cache_service.client.client import CacheClient
from cache_service.core.mirror import Mirror
from cache_service.core.types import ReplicaId
from cluster.affinity import Demand, RouterWeights, cached_tokens, rank
from cluster.background import contact_of_process, tasks_of_process
from cluster.ledger import WorkLedger
from cluster.metrics import RouterCollector
from cluster.placement import PlacementView
from workers.api import CopyRequest, GenerateRequest
from workers.bicache.cut import choose_cut
from workers.ray_internals import back_off_while_full, reported_load

ACCEPTANCE_S = 1.0
"""Seconds for which a request counts as work of its chosen replica before any replica has accepted it."""


class Result(Protocol):
    """Declares the part of Serve's result of a request in flight that is used here."""

    def add_done_callback(self, callback: Callable[[object], object]) -> None: ...


class PrefixAffinityRouter(RequestRouter):  # type: ignore[misc]
    """Sends a request to the replica with the least sum of uncached prompt work and queued work."""

    queue_len_response_deadline_s = 0.5
    """Longer than Serve's own 0.1 s, which drops a replica whenever its machine is busy for a moment."""

    def initialize_state(
        self,
        deployment: str,
        cache_service: str,
        uncached: float,
        queued: float,
        request_timeout_s: float,
        cut_share: float,
    ) -> None:
        """Set up; Serve calls this once, on the router's event loop, with the deployment's `request_router_kwargs`.

        A replica of `deployment` itself only calls others for copies, by name: its router needs no view.
        """
        self._weights = RouterWeights(uncached=uncached, queued=queued)
        self._mirror = Mirror()
        self._view = PlacementView(self._mirror)
        self._ledger = WorkLedger()
        self._longest_s, self._cut_share = request_timeout_s, cut_share
        self._collector = RouterCollector(self._view, self._ledger, contact_of_process(), time.monotonic)
        if not is_replica_of(deployment):
            following = run_forever(partial(self._follow, cache_service))
            tasks_of_process().start("the router's watch of the cache service", following)

    async def _follow(self, target: str) -> None:
        """Update the view for as long as the process lives; while the service is unreachable the view grows stale."""
        async with CacheClient(target, contact=contact_of_process()) as client:
            async for update in client.watch(with_content=False):
                self._mirror.take(update)

    async def choose_replicas(
        self, candidate_replicas: list[RunningReplica], pending_request: PendingRequest | None = None
    ) -> list[list[RunningReplica]]:
        """Return every candidate in a rank of its own, so that the next cheapest one replaces a full replica.

        A draining replica gets no new work while there are others; it still sends copies of its entries. If the
        replica named for a copy is gone, any other one is asked for it.
        """
        if pending_request:
            back_off_while_full(pending_request)
        by_id = {replica_id_of(replica.replica_id): replica for replica in candidate_replicas}
        if holder := holder_of(pending_request):
            return [[by_id[holder]] if holder in by_id else list(by_id.values())]
        by_id = {name: by_id[name] for name in self._view.not_draining(by_id)}
        demand = demand_of(pending_request, self._cut_share)
        if demand is None:
            return [list(by_id.values())]
        now = asyncio.get_running_loop().time()
        self._ledger.expire(now)
        self._ledger.forget(demand.request_id)  # from an earlier try
        queued = {name: self._ledger.queued_tokens(name) for name in by_id}
        ranked = rank(demand, tuple(by_id), self._view.holders(demand.keys), queued, self._weights)
        first = ranked[0]
        self._ledger.open(demand.request_id, first.replica, demand.work(first.cached_tokens), now + ACCEPTANCE_S)
        return [[by_id[candidate.replica]] for candidate in ranked]

    def on_request_routed(self, pending_request: PendingRequest, replica_id: ReplicaID, result: Result) -> None:
        """Count the work of a request that the replica has accepted until its result is complete, whatever its outcome.

        At this moment Serve's count of the replica's requests is what the replica itself has just reported. Later it
        may stay too high: callbacks that come before that report aren't subtracted, and each of our calls to all
        replicas keeps it from expiring.
        """
        demand = demand_of(pending_request, self._cut_share)
        if demand is None:
            return
        replica, loop = replica_id_of(replica_id), asyncio.get_running_loop()
        now = loop.time()
        cached = cached_tokens(replica, demand.cut, self._view.holders(demand.keys))
        self._collector.count(replica, cached)
        self._ledger.open(demand.request_id, replica, demand.work(cached), now + self._longest_s)
        self._ledger.record_load(replica, reported_load(self, replica_id), now)
        result.add_done_callback(lambda _: loop.call_soon_threadsafe(self._ledger.close, demand.request_id, replica))


def is_replica_of(deployment: str) -> bool:
    """Return whether this process is a replica of `deployment`."""
    try:
        return str(serve.get_replica_context().deployment) == deployment
    except RayServeException:  # this process is no replica at all
        return False


def replica_id_of(replica_id: ReplicaID) -> ReplicaId:
    """Return the name under which the replica announces its entries."""
    return ReplicaId(replica_id.unique_id)


def holder_of(pending: PendingRequest | None) -> ReplicaId | None:
    """Return the replica that a call for a copy names; only that one can serve the call."""
    match pending.args if pending else []:
        case [CopyRequest() as request]:
            return request.holder
        case _:
            return None


def demand_of(pending: PendingRequest | None, cut_share: float) -> Demand | None:
    """Return the work of a call that generates an answer; None for every other call."""
    match pending.args if pending else []:
        case [GenerateRequest() as request]:
            return Demand(
                request.request_id,
                len(request.token_ids) + len(request.suffix),
                request.max_tokens,
                request.prefixes,
                choose_cut(request.prefixes, cut_share),
            )
        case _:
            return None
