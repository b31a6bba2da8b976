"""Map every error, by one table, to the status that an HTTP and a gRPC client gets."""

from __future__ import annotations

from dataclasses import dataclass

from grpc import StatusCode

from cluster import errors
from workers.errors import InvalidRequestError, OverloadedError, WorkerError


@dataclass(frozen=True)
class Status:
    """Describes the response to one kind of error. `kind` and `code` are `error.type` and `error.code` over HTTP."""

    http: int
    grpc: StatusCode
    kind: str
    code: str | None = None


TABLE: tuple[tuple[type[Exception], Status], ...] = (
    (errors.RequestError, Status(400, StatusCode.INVALID_ARGUMENT, "invalid_request_error")),
    (InvalidRequestError, Status(400, StatusCode.INVALID_ARGUMENT, "invalid_request_error")),
    (
        errors.AuthenticationError,
        Status(401, StatusCode.UNAUTHENTICATED, "authentication_error", "invalid_api_key"),
    ),
    (errors.ModelNotFoundError, Status(404, StatusCode.NOT_FOUND, "invalid_request_error", "model_not_found")),
    (
        errors.ContextNotFoundError,
        Status(404, StatusCode.NOT_FOUND, "invalid_request_error", "context_not_found"),
    ),
    (errors.ContextConflictError, Status(409, StatusCode.ABORTED, "conflict_error", "epoch_conflict")),
    (errors.RequestTimeoutError, Status(408, StatusCode.DEADLINE_EXCEEDED, "timeout_error", "request_timeout")),
    (OverloadedError, Status(429, StatusCode.RESOURCE_EXHAUSTED, "rate_limit_error", "overloaded")),
    (errors.ContextQuotaError, Status(429, StatusCode.RESOURCE_EXHAUSTED, "quota_error", "context_quota_exceeded")),
    (errors.ContextsFullError, Status(507, StatusCode.RESOURCE_EXHAUSTED, "storage_error", "contexts_full")),
    (
        errors.BackgroundTaskError,
        Status(503, StatusCode.UNAVAILABLE, "service_unavailable_error", "background_task_ended"),
    ),
    (errors.NotReadyError, Status(503, StatusCode.UNAVAILABLE, "service_unavailable_error", "not_ready")),
    (
        errors.ContextsUnavailableError,
        Status(503, StatusCode.UNAVAILABLE, "service_unavailable_error", "contexts_unavailable"),
    ),
    (errors.ReplicaLostError, Status(503, StatusCode.UNAVAILABLE, "service_unavailable_error", "replica_lost")),
    (WorkerError, Status(500, StatusCode.INTERNAL, "server_error", "worker_error")),
)
"""Rows of error types and statuses; the first row that matches an error counts."""

INTERNAL = Status(500, StatusCode.INTERNAL, "server_error", "internal_error")


@dataclass(frozen=True)
class Reply:
    """Holds the response that a client gets for one error."""

    status: Status
    message: str
    param: str | None = None
    code: str | None = None
    retry_after_s: float | None = None
    current_epoch: int | None = None

    def body(self) -> dict[str, dict[str, str | int | None]]:
        """Return OpenAI's error object, with the newest epoch if the client's change was for an older one."""
        error: dict[str, str | int | None] = {
            "message": self.message,
            "type": self.status.kind,
            "param": self.param,
            "code": self.code,
        }
        return {"error": error if self.current_epoch is None else error | {"current_epoch": self.current_epoch}}


def reply_to(error: BaseException) -> Reply:
    """Return the reply to an error. An error that isn't in the table is internal: its message goes only to the log."""
    for kind, status in TABLE:
        if isinstance(error, kind):
            return Reply(
                status,
                str(error),
                param=getattr(error, "param", None),
                code=getattr(error, "code", None) or status.code,
                retry_after_s=getattr(error, "retry_after_s", None),
                current_epoch=getattr(error, "current_epoch", None),
            )
    return Reply(INTERNAL, "internal error; the server's log has the details", code=INTERNAL.code)
