"""Hold what simulated clients share: one service over a faulty network, its time, and the checker of their history."""

from __future__ import annotations

from collections.abc import Coroutine
from typing import Any

from cache_service.core.quotas import ContextQuotas
from cache_service.core.types import ContextId
from cache_service.rpc.service import CacheService
from cache_service.store.memory import MemoryStore
from cache_service.testing import Faults, HistoryChecker, Network

FAULTS = Faults(drop=0.02, duplicate=0.02, straggle=0.03, delay_s=0.002, straggle_s=1.0)
STRAYS_S = FAULTS.delay_s + FAULTS.straggle_s
"""Longest delay of a message."""
QUOTAS = ContextQuotas(max_per_tenant=5, max_tokens_per_tenant=24, max_total=8, max_total_tokens=36)
"""Few enough contexts and tokens that every one of these quotas refuses some."""


def run(work: Coroutine[Any, Any, Any]) -> Any:
    """Return what `work` returns, given that it never waits, as is the case with the memory store."""
    try:
        work.send(None)
    except StopIteration as done:
        return done.value
    raise RuntimeError("the memory store must not wait")


class World:
    """Has three clocks: that of the network, that of leases, which leaps ahead now and then, and a fast wall clock."""

    def __init__(self, seed: int) -> None:
        self.network = Network(seed, FAULTS)
        self.rng = self.network.rng
        self.skipped_s = 0.0
        self.store = MemoryStore(clock=self.service_time, history=512)
        self.service = CacheService(self.store, QUOTAS, self.wall_time)
        self.checker = HistoryChecker(
            self.time, lease_clock=self.service_time, wall_clock=self.wall_time, strays_s=STRAYS_S, quotas=QUOTAS
        )
        self.contexts: list[ContextId] = []
        self.is_quiet = False
        """True once clients make no more requests."""
        self._names = 0

    def time(self) -> float:
        return self.network.now

    def service_time(self) -> float:
        return self.network.now + self.skipped_s

    def wall_time(self) -> float:
        """Return the time by which lifetimes of contexts end: it runs so fast that many end before the next change."""
        return self.network.now * 100

    def name(self) -> str:
        self._names += 1
        return f"n{self._names}"
