"""Measure what the service does, in a registry of its own."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from cache_service.core.events import Event
from cache_service.core.state import State
from cache_service.core.types import Lease, LeaseId
from cache_service.store.base import Decision, Store
from cache_service.store.feed import Feed

LATENCY_BUCKETS_S = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0)


class Metrics:
    """Holds the metrics of one instance."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.calls = self._counter("calls", "Finished calls by method and status", "method", "code")
        self.refusals = self._counter("refusals", "Refused calls by method and reason", "method", "reason")
        self.latency = self._histogram("call_seconds", "Duration of unary calls", "method")
        self.store = self._histogram("store_seconds", "Duration of the store's operations", "operation")
        self.events = self._counter("events", "Committed events by kind", "kind")
        self.lapses = self._counter(
            "lapses", "Members, builds and contexts that ended because their time had passed", "what"
        )
        self.resyncs = self._counter("resyncs", "Watchers sent back for a snapshot")
        self.task_failures = self._counter("task_failures", "Failures of background tasks; the log has each", "task")
        self.watchers = Gauge("palimpsest_cache_watchers", "Open watch streams", registry=self.registry)

    def add_gauges(self, gauges: Mapping[str, tuple[str, Callable[[], float]]]) -> None:
        """Add gauges by name, each with its help text and a function that another thread calls at every scrape."""
        for name, (text, read) in gauges.items():
            Gauge(f"palimpsest_cache_{name}", text, registry=self.registry).set_function(read)

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(f"palimpsest_cache_{name}", text, labels, registry=self.registry)

    def _histogram(self, name: str, text: str, *labels: str) -> Histogram:
        return Histogram(f"palimpsest_cache_{name}", text, labels, buckets=LATENCY_BUCKETS_S, registry=self.registry)


class MeasuredStore:
    """Times the operations of another store."""

    def __init__(self, store: Store, seconds: Histogram) -> None:
        self._store = store
        self._append, self._sync, self._renew, self._lapsed = map(seconds.labels, ("commit", "sync", "renew", "lapsed"))

    @property
    def incarnation(self) -> str:
        return self._store.incarnation

    @property
    def state(self) -> State:
        return self._store.state

    @property
    def feed(self) -> Feed:
        return self._store.feed

    @property
    def may_evict(self) -> bool:
        return self._store.may_evict

    async def append(self, decide: Decision) -> Sequence[Event]:
        with self._append.time():
            return await self._store.append(decide)

    async def sync(self) -> None:
        with self._sync.time():
            await self._store.sync()

    async def renew(self, lease: Lease) -> bool:
        with self._renew.time():
            return await self._store.renew(lease)

    async def lapsed(self) -> frozenset[LeaseId]:
        with self._lapsed.time():
            return await self._store.lapsed()

    async def close(self) -> None:
        await self._store.close()
