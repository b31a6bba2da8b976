from __future__ import annotations

from collections.abc import Iterator

import pytest
from prometheus_client import REGISTRY, CollectorRegistry, Gauge, generate_latest

from cache_service.core.mirror import Mirror
from cache_service.core.types import ReplicaId
from cluster.ledger import WorkLedger
from cluster.metrics import Expositions, Federation, RouterCollector
from cluster.placement import PlacementView

A, B = ReplicaId("a"), ReplicaId("b")


def worker_text(replica: str, requests: int) -> str:
    return (
        "# HELP palimpsest_worker_requests_total Requests taken in\n"
        "# TYPE palimpsest_worker_requests_total counter\n"
        f'palimpsest_worker_requests_total{{replica="{replica}"}} {requests}\n'
        "# TYPE palimpsest_worker_step_seconds histogram\n"
        f'palimpsest_worker_step_seconds_bucket{{replica="{replica}",le="+Inf"}} 1\n'
        f'palimpsest_worker_step_seconds_count{{replica="{replica}"}} 1\n'
        f'palimpsest_worker_step_seconds_sum{{replica="{replica}"}} 2\n'
    )


@pytest.fixture
def router() -> Iterator[RouterCollector]:
    ledger = WorkLedger()
    ledger.open("r", A, 70, expires_at=60.0)
    router = RouterCollector(PlacementView(Mirror()), ledger)
    yield router
    REGISTRY.unregister(router)


def test_a_routers_decisions_are_in_the_processs_exposition(router: RouterCollector) -> None:
    for replica, cached in ((A, 0), (A, 5), (A, 9), (B, 0)):
        router.count(replica, cached)

    text = generate_latest(REGISTRY).decode()

    assert 'palimpsest_router_requests_total{affinity="hit",replica="a"} 2.0' in text
    assert 'palimpsest_router_requests_total{affinity="miss",replica="b"} 1.0' in text
    assert 'palimpsest_router_queued_tokens{replica="a"} 70.0' in text
    assert "palimpsest_router_placements 0.0" in text


def test_the_workers_samples_of_one_metric_stand_together() -> None:
    own = CollectorRegistry()
    Gauge("palimpsest_own", "Of the ingress", registry=own)

    text = generate_latest(Federation(own, Expositions([worker_text("a", 1), worker_text("b", 2)]))).decode()  # type: ignore[arg-type]

    assert text.count("# TYPE palimpsest_worker_requests_total counter") == 1
    assert text.count("# TYPE palimpsest_worker_step_seconds histogram") == 1
    assert 'palimpsest_worker_requests_total{replica="b"} 2.0' in text
    assert 'palimpsest_worker_step_seconds_sum{replica="a"} 2.0' in text
    assert "palimpsest_own 0.0" in text
