"""Read and check API keys, for both transports, and name the tenant of each. Pure."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Iterable

from cache_service.core.types import SOLE_TENANT, TenantId
from cluster.errors import AuthenticationError

KEY_HEADERS = ("x-api-key", "api-key")
"""The headers, or metadata, that hold nothing but a key."""


def keys_of(headers: Iterable[tuple[str, str | bytes]]) -> tuple[str, ...]:
    """Return the API keys that a call carries: that of `Authorization: Bearer KEY`, and those of `KEY_HEADERS`.

    The scheme may be written in any case, as RFC 9110 has it.
    """
    keys: list[str] = []
    for name, value in headers:
        if not isinstance(value, str):
            continue
        if name.lower() == "authorization":
            scheme, _, key = value.strip().partition(" ")
            keys += [key.strip()] if scheme.lower() == "bearer" else []
        elif name.lower() in KEY_HEADERS:
            keys.append(value.strip())
    return tuple(keys)


def check_keys(keys: Iterable[str], api_keys: frozenset[str]) -> TenantId:
    """Return the tenant of the first of `keys` that is configured. Raises AuthenticationError if no key is.

    Takes as long for any key. Without configured keys all callers are one tenant, whatever keys they send.
    """
    if not api_keys:
        return SOLE_TENANT
    valid = [key for key in keys for known in api_keys if hmac.compare_digest(key.encode(), known.encode())]
    if not valid:
        raise AuthenticationError("a valid API key is required, as 'Authorization: Bearer KEY' or 'x-api-key: KEY'")
    return tenant_of(valid[0])


def tenant_of(key: str) -> TenantId:
    """Return a digest that names the key's tenant in the cache service, which must not learn the key."""
    return TenantId(hashlib.blake2b(key.encode(errors="replace"), digest_size=16, person=b"tenant").hexdigest())
