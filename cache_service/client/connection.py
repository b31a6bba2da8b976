"""Keep channels to the instances of the service, and choose the one to call."""

from __future__ import annotations

import asyncio
from typing import Any

import grpc

from cache_service.errors import CacheServiceUnavailable
from cache_service.rpc.status import error_of
from protos import cache_v1_pb2_grpc as pb_grpc

OPTIONS = (
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 2_000),  # an attempt to connect may take this long, so it must not be short
    ("grpc.max_reconnect_backoff_ms", 2_000),
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.keepalive_timeout_ms", 5_000),
    ("grpc.max_receive_message_length", 64 * 1024 * 1024),
)


class Instance:
    """Holds the channel and the stubs of one instance."""

    def __init__(self, target: str) -> None:
        self.target = target
        self._channel = grpc.aio.insecure_channel(target, options=OPTIONS)
        self.members: Any = pb_grpc.MembersStub(self._channel)  # type: ignore[no-untyped-call]
        self.directory: Any = pb_grpc.DirectoryStub(self._channel)  # type: ignore[no-untyped-call]
        self.contexts: Any = pb_grpc.ContextsStub(self._channel)  # type: ignore[no-untyped-call]
        self.refresh: Any = pb_grpc.RefreshStub(self._channel)  # type: ignore[no-untyped-call]
        self.events: Any = pb_grpc.EventsStub(self._channel)  # type: ignore[no-untyped-call]

    async def close(self) -> None:
        await self._channel.close()


class Connection:
    """Connects to all instances of one service. It opens at its first use, in the event loop of that call."""

    def __init__(self, targets: str, timeout_s: float) -> None:
        """`targets` is HOST:PORT, or several with commas between; they serve one store."""
        self._targets = [target.strip() for target in targets.split(",") if target.strip()]
        if not self._targets:
            raise ValueError("the cache service's target must be HOST:PORT, or several with commas between")
        self._timeout_s = timeout_s
        self._instances: list[Instance] = []
        self._current = 0

    @property
    def current(self) -> Instance:
        """Return the instance that answered last."""
        if not self._instances:
            self._instances = [Instance(target) for target in self._targets]
        return self._instances[self._current]

    def fail_over(self, failed: Instance) -> None:
        """Switch to the next instance, unless another caller has already switched away from `failed`."""
        if self.current is failed:
            self._current = (self._current + 1) % len(self._instances)

    async def call(self, service: str, method: str, request: Any) -> Any:
        """Call the instances in turn until one answers or refuses, all within the timeout."""
        deadline = asyncio.get_running_loop().time() + self._timeout_s
        for attempts_left in range(len(self._targets), 0, -1):
            instance = self.current
            remaining_s = max(0.0, deadline - asyncio.get_running_loop().time())
            try:
                return await getattr(getattr(instance, service), method)(request, timeout=remaining_s / attempts_left)
            except grpc.aio.AioRpcError as failure:
                error = error_of(failure)
                if not isinstance(error, CacheServiceUnavailable):
                    raise error from failure
                self.fail_over(instance)
                unavailable = error
        raise unavailable

    async def close(self) -> None:
        """End all calls and streams."""
        for instance in self._instances:
            await instance.close()
