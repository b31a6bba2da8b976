"""Map errors to gRPC and back by one table: class, status code, and reason in the trailing metadata."""

from __future__ import annotations

import grpc

from cache_service.errors import (
    CacheServiceError,
    CacheServiceUnavailable,
    Compacted,
    FencedToken,
    InvalidRequest,
    LeaseRefused,
    StaleEpoch,
    TenantQuotaExceeded,
    TotalQuotaExceeded,
    UnknownContext,
)

REASON_KEY = "palimpsest-reason"
MAX_DETAILS = 500
"""Maximum number of characters in a status's details. They are sent in a header: beyond 8 KiB gRPC drops the metadata
beside it, and beyond 16 KiB clients refuse it."""

CODES: dict[type[CacheServiceError], grpc.StatusCode] = {
    CacheServiceUnavailable: grpc.StatusCode.UNAVAILABLE,
    InvalidRequest: grpc.StatusCode.INVALID_ARGUMENT,
    LeaseRefused: grpc.StatusCode.FAILED_PRECONDITION,
    StaleEpoch: grpc.StatusCode.ABORTED,
    FencedToken: grpc.StatusCode.FAILED_PRECONDITION,
    UnknownContext: grpc.StatusCode.NOT_FOUND,
    Compacted: grpc.StatusCode.OUT_OF_RANGE,
    TenantQuotaExceeded: grpc.StatusCode.RESOURCE_EXHAUSTED,
    TotalQuotaExceeded: grpc.StatusCode.RESOURCE_EXHAUSTED,
}
_BY_REASON = {error.reason: error for error in CODES}
_UNAVAILABLE = {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.CANCELLED}


def details_of(message: str) -> str:
    """Shorten a message to `MAX_DETAILS` characters: it may quote a long request."""
    return message if len(message) <= MAX_DETAILS else f"{message[:MAX_DETAILS]}..."


def error_of(failure: grpc.aio.AioRpcError) -> CacheServiceError:
    """Return the error that the server raised, or CacheServiceUnavailable if no answer arrived in time."""
    for key, value in failure.trailing_metadata() or ():
        if key == REASON_KEY and value in _BY_REASON:
            return _BY_REASON[value](failure.details())
    if failure.code() in _UNAVAILABLE:
        return CacheServiceUnavailable(f"{failure.code().name}: {failure.details()}")
    return CacheServiceError(f"{failure.code().name}: {failure.details()}")
