"""What the cache service refuses, and why. The same classes are raised in the cores and by the client."""
# ruff: noqa: N818 (the names say what was refused)

from __future__ import annotations


class CacheServiceError(Exception):
    """Root of the cache service's errors; `reason` is its name on the wire."""

    reason = "internal"


class CacheServiceUnavailable(CacheServiceError):
    """The service or its store can't be reached in time. Whoever asked goes on without it."""

    reason = "unavailable"


class InvalidRequest(CacheServiceError):
    """A field has a value that can't be served; the message names it."""

    reason = "invalid-request"


class LeaseRefused(CacheServiceError):
    """The member is unknown or its lease has ended: register again."""

    reason = "lease-refused"


class StaleEpoch(CacheServiceError):
    """The content has moved on to a newer epoch: read again and decide anew."""

    reason = "stale-epoch"


class FencedToken(CacheServiceError):
    """The build has ended, or was granted anew: nothing more is done under this token."""

    reason = "fenced-token"


class Compacted(CacheServiceError):
    """History no longer reaches back to the asked revision: take a snapshot."""

    reason = "compacted"


class UnknownContext(CacheServiceError):
    """There is no such context, or no longer."""

    reason = "unknown-context"
