"""Check API keys, and name the tenant of each. Pure."""

from __future__ import annotations

import hashlib
import hmac

from cache_service.core.types import SOLE_TENANT, TenantId
from cluster.errors import AuthenticationError


def check_key(key: str | None, api_keys: frozenset[str]) -> TenantId:
    """Return the tenant that `key` belongs to. Raises AuthenticationError for a key that is not configured.

    Runs in constant time. Without configured keys all callers are one tenant, whatever key they send.
    """
    matches = [hmac.compare_digest((key or "").encode(), known.encode()) for known in api_keys]
    if api_keys and not any(matches):
        raise AuthenticationError("a valid API key is required, as header 'Authorization: Bearer KEY'")
    return tenant_of(key) if api_keys and key else SOLE_TENANT


def tenant_of(key: str) -> TenantId:
    """Return a digest that names the key's tenant in the cache service, which must not learn the key."""
    return TenantId(hashlib.blake2b(key.encode(), digest_size=16, person=b"tenant").hexdigest())
