from __future__ import annotations

from cache_service.types import ReplicaId
from cluster.ledger import WorkLedger

A, B = ReplicaId("a"), ReplicaId("b")


def test_open_work_is_counted_until_it_is_closed() -> None:
    ledger = WorkLedger()
    ledger.open("one", A, 100)
    ledger.open("two", A, 50)
    ledger.open("three", B, 10)

    assert (ledger.queued_tokens(A, 2), ledger.queued_tokens(B, 1)) == (150, 10)
    ledger.close("one", A)
    ledger.close("one", A)
    assert ledger.queued_tokens(A, 1) == 50
    ledger.close("two", A)
    ledger.close("three", B)
    assert ledger.replicas == ()


def test_requests_of_other_routers_are_counted_at_the_mean() -> None:
    ledger = WorkLedger()
    ledger.open("mine", A, 100)

    assert ledger.queued_tokens(A, 3) == 300
    assert ledger.queued_tokens(B, 2) == 200


def test_a_replica_that_reports_less_than_was_sent_is_not_thought_idle() -> None:
    ledger = WorkLedger()
    ledger.open("mine", A, 100)

    assert ledger.queued_tokens(A, 0) == 100
    assert ledger.queued_tokens(A, None) == 100


def test_nothing_is_known_before_the_first_request() -> None:
    assert WorkLedger().queued_tokens(A, 5) == 0
