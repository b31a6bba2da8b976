"""Translate what the cache service refuses about contexts into our own errors."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from cache_service.errors import (
    CacheServiceError,
    InvalidRequest,
    StaleEpoch,
    TenantQuotaExceeded,
    TotalQuotaExceeded,
    UnknownContext,
)
from cluster.errors import (
    ContextNotFoundError,
    ContextQuotaError,
    ContextsFullError,
    ContextsUnavailableError,
    RequestError,
)


@contextmanager
def translate_cache_errors() -> Iterator[None]:
    """Translate the cache service's errors into ours, except StaleEpoch, which only the caller can explain."""
    try:
        yield
    except StaleEpoch:
        raise
    except UnknownContext as error:
        raise ContextNotFoundError(str(error)) from error
    except InvalidRequest as error:
        raise RequestError(str(error)) from error
    except TenantQuotaExceeded as error:
        raise ContextQuotaError(str(error)) from error
    except TotalQuotaExceeded as error:
        raise ContextsFullError(str(error)) from error
    except CacheServiceError as error:
        raise ContextsUnavailableError(
            "the cache service, where shared contexts live, doesn't answer; try again shortly, or see whether it runs "
            "at cache_service.host and cache_service.port"
        ) from error
