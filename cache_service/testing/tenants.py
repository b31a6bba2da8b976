"""Check what clients observe of the quotas of shared contexts. They see only their number; watchers see tokens, too."""

from __future__ import annotations

from collections.abc import Callable

from cache_service.core.quotas import ContextQuotas
from cache_service.core.types import Context, ContextId, EditId, TenantId
from cache_service.testing.moments import Violation


class TenantHistory:
    """Checks the number of contexts in one history. A method raises Violation if an observation can't be true."""

    def __init__(self, quotas: ContextQuotas) -> None:
        self._quotas = quotas
        self.num_refused = 0
        self._asking: dict[EditId, TenantId] = {}
        self._tenants: dict[ContextId, TenantId] = {}

    def begin_create(self, edit_id: EditId, tenant: TenantId) -> None:
        self._asking[edit_id] = tenant

    def end_create(self, edit_id: EditId, context: Context, surely_exists: Callable[[ContextId], bool]) -> None:
        """Require the tenant that asked for the context, and no more contexts than it, and all, may have."""
        tenant = self._asking[edit_id]
        if context.tenant != tenant:
            raise Violation(f"{context} counts for {context.tenant!r}, though {tenant!r} had asked for it")
        self._tenants[context.id] = tenant
        existing = [owner for known, owner in self._tenants.items() if surely_exists(known)]
        if existing.count(tenant) > self._quotas.max_per_tenant or len(existing) > self._quotas.max_total:
            raise Violation(f"{context.id} of {tenant!r} is beyond a quota: there are contexts of {existing}")

    def end_refused(self) -> None:
        """Count a change that was refused for a quota."""
        self.num_refused += 1

    def forget(self, context: ContextId) -> None:
        """Record that the context is gone."""
        self._tenants.pop(context, None)
