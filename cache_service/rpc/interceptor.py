"""Turn refusals into status codes, and count and time every call."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import grpc

from cache_service.errors import CacheServiceError
from cache_service.metrics import Metrics
from cache_service.rpc.status import CODES, REASON_KEY, details_of

_log = logging.getLogger(__name__)
_OURS = "/palimpsest."


class CallInterceptor(grpc.aio.ServerInterceptor):  # type: ignore[misc]
    """Wraps the handlers of this project's services; health and reflection pass through."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self._handlers: dict[str, Any] = {}

    async def intercept_service(
        self, continuation: Callable[[Any], Awaitable[Any]], call: grpc.HandlerCallDetails
    ) -> Any:
        if call.method not in self._handlers:
            handler = await continuation(call)
            if handler is None or not call.method.startswith(_OURS):
                return handler
            self._handlers[call.method] = self._wrap(call.method.rpartition("/")[2], handler)
        return self._handlers[call.method]

    def _wrap(self, method: str, handler: Any) -> Any:
        if handler.response_streaming:
            return handler._replace(unary_stream=self._wrap_streaming(method, handler.unary_stream))
        return handler._replace(unary_unary=self._wrap_unary(method, handler.unary_unary))

    def _wrap_unary(self, method: str, serve: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
        latency = self._metrics.latency.labels(method)

        async def call(request: Any, context: grpc.aio.ServicerContext) -> Any:
            with latency.time():
                async with self._translate_errors(method, context):
                    return await serve(request, context)

        return call

    def _wrap_streaming(
        self, method: str, serve: Callable[..., AsyncIterator[Any]]
    ) -> Callable[..., AsyncIterator[Any]]:
        async def call(request: Any, context: grpc.aio.ServicerContext) -> AsyncIterator[Any]:
            with self._metrics.watchers.track_inprogress():
                async with self._translate_errors(method, context):
                    async for response in serve(request, context):
                        yield response

        return call

    @asynccontextmanager
    async def _translate_errors(self, method: str, context: grpc.aio.ServicerContext) -> AsyncIterator[None]:
        code = grpc.StatusCode.CANCELLED
        try:
            yield
            code = grpc.StatusCode.OK
        except CacheServiceError as refusal:
            code = CODES.get(type(refusal), grpc.StatusCode.INTERNAL)
            self._metrics.refusals.labels(method, refusal.reason).inc()
            await context.abort(code, details_of(str(refusal)), ((REASON_KEY, refusal.reason),))
        except Exception:
            code = grpc.StatusCode.INTERNAL
            _log.exception("%s failed", method)
            await context.abort(code, f"{method} failed; see the cache service's log")
        finally:
            self._metrics.calls.labels(method, code.name).inc()
