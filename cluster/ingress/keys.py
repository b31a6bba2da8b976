"""Read and check API keys, for both transports. Pure."""

from __future__ import annotations

import hmac
from collections.abc import Iterable

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


def check_keys(keys: Iterable[str], api_keys: frozenset[str]) -> None:
    """Raise AuthenticationError unless no key is configured or one of `keys` is. Takes as long for any key."""
    matches = [hmac.compare_digest(key.encode(), known.encode()) for key in keys for known in api_keys]
    if api_keys and not any(matches):
        raise AuthenticationError("a valid API key is required, as 'Authorization: Bearer KEY' or 'x-api-key: KEY'")
