"""Define the errors of the cluster package. Messages name the setting to change."""

from __future__ import annotations


class ClusterError(Exception):
    """Is the base class of the cluster's errors."""


class ConfigError(ClusterError):
    """The configuration can't be used; the message names the file, the key and what is wrong."""


class TokenizerError(ClusterError):
    """The model directory's tokenizer or chat template can't be used."""


class RequestError(ClusterError):
    """The client's request is invalid; `param` names the field at fault, `code` the kind of fault."""

    def __init__(self, message: str, *, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.param = param
        self.code = code


class MessageTooLongError(ClusterError):
    """The message is longer than `limits.max_body_bytes`."""


class AuthenticationError(ClusterError):
    """The call has no API key, or one that isn't configured."""


class ModelNotFoundError(ClusterError):
    """The request names a model that isn't served here."""

    param = "model"


class ContextNotFoundError(ClusterError):
    """No shared context has that id, or it is another tenant's."""

    param = "context"


class ContextConflictError(ClusterError):
    """The shared context has moved on to `current_epoch`: read it, and decide again."""

    param = "expected_epoch"

    def __init__(self, message: str, *, current_epoch: int) -> None:
        super().__init__(message)
        self.current_epoch = current_epoch


class ContextQuotaError(ClusterError):
    """The tenant's shared contexts would exceed a quota: delete a context. Waiting alone frees no room."""


class ContextsFullError(ClusterError):
    """The shared contexts of all tenants together would exceed a quota."""


class ContextsUnavailableError(ClusterError):
    """The cache service, where shared contexts live, doesn't answer."""


class NotReadyError(ClusterError):
    """No worker replica can answer now; trying again later may help."""


class DrainingError(ClusterError):
    """The server is being stopped and takes no new requests."""


class RequestTimeoutError(ClusterError):
    """The request took longer than its deadline or than `limits.request_timeout_s`."""


class StartError(ClusterError):
    """The cluster can't start on this machine as it is configured."""


class BackgroundTaskError(ClusterError):
    """A task has ended that should have run until the end of its process."""


class ReplicaLostError(ClusterError):
    """A replica was lost before its answer was complete.

    A client gets this error if part of the answer had been sent already, or if every replica that was tried was lost.
    """
