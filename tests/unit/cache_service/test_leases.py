from __future__ import annotations

from cache_service.core.leases import Leases
from cache_service.core.types import LeaseId

ONE, TWO = LeaseId(1), LeaseId(2)


def test_a_lease_lives_until_its_ttl_has_passed_without_renewal() -> None:
    leases = Leases()
    leases.grant(ONE, 3.0, now=0.0)
    leases.grant(TWO, 5.0, now=0.0)
    assert leases.renew(ONE, 3.0, now=2.9)
    assert leases.lapsed(now=5.0) == {TWO}
    assert leases.lapsed(now=5.9) == {ONE, TWO}


def test_a_lapsed_lease_never_lives_again() -> None:
    leases = Leases()
    leases.grant(ONE, 3.0, now=0.0)
    assert not leases.renew(ONE, 3.0, now=3.0)
    assert leases.lapsed(now=3.0) == {ONE}
    leases.revoke(ONE)
    assert not leases.renew(ONE, 3.0, now=0.0)
    assert leases.lapsed(now=99.0) == frozenset()


def test_the_renewal_of_an_ended_lease_answers_no() -> None:
    leases = Leases()
    assert leases.renew(LeaseId(1), 1.0, 0.0) is False
    leases.grant(LeaseId(1), 1.0, 0.0)
    assert leases.renew(LeaseId(1), 1.0, 0.9) is True
    assert leases.renew(LeaseId(1), 1.0, 1.9) is False
