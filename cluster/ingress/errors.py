"""Map every error, by one table, to the status that an HTTP and a gRPC client gets, and whether a repeat can help."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

from grpc import StatusCode

from cluster import errors
from workers.api import PARAMETERS
from workers.errors import InvalidRequestError, OverloadedError, StepFailedError, WorkerError


@dataclass(frozen=True)
class Status:
    """Describes the response to one kind of error. `kind` and `code` are `error.type` and `error.code` over HTTP."""

    http: int
    grpc: StatusCode
    kind: str
    code: str | None = None
    retry_after_s: float | None = None
    """Seconds after which the same request may succeed, unless the error names them itself; None: it never will."""


TABLE: tuple[tuple[type[Exception], Status], ...] = (
    (errors.RequestError, Status(400, StatusCode.INVALID_ARGUMENT, "invalid_request_error")),
    (InvalidRequestError, Status(400, StatusCode.INVALID_ARGUMENT, "invalid_request_error")),
    (
        errors.MessageTooLongError,
        Status(413, StatusCode.RESOURCE_EXHAUSTED, "invalid_request_error", "request_entity_too_large"),
    ),
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
    (OverloadedError, Status(429, StatusCode.RESOURCE_EXHAUSTED, "rate_limit_error", "overloaded", 1.0)),
    (errors.ContextQuotaError, Status(429, StatusCode.RESOURCE_EXHAUSTED, "quota_error", "context_quota_exceeded")),
    (errors.ContextsFullError, Status(507, StatusCode.RESOURCE_EXHAUSTED, "storage_error", "contexts_full")),
    (
        errors.BackgroundTaskError,
        Status(503, StatusCode.UNAVAILABLE, "service_unavailable_error", "background_task_ended"),
    ),
    (errors.NotReadyError, Status(503, StatusCode.UNAVAILABLE, "service_unavailable_error", "not_ready", 5.0)),
    (errors.DrainingError, Status(503, StatusCode.UNAVAILABLE, "service_unavailable_error", "shutting_down", 1.0)),
    (
        errors.ContextsUnavailableError,
        Status(503, StatusCode.UNAVAILABLE, "service_unavailable_error", "contexts_unavailable", 1.0),
    ),
    (errors.ReplicaLostError, Status(503, StatusCode.UNAVAILABLE, "service_unavailable_error", "replica_lost", 1.0)),
    (StepFailedError, Status(500, StatusCode.INTERNAL, "server_error", "worker_error", 1.0)),
    (WorkerError, Status(500, StatusCode.INTERNAL, "server_error", "worker_error")),
)
"""Rows of error types and statuses; the first row that matches an error counts."""

PARAMETER_PATHS = {parameter.client_name: parameter.path for parameter in PARAMETERS}
"""Each decoding parameter's name in the workers' errors, and its path in a client's request."""

INTERNAL = Status(500, StatusCode.INTERNAL, "server_error", "internal_error")


@dataclass(frozen=True)
class Reply:
    """Holds the response that a client gets for one error."""

    status: Status
    message: str
    param: str | None = None
    code: str | None = None
    retry_after_s: float | None = None
    """Seconds after which the same request may succeed; None: a repeat can't help."""
    current_epoch: int | None = None

    def body(self) -> dict[str, dict[str, str | int | None]]:
        """Return OpenAI's error object, with the newest epoch if the client's change was for an older one."""
        error: dict[str, str | int | None] = {
            "message": whole_characters(self.message),
            "type": self.status.kind,
            "param": self.param and whole_characters(self.param),
            "code": self.code,
        }
        return {"error": error if self.current_epoch is None else error | {"current_epoch": self.current_epoch}}


def reply_to(error: BaseException) -> Reply:
    """Return the reply to an error. An error that isn't in the table is internal: its message goes only to the log."""
    if isinstance(error, InvalidRequestError):
        error = moved(error, PARAMETER_PATHS)
    for kind, status in TABLE:
        if isinstance(error, kind):
            return Reply(
                status,
                str(error),
                param=getattr(error, "param", None),
                code=getattr(error, "code", None) or status.code,
                retry_after_s=getattr(error, "retry_after_s", status.retry_after_s),
                current_epoch=getattr(error, "current_epoch", None),
            )
    return Reply(INTERNAL, "internal error; the server's log has the details", code=INTERNAL.code)


@contextmanager
def at_paths(paths: Mapping[str, str]) -> Iterator[None]:
    """Let errors name the paths at which the client wrote the fields.

    `paths` maps from those used in the service, and moves what lies below a path, too. The first one that fits counts.
    """
    try:
        yield
    except InvalidRequestError as error:
        raise moved(moved(error, PARAMETER_PATHS), paths) from error
    except errors.RequestError as error:
        raise moved(error, paths) from error


def moved(error: errors.RequestError | InvalidRequestError, paths: Mapping[str, str]) -> errors.RequestError:
    """Return the same fault at another path, with which its message begins if it began with the old one."""
    old, message = error.param or "", str(error)
    known = next((path for path in paths if old == path or old.startswith(f"{path}.")), None)
    new = old if known is None else paths[known] + old.removeprefix(known)
    if old and message.startswith(f"{old} "):
        message = new + message.removeprefix(old)
    return errors.RequestError(message, param=new or None, code=error.code)


def whole_characters(text: str) -> str:
    """Return a text that can be encoded: half a character, which JSON can spell, becomes a question mark."""
    return text.encode(errors="replace").decode()
