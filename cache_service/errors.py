"""Define the errors of the cache service. The cores and the client raise the same classes."""
# ruff: noqa: N818 (the names say what was refused)

from __future__ import annotations


class CacheServiceError(Exception):
    """The cache service refused or failed; `reason` names the error on the wire."""

    reason = "internal"


class CacheServiceUnavailable(CacheServiceError):
    """The service or its store can't be reached in time, so the caller continues without it."""

    reason = "unavailable"


class InvalidRequest(CacheServiceError):
    """A field has a value that the service can't accept; the message names it."""

    reason = "invalid-request"


class LeaseRefused(CacheServiceError):
    """The member is unknown or its lease has ended: register again."""

    reason = "lease-refused"


class StaleEpoch(CacheServiceError):
    """The context has a newer epoch: read it and decide again."""

    reason = "stale-epoch"


class FencedToken(CacheServiceError):
    """The build has ended or was granted again: this token is no longer valid."""

    reason = "fenced-token"


class Compacted(CacheServiceError):
    """History no longer reaches back to the requested revision: take a snapshot."""

    reason = "compacted"


class TenantQuotaExceeded(CacheServiceError):
    """The tenant's shared contexts would exceed a quota; the message names it."""

    reason = "tenant-quota-exceeded"


class TotalQuotaExceeded(CacheServiceError):
    """All shared contexts together would exceed a quota; the message names it."""

    reason = "total-quota-exceeded"


class UnknownContext(CacheServiceError):
    """The context does not exist, or was deleted."""

    reason = "unknown-context"
