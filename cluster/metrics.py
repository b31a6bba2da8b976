"""Count the cluster's requests, and show metrics of ingress, router and workers in one exposition."""

from __future__ import annotations

import time
from collections import Counter as Tally
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from prometheus_client import REGISTRY, CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector

from cache_service.client.contact import WatchContact
from cache_service.core.types import ReplicaId
from cluster.errors import (
    ContextConflictError,
    ContextNotFoundError,
    ContextsUnavailableError,
    DrainingError,
    ModelNotFoundError,
    NotReadyError,
    ReplicaLostError,
    RequestError,
    RequestTimeoutError,
)
from cluster.generation.events import Answer, Event, Finished, Text
from cluster.ledger import WorkLedger
from cluster.placement import PlacementView
from workers.errors import InvalidRequestError, OverloadedError, WorkerError

OUTCOMES: tuple[tuple[tuple[type[Exception], ...], str], ...] = (
    ((RequestError, InvalidRequestError), "invalid_request"),
    ((ModelNotFoundError, ContextNotFoundError), "not_found"),
    ((ContextConflictError,), "conflict"),
    ((RequestTimeoutError,), "timeout"),
    ((OverloadedError,), "overloaded"),
    ((NotReadyError, DrainingError, ContextsUnavailableError), "unavailable"),
    ((ReplicaLostError,), "replica_lost"),
    ((WorkerError,), "worker_error"),
)
"""Outcomes of failed requests; the first row that matches an error counts, and an error of no row is `internal`."""
SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0)


CREATED = "_created"


class RouterCollector(Collector):
    """Exports one router's decisions and view as metrics.

    Serve creates routers without our arguments, so this registers itself with the process's default registry.
    """

    def __init__(
        self, view: PlacementView, ledger: WorkLedger, contact: WatchContact, clock: Callable[[], float]
    ) -> None:
        """Read `clock`, that of the ledger, to leave out work that has expired."""
        self._view, self._ledger, self._contact, self._clock = view, ledger, contact, clock
        self._routed: Tally[tuple[ReplicaId, str]] = Tally()
        REGISTRY.register(self)

    def describe(self) -> Iterable[Metric]:
        return ()

    def count(self, replica: ReplicaId, cached_tokens: int) -> None:
        """Count a request for `replica`, which was believed to hold `cached_tokens` of its prompt tokens."""
        self._routed[replica, "hit" if cached_tokens else "miss"] += 1

    def collect(self) -> Iterator[Metric]:
        routed = CounterMetricFamily(
            "palimpsest_router_requests",
            "Requests sent, by whether the replica was known to hold a prefix of them",
            labels=["replica", "affinity"],
        )
        for (replica, affinity), number in self._routed.items():
            routed.add_metric([replica, affinity], number)
        queued = GaugeMetricFamily(
            "palimpsest_router_queued_tokens", "Tokens of work sent and not finished", labels=["replica"]
        )
        for replica, tokens in self._ledger.unexpired_tokens(self._clock()).items():
            queued.add_metric([replica], tokens)
        yield routed
        yield queued
        yield GaugeMetricFamily("palimpsest_router_placements", "Placements known", self._view.num_placements)
        yield GaugeMetricFamily("palimpsest_router_revision", "Revision of the placement view", self._view.revision)
        yield GaugeMetricFamily(
            "palimpsest_router_cache_service_reachable",
            "1 while the router's watch of the cache service runs, else 0",
            float(self._contact.is_reachable),
        )
        yield GaugeMetricFamily(
            "palimpsest_router_cache_service_silence_seconds",
            "Seconds since the router's watch heard from the cache service; a few at most while it runs",
            self._contact.silence_s,
        )


class IngressMetrics:
    """Counts one ingress replica's requests, in a registry of its own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "palimpsest_requests",
            "Finished requests by outcome: a finish reason, an error or cancelled",
            ["outcome"],
            registry=self.registry,
        )
        self.responses = Counter(
            "palimpsest_responses",
            "Responses to requests of any kind, refused ones included; status 499: the client left",
            ["transport", "endpoint", "status", "reason"],
            registry=self.registry,
        )
        self.running = Gauge("palimpsest_requests_running", "Requests in flight", registry=self.registry)
        self.seconds = Histogram(
            "palimpsest_request_seconds", "Duration of requests", buckets=SECONDS, registry=self.registry
        )
        self.first_text_seconds = Histogram(
            "palimpsest_first_text_seconds", "Time to the first text", buckets=SECONDS, registry=self.registry
        )
        self.tokens = Counter(
            "palimpsest_tokens",
            "Tokens of finished requests: prompt, cached (of the prompt), completion",
            ["kind"],
            registry=self.registry,
        )

        self.context_commits = Counter(
            "palimpsest_context_commits",
            "Changes of shared contexts: accepted, or lost to a faster one",
            ["outcome"],
            registry=self.registry,
        )

    def request(self) -> RequestObservation:
        """Return the context manager that counts one request, from its start to its last event."""
        return RequestObservation(self)


@dataclass
class RequestObservation:
    """Counts one request by its outcome. A request that ends without one counts as cancelled."""

    metrics: IngressMetrics
    start: float = 0.0
    outcome: str = "cancelled"
    has_text: bool = False

    def __enter__(self) -> Self:
        self.start = time.perf_counter()
        self.metrics.running.inc()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if isinstance(error, Exception):
            self.outcome = outcome_of(error)
        self.metrics.running.dec()
        self.metrics.requests.labels(self.outcome).inc()
        self.metrics.seconds.observe(time.perf_counter() - self.start)

    def observe(self, delivered: Event | Answer) -> None:
        match delivered:
            case Text() if not self.has_text:
                self.has_text = True
                self.metrics.first_text_seconds.observe(time.perf_counter() - self.start)
            case Finished() as finished:
                self._count(finished)
            case Answer(finished=finished):
                self._count(finished)

    def _count(self, finished: Finished) -> None:
        self.outcome = finished.reason.value
        for kind in ("prompt", "cached", "completion"):
            self.metrics.tokens.labels(kind).inc(getattr(finished.usage, f"{kind}_tokens"))


def outcome_of(error: Exception) -> str:
    """Return the outcome of a request that ended with `error`, under a name that outlives the class of the error."""
    return next((outcome for kinds, outcome in OUTCOMES if isinstance(error, kinds)), "internal")


class Federation(Collector):
    """Exports several registries as one; no two of them may have the same metric name."""

    def __init__(self, *parts: Collector) -> None:
        self._parts = parts

    def collect(self) -> Iterator[Metric]:
        for part in self._parts:
            yield from part.collect()


class Expositions(Collector):
    """Merges the workers' texts in Prometheus' format into one, in which all samples of a metric are together.

    Times of creation are left out: the text has them as metrics of their own, whose names OpenMetrics reserves.
    """

    def __init__(self, texts: Iterable[str]) -> None:
        self._texts = tuple(texts)

    def collect(self) -> Iterator[Metric]:
        families: dict[str, Metric] = {}
        for text in self._texts:
            for family in text_string_to_metric_families(text):
                if family.name.endswith(CREATED):
                    continue
                if family.name in families:
                    families[family.name].samples.extend(family.samples)
                else:
                    families[family.name] = family
        yield from families.values()
