"""What the service counts, in a registry of its own."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from cache_service.store.base import Store

LATENCY_BUCKETS_S = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0)


class Metrics:
    """One registry; gauges read the store when they are scraped."""

    def __init__(self, store: Store) -> None:
        self.registry = CollectorRegistry()
        self.calls = Counter(
            "palimpsest_cache_calls", "Finished calls by method and status", ["method", "code"], registry=self.registry
        )
        self.latency = Histogram(
            "palimpsest_cache_call_seconds",
            "Duration of unary calls",
            ["method"],
            buckets=LATENCY_BUCKETS_S,
            registry=self.registry,
        )
        self.events = Counter("palimpsest_cache_events", "Committed events by kind", ["kind"], registry=self.registry)
        self.watchers = Gauge("palimpsest_cache_watchers", "Open watch streams", registry=self.registry)
        self.resyncs = Counter("palimpsest_cache_resyncs", "Watchers sent back for a snapshot", registry=self.registry)
        for name, text, read in (
            ("revision", "Newest revision", lambda: store.state.revision),
            ("members", "Members with a live lease", lambda: len(store.state.directory.members())),
            ("placements", "Announced placements", lambda: store.state.directory.num_placements),
            ("contexts", "Shared contexts", lambda: len(store.state.contexts)),
            ("builds", "Builds under way", lambda: len(store.state.builds)),
        ):
            Gauge(f"palimpsest_cache_{name}", text, registry=self.registry).set_function(read)
