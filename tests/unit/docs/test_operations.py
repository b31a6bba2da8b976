"""`docs/operations.md` names every metric that ingress, router and workers expose."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from prometheus_client.core import CounterMetricFamily

from cache_service.client.contact import WatchContact
from cache_service.core.types import ReplicaId
from cluster.metrics import IngressMetrics
from workers.metrics import EXPORTED_COUNTS, EXPORTED_STATS, ContactCollector

PAGE = Path(__file__).parents[3] / "docs" / "operations.md"

INGRESS = {
    family.name + ("_total" if family.type == "counter" else "") for family in IngressMetrics().registry.collect()
}
WORKER = {exported.name + ("_total" if exported.family is CounterMetricFamily else "") for exported in EXPORTED_STATS}
WORKER |= {f"{counted.name}_total" for counted in EXPORTED_COUNTS}
WORKER |= {family.name for family in ContactCollector(ReplicaId("r"), WatchContact()).collect()}


@pytest.fixture(scope="module")
def named() -> set[str]:
    return set(re.findall(r"`(palimpsest_\w+?)(?:\{[^}]*\})?`", PAGE.read_text()))


@pytest.mark.parametrize("metrics", [INGRESS, WORKER], ids=["ingress", "worker"])
def test_every_metric_is_explained(metrics: set[str], named: set[str]) -> None:
    assert sorted(metrics - named) == []


def test_no_other_metric_is_named(named: set[str]) -> None:
    measured = {"palimpsest_worker_step_seconds", "palimpsest_worker_request_seconds"}
    unknown = {name for name in named - INGRESS - WORKER - measured if not name.startswith("palimpsest_router_")}
    assert unknown - {"palimpsest_cache_"} == set()
