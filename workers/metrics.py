"""A worker's metrics, on a registry of their own."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from prometheus_client import CollectorRegistry, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from cache_service.types import ReplicaId
from workers.api import WorkerStats

LABELS = ("replica",)
STEP_BUCKETS_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)


@dataclass(frozen=True)
class Exported:
    """One field of `WorkerStats` as a metric."""

    field: str
    name: str
    help: str
    family: type[CounterMetricFamily] | type[GaugeMetricFamily]


EXPORTED = (
    Exported("num_running", "palimpsest_worker_running", "Requests being denoised", GaugeMetricFamily),
    Exported("num_waiting", "palimpsest_worker_waiting", "Requests that wait for a place", GaugeMetricFamily),
    Exported("num_requests", "palimpsest_worker_requests", "Requests taken in", CounterMetricFamily),
    Exported("num_aborted", "palimpsest_worker_aborted", "Requests whose callers went away", CounterMetricFamily),
    Exported("num_forwards", "palimpsest_worker_forwards", "Passes of requests and builds", CounterMetricFamily),
    Exported("num_canvas_tokens", "palimpsest_worker_canvas_tokens", "Tokens committed", CounterMetricFamily),
    Exported("num_prefix_hits", "palimpsest_worker_prefix_hits", "Requests that found an entry", CounterMetricFamily),
    Exported("num_prefix_misses", "palimpsest_worker_prefix_misses", "Requests that built one", CounterMetricFamily),
    Exported("prefix_entries", "palimpsest_worker_prefix_entries", "Prefix entries held", GaugeMetricFamily),
    Exported("prefix_bytes", "palimpsest_worker_prefix_bytes", "Bytes of prefix entries", GaugeMetricFamily),
)


class StatsCollector(Collector):
    """Reads the statistics when Prometheus asks, so that nothing is counted twice."""

    def __init__(self, stats: Callable[[], WorkerStats]) -> None:
        self._stats = stats

    def collect(self) -> Iterator[Metric]:
        stats = self._stats()
        for exported in EXPORTED:
            metric = exported.family(exported.name, exported.help, labels=LABELS)
            metric.add_metric([stats.replica], getattr(stats, exported.field))
            yield metric


class WorkerMetrics:
    """`stats` is asked at every scrape."""

    def __init__(self, replica: ReplicaId, stats: Callable[[], WorkerStats]) -> None:
        self.registry = CollectorRegistry()
        self.registry.register(StatsCollector(stats))
        steps = Histogram(
            "palimpsest_worker_step_seconds",
            "Duration of an engine step",
            LABELS,
            buckets=STEP_BUCKETS_S,
            registry=self.registry,
        )
        self.observe_step = steps.labels(replica).observe

    def render(self) -> str:
        """The text exposition format."""
        return generate_latest(self.registry).decode()
