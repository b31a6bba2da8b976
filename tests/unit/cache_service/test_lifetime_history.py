"""The history checker finds lifetimes that end early or late, and contexts beyond a quota, and believes the others."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from cache_service.core.quotas import ContextQuotas
from cache_service.core.types import (
    FIRST_EPOCH,
    Context,
    ContextId,
    Edit,
    EditId,
    Epoch,
    Lifetime,
    Revision,
    TenantId,
    Version,
)
from cache_service.testing import FakeClock, HistoryChecker, Violation
from tests.unit.cache_service.builders import key

RED, BLUE = TenantId("red"), TenantId("blue")
TTL_S, STRAYS_S = 10.0, 1.0


class History:
    """Reports creations, changes and reads to the checker; each test doctors one."""

    def __init__(self) -> None:
        self.clock = FakeClock()
        quotas = ContextQuotas(max_per_tenant=2, max_total=3)
        history = HistoryChecker(self.clock, strays_s=STRAYS_S, quotas=quotas)
        self.checker, self.begin_read = history.contexts, history.begin
        self.num = 0

    def create(self, name: str = "c", tenant: TenantId = RED, ttl_s: float | None = TTL_S) -> Context:
        self.checker.begin_create(EditId(name), [1, 2], tenant=tenant)
        version = Version(FIRST_EPOCH, key("v0"), EditId(name))
        context = Context(ContextId(name), "m", "salt", (1, 2), (), Revision(1), EditId(name), version, tenant=tenant)
        context = replace(context, lifetime=self.lifetime(ttl_s))
        self.checker.end_create(EditId(name), context)
        return context

    def lifetime(self, ttl_s: float | None) -> Lifetime | None:
        return None if ttl_s is None else Lifetime(ttl_s, self.clock.now + ttl_s)

    def send_renewal(self, context: Context, ttl_s: float | None = None) -> EditId:
        self.num += 1
        renewal = EditId(f"renewal {self.num}")
        self.checker.begin_renew(context.id, renewal, ttl_s)
        return renewal

    def renew(self, context: Context, ttl_s: float = TTL_S) -> Context:
        renewal, lifetime = self.send_renewal(context, ttl_s), self.lifetime(ttl_s)
        self.checker.end_renew(context.id, renewal, lifetime)
        return replace(context, lifetime=lifetime)

    def read(self, context: Context) -> None:
        self.checker.end_get(self.begin_read(), context)

    def miss(self, context: Context) -> None:
        self.checker.end_unknown(self.begin_read(), context.id)

    def list_none(self) -> None:
        self.checker.end_list(self.begin_read(), "salt", ())


def test_a_true_history_of_lifetimes_is_believed() -> None:
    history = History()
    context = history.create()
    history.clock.advance(TTL_S - 1.0)
    context = history.renew(context)
    history.read(context)
    history.clock.advance(TTL_S)
    history.checker.lifetimes.end_sweep(history.clock.now)
    history.miss(context)
    history.list_none()
    assert history.checker.lifetimes.num_renewals == 2


def a_context_is_missed_before_its_end(history: History) -> None:
    context = history.create()
    history.clock.advance(TTL_S - 1.0)
    history.miss(context)


def a_context_is_not_listed_before_its_end(history: History) -> None:
    history.create()
    history.clock.advance(TTL_S - 1.0)
    history.list_none()


def a_renewed_context_is_missed(history: History) -> None:
    context = history.create()
    history.clock.advance(TTL_S - 1.0)
    history.renew(context)
    history.clock.advance(2.0)
    history.miss(context)


def a_context_is_missed_long_after_a_shorter_lifetime_was_replaced(history: History) -> None:
    context = history.create()
    history.renew(context, 2.0)
    history.clock.advance(STRAYS_S + 0.5)
    history.read(history.renew(context, TTL_S))
    history.clock.advance(2.0)
    history.miss(context)


def a_context_without_end_is_missed(history: History) -> None:
    context = history.create(ttl_s=None)
    history.clock.advance(100 * TTL_S)
    history.miss(context)


def a_missed_context_is_read(history: History) -> None:
    context = history.create()
    history.clock.advance(TTL_S)
    history.miss(context)
    history.read(context)


def an_ended_context_is_read(history: History) -> None:
    context = history.create()
    history.clock.advance(TTL_S)
    history.checker.lifetimes.end_sweep(history.clock.now)
    history.read(context)


def a_renewal_keeps_the_end(history: History) -> None:
    context = history.create()
    history.clock.advance(1.0)
    history.checker.end_renew(context.id, history.send_renewal(context), context.lifetime)


def an_edit_keeps_the_end(history: History) -> None:
    context, edit = history.create(), EditId("e")
    history.clock.advance(1.0)
    history.checker.begin_edit(context.id, context.epoch, [Edit(0, 0, (7,))], edit)
    history.checker.end_edit(context.id, edit, Version(Epoch(1), key("v1"), edit), context.lifetime)


def a_tenant_has_a_context_too_many(history: History) -> None:
    for name in "cde":
        history.create(name)


def all_tenants_have_a_context_too_many(history: History) -> None:
    for name, tenant in zip("cdef", (RED, BLUE, RED, BLUE), strict=True):
        history.create(name, tenant)


def a_context_counts_for_another_tenant(history: History) -> None:
    context = history.create()
    history.checker.begin_create(EditId("d"), [1, 2], tenant=BLUE)
    version = replace(context.version, edit_id=EditId("d"))
    history.checker.end_create(EditId("d"), replace(context, id=ContextId("d"), origin=EditId("d"), version=version))


@pytest.mark.parametrize(
    ("doctor", "found"),
    [
        (a_context_is_missed_before_its_end, "is unknown, though"),
        (a_context_is_not_listed_before_its_end, "is not listed"),
        (a_renewed_context_is_missed, "is unknown, though"),
        (a_context_is_missed_long_after_a_shorter_lifetime_was_replaced, "is unknown, though"),
        (a_context_without_end_is_missed, "is unknown, though"),
        (a_missed_context_is_read, "its deletion"),
        (an_ended_context_is_read, "though all that had ended"),
        (a_renewal_keeps_the_end, "did not begin its lifetime again"),
        (an_edit_keeps_the_end, "did not begin its lifetime again"),
        (a_tenant_has_a_context_too_many, "beyond a quota"),
        (all_tenants_have_a_context_too_many, "beyond a quota"),
        (a_context_counts_for_another_tenant, "counts for"),
    ],
)
def test_a_doctored_history_is_refused(doctor: Callable[[History], None], found: str) -> None:
    with pytest.raises(Violation, match=found):
        doctor(History())


def test_a_shorter_lifetime_that_was_sent_may_have_ended_the_context() -> None:
    history = History()
    context = history.create()
    history.send_renewal(context, 1.0)
    history.read(context)  # before the renewal arrives
    history.clock.advance(2.0)
    history.miss(context)


def test_contexts_that_may_have_gone_make_room() -> None:
    history = History()
    history.create("c")
    history.checker.begin_delete(history.create("d").id)
    history.create("e")
    history.clock.advance(TTL_S)
    history.create("f")
    history.create("g")
