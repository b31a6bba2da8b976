"""Check API keys. Pure."""

from __future__ import annotations

import hmac

from cluster.errors import AuthenticationError


def check_key(key: str | None, api_keys: frozenset[str]) -> None:
    """Raise AuthenticationError unless no key is configured or `key` is one of them. Runs in constant time."""
    matches = [hmac.compare_digest((key or "").encode(), known.encode()) for known in api_keys]
    if api_keys and not any(matches):
        raise AuthenticationError("a valid API key is required, as header 'Authorization: Bearer KEY'")
