"""Bound the shared contexts of one tenant, and those of all tenants together. Pure.

A decision checks its quotas on the state that its events will follow. Stores append by compare-and-set, so the sums
stay within the quotas however many instances decide.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, field

from cache_service.core.lifetimes import require_ttl
from cache_service.core.types import TenantId
from cache_service.errors import InvalidRequest, TenantQuotaExceeded, TotalQuotaExceeded


@dataclass(frozen=True, slots=True)
class Usage:
    """Counts contexts and their tokens."""

    num_contexts: int = 0
    num_tokens: int = 0

    def __add__(self, other: Usage) -> Usage:
        return Usage(self.num_contexts + other.num_contexts, self.num_tokens + other.num_tokens)

    def __sub__(self, other: Usage) -> Usage:
        return Usage(self.num_contexts - other.num_contexts, self.num_tokens - other.num_tokens)


@dataclass
class UsageLedger:
    """Counts the contexts of each tenant, and of all."""

    total: Usage = field(default_factory=Usage)
    _by_tenant: dict[TenantId, Usage] = field(default_factory=dict)

    def of(self, tenant: TenantId) -> Usage:
        return self._by_tenant.get(tenant, Usage())

    def add(self, tenant: TenantId, usage: Usage) -> None:
        self._set(tenant, self.of(tenant) + usage)
        self.total += usage

    def subtract(self, tenant: TenantId, usage: Usage) -> None:
        self._set(tenant, self.of(tenant) - usage)
        self.total -= usage

    def _set(self, tenant: TenantId, usage: Usage) -> None:
        """Replace the usage of a tenant; one without contexts is forgotten."""
        if usage.num_contexts:
            self._by_tenant[tenant] = usage
        else:
            self._by_tenant.pop(tenant, None)


@dataclass(frozen=True)
class ContextQuotas:
    """Bounds shared contexts. A tenant is an API key; without API keys, all clients are one tenant.

    These are bounds on their number, their tokens, and the time for which they are kept.
    """

    max_per_tenant: int = 1_000
    """Shared contexts that one tenant may have."""
    max_tokens_per_tenant: int = 1_000_000
    """Tokens that the shared contexts of one tenant may have together."""
    max_total: int = 10_000
    """Shared contexts of all tenants together."""
    max_total_tokens: int = 8_000_000
    """Tokens of all shared contexts together; each takes about 40 bytes of the cache service's memory."""

    default_ttl_s: float | None = None
    """Seconds after its creation or last edit at which a context that names no `ttl_s` is deleted; None: never."""

    def __post_init__(self) -> None:
        for name in ("max_per_tenant", "max_tokens_per_tenant", "max_total", "max_total_tokens"):
            if (value := getattr(self, name)) < 1:
                raise InvalidRequest(f"contexts.{name} must be at least 1, got {value}")
        if self.default_ttl_s is not None:
            require_ttl(self.default_ttl_s, "contexts.default_ttl_s")

    def require_room(self, growth: Usage, tenant: TenantId, ledger: UsageLedger) -> None:
        """Raise TenantQuotaExceeded or TotalQuotaExceeded if `growth` of the tenant's contexts would exceed a quota.

        What doesn't grow is never refused, so contexts beyond a lowered quota can still be edited and shortened.
        """
        own, total = ledger.of(tenant) + growth, ledger.total + growth
        if growth.num_contexts > 0 and own.num_contexts > self.max_per_tenant:
            raise TenantQuotaExceeded(
                f"this tenant has {own.num_contexts - 1} shared contexts, and contexts.max_per_tenant of the cache "
                f"service allows {self.max_per_tenant}: delete a context to make room"
            )
        if growth.num_tokens > 0 and own.num_tokens > self.max_tokens_per_tenant:
            raise TenantQuotaExceeded(
                f"this tenant's shared contexts would have {own.num_tokens} tokens, and contexts.max_tokens_per_tenant "
                f"of the cache service allows {self.max_tokens_per_tenant}: delete or shorten a context to make room"
            )
        if growth.num_contexts > 0 and total.num_contexts > self.max_total:
            raise TotalQuotaExceeded(
                f"contexts.max_total of the cache service allows {self.max_total} shared contexts of all tenants, and "
                "there is no room for another: delete a context, or raise the quota"
            )
        if growth.num_tokens > 0 and total.num_tokens > self.max_total_tokens:
            raise TotalQuotaExceeded(
                f"contexts.max_total_tokens of the cache service allows {self.max_total_tokens} tokens in the shared "
                f"contexts of all tenants, and {growth.num_tokens} more have no room: delete or shorten a context, or "
                "raise the quota"
            )


UNBOUNDED = ContextQuotas(sys.maxsize, sys.maxsize, sys.maxsize, sys.maxsize)
