from __future__ import annotations

from cache_service.core.types import ReplicaId
from cluster.ledger import REPORT_LIFE_S, WorkLedger

A, B = ReplicaId("a"), ReplicaId("b")
LATER = 60.0


def test_open_work_is_counted_until_it_is_closed() -> None:
    ledger = WorkLedger()
    ledger.open("one", A, 100, LATER)
    ledger.open("two", A, 50, LATER)
    ledger.open("three", B, 10, LATER)

    assert (ledger.queued_tokens(A), ledger.queued_tokens(B)) == (150, 10)
    ledger.close("one", A)
    ledger.close("one", A)
    assert ledger.queued_tokens(A) == 50
    ledger.close("two", A)
    ledger.close("three", B)
    assert ledger.replicas == ()


def test_a_request_is_open_on_one_replica() -> None:
    """It is open where it was expected, until another replica takes it."""
    ledger = WorkLedger()
    ledger.open("moved", A, 100, LATER)
    ledger.open("moved", B, 90, LATER)
    ledger.close("moved", A)

    assert (ledger.sent_tokens(A), ledger.sent_tokens(B)) == (0, 90)
    ledger.forget("moved")
    assert ledger.replicas == ()


def test_a_request_whose_end_is_never_reported_expires() -> None:
    ledger = WorkLedger()
    ledger.open("lost", A, 100, expires_at=60.0)
    ledger.open("longer", A, 10, expires_at=61.0)
    ledger.open("expected", B, 5, expires_at=1.0)

    ledger.expire(0.9)
    assert (ledger.sent_tokens(A), ledger.sent_tokens(B)) == (110, 5)
    ledger.expire(60.0)
    assert (ledger.sent_tokens(A), ledger.replicas) == (10, (A,))


def test_requests_of_other_routers_are_counted_at_the_mean() -> None:
    ledger = WorkLedger()
    ledger.open("mine", A, 100, LATER)
    ledger.record_load(A, 3, now=0.0)
    ledger.record_load(B, 2, now=0.0)

    assert (ledger.queued_tokens(A), ledger.queued_tokens(B)) == (300, 200)
    assert (ledger.sent_tokens(A), ledger.sent_tokens(B)) == (100, 0)


def test_requests_that_end_after_a_report_do_not_count_as_other_routers() -> None:
    ledger = WorkLedger()
    ledger.open("mine", A, 100, LATER)
    ledger.record_load(A, 1, now=0.0)
    ledger.close("mine", A)

    assert ledger.queued_tokens(A) == 0


def test_a_report_expires() -> None:
    """A replica that gets no requests must not count as busy for good."""
    ledger = WorkLedger()
    ledger.open("mine", A, 100, LATER)
    ledger.record_load(B, 2, now=0.0)

    ledger.expire(REPORT_LIFE_S / 2)
    assert ledger.queued_tokens(B) == 200
    ledger.expire(REPORT_LIFE_S)
    assert ledger.queued_tokens(B) == 0


def test_a_replica_that_reports_less_than_was_sent_does_not_count_as_idle() -> None:
    ledger = WorkLedger()
    ledger.open("mine", A, 100, LATER)
    ledger.record_load(A, 0, now=0.0)

    assert ledger.queued_tokens(A) == 100


def test_nothing_is_known_before_the_first_request() -> None:
    ledger = WorkLedger()
    ledger.record_load(A, 5, now=0.0)

    assert ledger.queued_tokens(A) == 0
