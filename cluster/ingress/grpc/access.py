"""Note each gRPC call in the access log, also those that name no method or carry no readable message."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import grpc

from cluster.errors import MessageTooLongError, RequestError
from cluster.ingress.access import CLIENT_LEFT, UNMATCHED, AccessLog, Exchange, begin, note_request_id, presented_tenant

Continuation = Callable[[grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler | None]]


OURS = "/palimpsest."
"""Beginning of the paths of our own services."""


class AccessInterceptor(grpc.aio.ServerInterceptor):  # type: ignore[misc]
    """Begins each call's exchange, which ends in `guarded_call`; those of health and reflection are not written."""

    def __init__(self, log: AccessLog, max_message_bytes: int) -> None:
        self._log, self._max_message_bytes = log, max_message_bytes

    async def intercept_service(
        self, continuation: Continuation, handler_call_details: grpc.HandlerCallDetails
    ) -> grpc.RpcMethodHandler | None:
        path = handler_call_details.method
        metadata = {str(key): value for key, value in handler_call_details.invocation_metadata or ()}
        exchange = Exchange(self._log, "grpc", "RPC", path, tenant=presented_tenant(metadata.items()))
        begin(exchange)
        note_request_id(metadata.get("x-request-id") or "-")
        handler: Any = await continuation(handler_call_details)
        if handler is None:
            exchange.end(UNMATCHED, grpc.StatusCode.UNIMPLEMENTED.name, "unknown_method")
            return None
        if handler.request_streaming or not path.startswith(OURS):
            return handler
        end_with_call(exchange)
        read = MessageReader(exchange, handler.request_deserializer, self._max_message_bytes)
        return handler._replace(request_deserializer=read)


def end_with_call(exchange: Exchange) -> None:
    """End the exchange with the call's task, if the client has left before its message was read."""
    task = asyncio.current_task()
    if task is not None:
        task.add_done_callback(lambda _: exchange.end(exchange.path, grpc.StatusCode.CANCELLED.name, CLIENT_LEFT))


class MessageReader:
    """Reads a call's message. A fault of it is kept for the call itself, which answers it like any other."""

    def __init__(self, exchange: Exchange, deserialize: Any, max_bytes: int) -> None:
        self._exchange, self._deserialize, self._max_bytes = exchange, deserialize, max_bytes

    def __call__(self, message: bytes) -> Any:
        if len(message) > self._max_bytes:
            self._exchange.refusal = MessageTooLongError(
                f"the message has {len(message)} bytes: send {self._max_bytes} at most, or raise limits.max_body_bytes"
            )
            return self._deserialize(b"")
        try:
            return self._deserialize(message)
        except Exception:  # protobuf's own, whose package has no types
            self._exchange.refusal = RequestError("the message isn't a valid protobuf message of this method's type")
            return self._deserialize(b"")
