"""A start shows each part as it becomes ready."""

from __future__ import annotations

import logging
from types import SimpleNamespace

import pytest

from cluster.supervisor.progress import log_new, ready_counts, replicas_reported, seconds_since_start
from tests.support.waiting import eventually

WANTED = {"Worker": 2, "Ingress": 1}


def test_counts_come_from_serves_status() -> None:
    deployments = {
        "Worker": SimpleNamespace(replica_states={"RUNNING": 1, "STARTING": 1}),
        "Ingress": SimpleNamespace(replica_states={"STARTING": 1}),
    }
    status = SimpleNamespace(applications={"app": SimpleNamespace(deployments=deployments)})

    assert ready_counts(status, "app") == {"Worker": 1, "Ingress": 0}
    assert ready_counts(status, "other") == {}


def test_each_ready_replica_is_one_line(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    seen: dict[str, int] = {}
    for counts in ({}, {"Worker": 0}, {"Worker": 1}, {"Worker": 1}, {"Worker": 2, "Ingress": 1}):
        log_new(counts, WANTED, seen)

    assert [record.getMessage().partition(" after")[0] for record in caplog.records] == [
        "Worker: 1 of 2 replicas ready",
        "Worker: 2 of 2 replicas ready",
        "Ingress: 1 of 1 replicas ready",
    ]
    assert seconds_since_start() > 0


def test_a_failed_look_is_repeated(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    looks = iter([RuntimeError("Serve is not there yet"), {"Worker": 2}])

    def read() -> dict[str, int]:
        found = next(looks)
        if isinstance(found, Exception):
            raise found
        return found

    with replicas_reported(read, WANTED):
        eventually(lambda: "Worker: 2 of 2" in caplog.text)


def test_replicas_that_are_ready_at_the_very_end_are_reported_too(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    with replicas_reported(lambda: WANTED, WANTED):
        pass

    assert "Worker: 2 of 2" in caplog.text
