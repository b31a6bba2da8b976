"""Exports a worker's metrics, on a registry of their own."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from cache_service.client.contact import WatchContact
from cache_service.core.types import ReplicaId
from workers.api import WorkerStats
from workers.coherence.tally import Tally
from workers.engine.faults import EngineFault

LABELS = ("replica",)
STEP_BUCKETS_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
REQUEST_BUCKETS_S = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0)


@dataclass(frozen=True)
class ExportedStat:
    """Describes a field of `WorkerStats` that is exported as a metric."""

    field: str
    name: str
    help: str
    family: type[CounterMetricFamily] | type[GaugeMetricFamily]


EXPORTED_STATS = (
    ExportedStat("num_running", "palimpsest_worker_running", "Requests being denoised", GaugeMetricFamily),
    ExportedStat("num_waiting", "palimpsest_worker_waiting", "Requests that wait to run", GaugeMetricFamily),
    ExportedStat("num_requests", "palimpsest_worker_requests", "Requests taken in", CounterMetricFamily),
    ExportedStat(
        "num_aborted", "palimpsest_worker_aborted", "Requests that their callers abandoned", CounterMetricFamily
    ),
    ExportedStat(
        "num_moved",
        "palimpsest_worker_moved",
        "Moves of requests to a newer epoch of their context",
        CounterMetricFamily,
    ),
    ExportedStat("num_forwards", "palimpsest_worker_forwards", "Passes of requests and builds", CounterMetricFamily),
    ExportedStat("num_canvas_tokens", "palimpsest_worker_canvas_tokens", "Tokens committed", CounterMetricFamily),
    ExportedStat(
        "num_prefix_hits", "palimpsest_worker_prefix_hits", "Requests that found an entry", CounterMetricFamily
    ),
    ExportedStat(
        "num_prefix_misses", "palimpsest_worker_prefix_misses", "Requests that built one", CounterMetricFamily
    ),
    ExportedStat("prefix_entries", "palimpsest_worker_prefix_entries", "Prefix entries held", GaugeMetricFamily),
    ExportedStat("prefix_bytes", "palimpsest_worker_prefix_bytes", "Bytes of prefix entries", GaugeMetricFamily),
)


class StatsCollector(Collector):
    """Reads the statistics when Prometheus asks, so that nothing is counted twice."""

    def __init__(self, stats: Callable[[], WorkerStats]) -> None:
        self._stats = stats

    def collect(self) -> Iterator[Metric]:
        stats = self._stats()
        for exported in EXPORTED_STATS:
            metric = exported.family(exported.name, exported.help, labels=LABELS)
            metric.add_metric([stats.replica], getattr(stats, exported.field))
            yield metric


@dataclass(frozen=True)
class ExportedCount:
    """Describes a field of `Tally` that is exported as a metric; a field with counts by name has a label."""

    field: str
    name: str
    help: str
    label: str | None = None


EXPORTED_COUNTS = (
    ExportedCount("built", "palimpsest_worker_entries_built", "Prefix entries that the model computed here"),
    ExportedCount(
        "fetched", "palimpsest_worker_entries_fetched", "Prefix entries copied from other replicas for requests"
    ),
    ExportedCount(
        "prewarmed", "palimpsest_worker_entries_prewarmed", "Prefix entries copied before any request needed them"
    ),
    ExportedCount(
        "fetched_bytes", "palimpsest_worker_fetched_bytes", "Bytes of copies that arrived whole", "transport"
    ),
    ExportedCount("sent", "palimpsest_worker_entries_sent", "Copies of prefix entries handed out"),
    ExportedCount("sent_bytes", "palimpsest_worker_sent_bytes", "Bytes of copies handed out"),
    ExportedCount("refused", "palimpsest_worker_fetches_refused", "Fetches that came to nothing", "reason"),
    ExportedCount("waits", "palimpsest_worker_build_waits", "Waits for another replica's build", "outcome"),
    ExportedCount(
        "fenced", "palimpsest_worker_builds_fenced", "Builds whose lease had ended before they were complete"
    ),
    ExportedCount("drift_reports", "palimpsest_worker_drift_reports", "Depth limits found here and reported to all"),
    ExportedCount("retired", "palimpsest_worker_entries_retired", "Entries dropped because their context moved on"),
    ExportedCount(
        "task_errors",
        "palimpsest_worker_task_errors",
        "Exceptions in tasks beside the engine; the worker's log has their stacks",
        "task",
    ),
)


class TallyCollector(Collector):
    """Reads the tally when Prometheus asks."""

    def __init__(self, replica: ReplicaId, tally: Tally) -> None:
        self._replica, self._tally = replica, tally

    def collect(self) -> Iterator[Metric]:
        for counted in EXPORTED_COUNTS:
            value = getattr(self._tally, counted.field)
            labels = (*LABELS, counted.label) if counted.label else LABELS
            metric = CounterMetricFamily(counted.name, counted.help, labels=labels)
            if counted.label:
                for name, number in tuple(value.items()):
                    metric.add_metric([self._replica, name], number)
            else:
                metric.add_metric([self._replica], value)
            yield metric


class ContactCollector(Collector):
    """Shows whether a replica hears from the cache service."""

    def __init__(self, replica: ReplicaId, contact: WatchContact) -> None:
        self._replica, self._contact = replica, contact

    def collect(self) -> Iterator[Metric]:
        gauges = (
            ("reachable", "1 while the replica's watch of the cache service runs, else 0", self._contact.is_reachable),
            ("silence_seconds", "Seconds since that watch heard from the service", self._contact.silence_s),
        )
        for name, text, value in gauges:
            metric = GaugeMetricFamily(f"palimpsest_worker_cache_service_{name}", text, labels=LABELS)
            metric.add_metric([self._replica], float(value))
            yield metric


class WorkerMetrics:
    """Holds a worker's metrics; reads `stats` and `tally` at every scrape."""

    def __init__(self, replica: ReplicaId, stats: Callable[[], WorkerStats], tally: Tally) -> None:
        self.registry = CollectorRegistry()
        self.registry.register(StatsCollector(stats))
        self.registry.register(TallyCollector(replica, tally))
        steps = Histogram(
            "palimpsest_worker_step_seconds",
            "Duration of an engine step",
            LABELS,
            buckets=STEP_BUCKETS_S,
            registry=self.registry,
        )
        self.observe_step = steps.labels(replica).observe
        requests = Histogram(
            "palimpsest_worker_request_seconds",
            "Duration of answered requests in the engine, from their arrival to their last token",
            LABELS,
            buckets=REQUEST_BUCKETS_S,
            registry=self.registry,
        )
        self.observe_request = requests.labels(replica).observe
        errors = Counter(
            "palimpsest_worker_engine_errors",
            "Exceptions on the engine's thread, by what raised; the worker's log has their stacks",
            (*LABELS, "kind"),
            registry=self.registry,
        )
        self._engine_errors = {fault: errors.labels(replica, fault.value) for fault in EngineFault}

    def add_contact(self, replica: ReplicaId, contact: WatchContact) -> None:
        """Show `contact` too: this worker is a member of a cluster."""
        self.registry.register(ContactCollector(replica, contact))

    def count_engine_error(self, fault: EngineFault) -> None:
        self._engine_errors[fault].inc()

    def render(self) -> str:
        """Return all metrics in the text exposition format."""
        return generate_latest(self.registry).decode()
