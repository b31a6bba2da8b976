"""Defines the worker's errors. Messages name the setting to change."""

from __future__ import annotations

from typing import Self


class WorkerError(Exception):
    """Is the base class of the worker's errors."""


class UnsupportedModelError(WorkerError):
    """The model directory can't be served: a missing file, an unknown architecture or a foreign layout."""


class InvalidRequestError(WorkerError):
    """The request is invalid; `param` names the field at fault, `code` the kind of fault."""

    def __init__(self, message: str, *, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.param = param
        self.code = code


class OverloadedError(WorkerError):
    """The worker's queue is full; the caller should try again after `retry_after_s`."""

    def __init__(self, message: str, *, retry_after_s: float = 1.0) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class NonFiniteLogitsError(WorkerError):
    """The model returned NaN or infinity; only this request fails."""

    def __init__(self, message: str = "the model returned NaN or infinite logits; check its weights and dtype") -> None:
        super().__init__(message)


class StepFailedError(WorkerError):
    """The engine step with this request raised an exception; other requests continue, and the log has the stack."""

    @classmethod
    def because_of(cls, error: Exception, failed: str = "an engine step") -> Self:
        """Return a failure of the operation `failed`, with `error` as its cause."""
        failure = cls(f"{failed} failed: {error!r}")
        failure.__cause__ = error
        return failure


class EngineClosedError(WorkerError):
    """The engine no longer accepts requests; another replica can serve this one."""


class MembershipEndedError(WorkerError):
    """The thread that keeps the replica a member of the cluster has ended; another replica must take its place."""


def check(condition: bool, param: str, problem: str, *, code: str | None = None) -> None:
    """Raise InvalidRequestError for `param` unless `condition` holds; its message begins with the name."""
    if not condition:
        raise InvalidRequestError(f"{param} {problem}", param=param, code=code)
