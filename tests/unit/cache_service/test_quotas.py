"""Quotas of shared contexts: what they refuse, what they count, and for whom."""

from __future__ import annotations

import random
from collections.abc import Sequence
from contextlib import suppress

import pytest

from cache_service.core.events import Created, Event
from cache_service.core.quotas import ContextQuotas, Usage
from cache_service.core.state import State
from cache_service.core.types import FIRST_EPOCH, Context, Edit, EditId, TenantId
from cache_service.errors import CacheServiceError, InvalidRequest, TenantQuotaExceeded, TotalQuotaExceeded
from tests.unit.cache_service.builders import ANNA

RED, BLUE = TenantId("red"), TenantId("blue")
QUOTAS = ContextQuotas(max_per_tenant=2, max_tokens_per_tenant=10, max_total=3, max_total_tokens=16)


class Service:
    """Makes decisions on one state, under quotas."""

    def __init__(self, quotas: ContextQuotas = QUOTAS) -> None:
        self.state, self.quotas = State(), quotas

    def carry_out(self, events: Sequence[Event]) -> Sequence[Event]:
        for event in events:
            self.state.apply(event)
        return events

    def create(self, tenant: TenantId, num_tokens: int, edit_id: str | None = None) -> Sequence[Event]:
        name, at = EditId(edit_id or f"c{self.state.revision}"), self.state.next_revision
        tokens = [1] * num_tokens
        return self.carry_out(
            self.state.create("m", "s", tokens, [], name, ANNA, at, tenant=tenant, quotas=self.quotas)
        )

    def created(self, tenant: TenantId, num_tokens: int) -> Context:
        (event,) = self.create(tenant, num_tokens)
        assert isinstance(event, Created)
        return event.context

    def edit(self, context: Context, edit: Edit, edit_id: str | None = None) -> Sequence[Event]:
        newest, at = self.state.contexts.get(context.id), self.state.next_revision
        name = EditId(edit_id or f"e{self.state.revision}")
        return self.carry_out(self.state.edit(context.id, newest.epoch, [edit], name, ANNA, at, quotas=self.quotas))

    def delete(self, context: Context) -> None:
        self.carry_out(self.state.delete(context.id, ANNA, self.state.next_revision))

    @property
    def total(self) -> Usage:
        return self.state.contexts.usage.total


def test_a_tenant_is_refused_at_its_own_quota_and_others_are_not() -> None:
    service = Service()
    first = service.created(RED, 1)
    service.create(RED, 1)
    with pytest.raises(TenantQuotaExceeded, match=r"has 2 .* contexts\.max_per_tenant .* allows 2: delete a context"):
        service.create(RED, 1)
    service.create(BLUE, 1)
    service.delete(first)
    service.create(RED, 1)
    assert service.total == Usage(3, 3)


def test_a_tenants_tokens_count_together() -> None:
    service = Service()
    service.create(RED, 6)
    with pytest.raises(TenantQuotaExceeded, match=r"would have 11 tokens.*contexts\.max_tokens_per_tenant.*allows 10"):
        service.create(RED, 5)
    service.create(RED, 4)
    assert service.state.contexts.usage.of(RED) == Usage(2, 10)


def test_all_tenants_share_the_total_quotas() -> None:
    service = Service()
    service.create(RED, 10)
    service.create(BLUE, 5)
    with pytest.raises(TotalQuotaExceeded, match=r"contexts\.max_total_tokens .* allows 16 tokens.* and 2 more"):
        service.create(BLUE, 2)
    service.create(BLUE, 1)
    with pytest.raises(TotalQuotaExceeded, match=r"contexts\.max_total .* allows 3 .*delete a context"):
        service.create(TenantId("green"), 1)


def test_an_edit_may_not_grow_a_context_beyond_a_quota() -> None:
    service = Service()
    context = service.created(RED, 9)
    service.edit(context, Edit(0, 0, (2,)))
    with pytest.raises(TenantQuotaExceeded, match="would have 11 tokens"):
        service.edit(context, Edit(0, 1, (2, 3)))
    service.edit(context, Edit(0, 5, (2, 3, 4, 5, 6)))
    service.edit(context, Edit(0, 5, ()))
    assert service.total == Usage(1, 5)


def test_a_context_beyond_a_lowered_quota_can_still_be_edited_and_shortened() -> None:
    service = Service()
    context = service.created(RED, 9)
    service.quotas = ContextQuotas(max_per_tenant=1, max_tokens_per_tenant=2, max_total=1, max_total_tokens=2)
    service.edit(context, Edit(0, 1, (5,)))
    service.edit(context, Edit(0, 1, ()))
    assert service.total == Usage(1, 8)


def test_a_retry_of_what_took_effect_is_neither_refused_nor_counted_again() -> None:
    service = Service(ContextQuotas(max_per_tenant=1, max_tokens_per_tenant=2, max_total=1, max_total_tokens=2))
    (created,) = service.create(RED, 1, "once")
    assert isinstance(created, Created)
    assert service.create(RED, 1, "once") == ()
    service.edit(created.context, Edit(0, 0, (2,)), "grown")
    at = service.state.next_revision
    again = service.state.edit(
        created.context.id, FIRST_EPOCH, [Edit(0, 0, (2,))], EditId("grown"), ANNA, at, quotas=service.quotas
    )
    assert again == ()
    assert service.total == Usage(1, 2)


@pytest.mark.parametrize("seed", range(5))
def test_the_counts_follow_the_contexts_and_never_exceed_the_quotas(seed: int) -> None:
    rng, service = random.Random(seed), Service()
    for _ in range(300):
        contexts = service.state.contexts.all()
        with suppress(CacheServiceError):
            if not contexts or rng.random() < 0.4:
                service.create(rng.choice((RED, BLUE)), rng.randint(1, 8))
            elif rng.random() < 0.6:
                context = rng.choice(contexts)
                start = rng.randint(0, len(context.token_ids))
                end = rng.randint(start, len(context.token_ids))
                service.edit(context, Edit(start, end, (3,) * rng.randint(0, 5)))
            else:
                service.delete(rng.choice(contexts))
        restored = State.restore(service.state.revision, service.state.contexts.all())
        for tenant in (RED, BLUE):
            theirs = [context for context in service.state.contexts.all() if context.tenant == tenant]
            counted = Usage(len(theirs), sum(len(context.token_ids) for context in theirs))
            assert service.state.contexts.usage.of(tenant) == restored.contexts.usage.of(tenant) == counted
            assert counted.num_contexts <= QUOTAS.max_per_tenant
            assert counted.num_tokens <= QUOTAS.max_tokens_per_tenant
        assert service.total == restored.contexts.usage.total
        assert service.total.num_contexts <= QUOTAS.max_total
        assert service.total.num_tokens <= QUOTAS.max_total_tokens


def test_a_tenants_name_is_bounded() -> None:
    with pytest.raises(InvalidRequest, match="tenant may have 64 characters"):
        Service().create(TenantId("x" * 65), 1)
