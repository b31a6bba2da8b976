from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import fields
from functools import partial
from pathlib import Path

import pytest
from prometheus_client import REGISTRY, CollectorRegistry, Gauge, generate_latest
from prometheus_client.exposition import choose_encoder
from prometheus_client.openmetrics import parser as openmetrics

from cache_service.client.contact import WatchContact
from cache_service.core.mirror import Mirror
from cache_service.core.types import ReplicaId
from cache_service.testing import FakeClock
from cluster import errors as cluster_errors
from cluster.errors import RequestTimeoutError
from cluster.ledger import WorkLedger
from cluster.metrics import OUTCOMES, Expositions, Federation, IngressMetrics, RouterCollector, outcome_of
from cluster.placement import PlacementView
from workers import errors as worker_errors
from workers.api import WorkerStats
from workers.coherence.tally import Tally
from workers.engine.faults import EngineFault
from workers.metrics import WorkerMetrics

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
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def contact(clock: FakeClock) -> WatchContact:
    return WatchContact(clock)


@pytest.fixture
def router(clock: FakeClock, contact: WatchContact) -> Iterator[RouterCollector]:
    ledger = WorkLedger()
    ledger.open("r", A, 70, expires_at=clock() + 60.0)
    router = RouterCollector(PlacementView(Mirror()), ledger, contact, clock)
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


def test_expired_work_is_not_shown_even_if_no_request_follows(router: RouterCollector, clock: FakeClock) -> None:
    clock.advance(61.0)

    assert 'palimpsest_router_queued_tokens{replica="a"} 0.0' in generate_latest(REGISTRY).decode()


def test_a_router_out_of_sight_of_the_cache_service_shows_it(
    router: RouterCollector, clock: FakeClock, contact: WatchContact
) -> None:
    contact.record_message()
    clock.advance(4.0)
    assert reachable_and_silence() == (1.0, 4.0)
    contact.record_failure(ConnectionError("refused"))
    assert reachable_and_silence() == (0.0, 4.0)
    contact.record_message()
    clock.advance(16.0)  # a service that hangs closes no connection
    assert reachable_and_silence() == (0.0, 16.0)


def reachable_and_silence() -> tuple[float | None, float | None]:
    reachable = REGISTRY.get_sample_value("palimpsest_router_cache_service_reachable")
    return reachable, REGISTRY.get_sample_value("palimpsest_router_cache_service_silence_seconds")


def test_the_workers_samples_of_one_metric_stand_together() -> None:
    own = CollectorRegistry()
    Gauge("palimpsest_own", "Of the ingress", registry=own)

    text = generate_latest(Federation(own, Expositions([worker_text("a", 1), worker_text("b", 2)]))).decode()  # type: ignore[arg-type]

    assert text.count("# TYPE palimpsest_worker_requests_total counter") == 1
    assert text.count("# TYPE palimpsest_worker_step_seconds histogram") == 1
    assert 'palimpsest_worker_requests_total{replica="b"} 2.0' in text
    assert 'palimpsest_worker_step_seconds_sum{replica="a"} 2.0' in text
    assert "palimpsest_own 0.0" in text


def test_the_exposition_of_all_parts_is_valid_openmetrics(router: RouterCollector) -> None:
    router.count(A, 5)
    own, workers = IngressMetrics(), []
    with suppress(RequestTimeoutError), own.request():
        raise RequestTimeoutError("late")
    own.first_text_seconds.observe(0.1)
    for replica in (A, B):
        worker = WorkerMetrics(replica, partial(stats_of, replica), Tally())
        worker.observe_step(0.1)
        worker.count_engine_error(EngineFault.STEP)
        workers.append(worker.render())

    for accepted in ("application/openmetrics-text", "application/openmetrics-text; version=1.0.0"):
        encode, content_type = choose_encoder(accepted)
        text = encode(Federation(REGISTRY, own.registry, Expositions(workers))).decode()
        names = {family.name for family in openmetrics.text_string_to_metric_families(text)}

        assert content_type.startswith("application/openmetrics-text")
        assert {"palimpsest_requests", "palimpsest_router_requests", "palimpsest_worker_step_seconds"} <= names
        assert 'palimpsest_worker_step_seconds_count{replica="b"} 1.0' in text


def stats_of(replica: ReplicaId) -> WorkerStats:
    numbers = dict.fromkeys((field.name for field in fields(WorkerStats)), 0)
    return WorkerStats(**numbers | {"replica": replica})  # type: ignore[arg-type]


def test_every_error_of_a_request_has_an_outcome_that_operations_lists() -> None:
    kinds = {
        kind
        for module in (cluster_errors, worker_errors)
        for kind in vars(module).values()
        if isinstance(kind, type) and issubclass(kind, Exception)
    }
    operations = (Path(__file__).parents[3] / "docs" / "operations.md").read_text()

    outcomes = {outcome_of(kind.__new__(kind)) for kind in kinds}

    assert outcomes == {outcome for _, outcome in OUTCOMES} | {"internal"}
    assert not [outcome for outcome in outcomes if f"`{outcome}`" not in operations]
