"""The one table between errors and gRPC: class, status code, and the reason in the trailing metadata."""

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
    UnknownContext,
)

REASON_KEY = "palimpsest-reason"
MAX_DETAILS = 500
"""Characters. A status is a header: beyond 8 KiB gRPC drops what stands beside it, and clients take none of 16 KiB."""

CODES: dict[type[CacheServiceError], grpc.StatusCode] = {
    CacheServiceUnavailable: grpc.StatusCode.UNAVAILABLE,
    InvalidRequest: grpc.StatusCode.INVALID_ARGUMENT,
    LeaseRefused: grpc.StatusCode.FAILED_PRECONDITION,
    StaleEpoch: grpc.StatusCode.ABORTED,
    FencedToken: grpc.StatusCode.FAILED_PRECONDITION,
    UnknownContext: grpc.StatusCode.NOT_FOUND,
    Compacted: grpc.StatusCode.OUT_OF_RANGE,
}
_BY_REASON = {error.reason: error for error in CODES}
_AWAY = {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.CANCELLED}


def details_of(message: str) -> str:
    """`message`, or the beginning of one that repeats at length what was asked."""
    return message if len(message) <= MAX_DETAILS else f"{message[:MAX_DETAILS]}..."


def error_of(failure: grpc.aio.AioRpcError) -> CacheServiceError:
    """The error that the server raised, or CacheServiceUnavailable where none of it arrived in time."""
    for key, value in failure.trailing_metadata() or ():
        if key == REASON_KEY and value in _BY_REASON:
            return _BY_REASON[value](failure.details())
    if failure.code() in _AWAY:
        return CacheServiceUnavailable(f"{failure.code().name}: {failure.details()}")
    return CacheServiceError(f"{failure.code().name}: {failure.details()}")
