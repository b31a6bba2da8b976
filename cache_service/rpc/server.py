"""Run one instance: the gRPC server with its services, health, reflection, metrics and tick."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Callable
from contextlib import AsyncExitStack
from types import TracebackType
from typing import Any, Self

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection
from prometheus_client import start_http_server

from cache_service.background import BackgroundTasks
from cache_service.config import ServerConfig, address_of
from cache_service.errors import CacheServiceError, CacheServiceUnavailable, InvalidRequest
from cache_service.rpc.interceptor import CallInterceptor
from cache_service.rpc.service import CacheService
from cache_service.rpc.servicers import events
from cache_service.rpc.servicers.base import Servicer
from cache_service.rpc.servicers.contexts import ContextsServicer
from cache_service.rpc.servicers.directory import DirectoryServicer
from cache_service.rpc.servicers.members import MembersServicer
from cache_service.rpc.servicers.refresh import RefreshServicer
from cache_service.store.base import Store
from protos import cache_v1_pb2 as pb
from protos import cache_v1_pb2_grpc as pb_grpc

_log = logging.getLogger(__name__)

SERVICES = tuple(service.full_name for service in pb.DESCRIPTOR.services_by_name.values())
OPTIONS = (
    ("grpc.so_reuseport", 0),  # a second instance on the same port is a mistake, so it must fail
    ("grpc.keepalive_time_ms", 10_000),  # so that a half-open connection of a watcher is noticed
    ("grpc.keepalive_timeout_ms", 5_000),
    ("grpc.http2.min_recv_ping_interval_without_data_ms", 5_000),
)
_SERVICERS: tuple[tuple[Callable[[Any, grpc.aio.Server], None], type[Servicer]], ...] = (
    (pb_grpc.add_MembersServicer_to_server, MembersServicer),
    (pb_grpc.add_DirectoryServicer_to_server, DirectoryServicer),
    (pb_grpc.add_ContextsServicer_to_server, ContextsServicer),
    (pb_grpc.add_RefreshServicer_to_server, RefreshServicer),
    (events.add_to_server, events.EventsServicer),
)


class CacheServer:
    """Serves `store` while its context is open, then closes it.

    Its background tasks begin again after every failure. If one has ended for good, or the thread that serves metrics
    has, the instance reports NOT_SERVING until it is restarted, and logs the reason.
    """

    def __init__(self, config: ServerConfig, store: Store, *, wall_clock: Callable[[], float] = time.time) -> None:
        """Serve `store`; contexts with a time to live end by `wall_clock`, which returns Unix time in seconds."""
        self._config = config
        self.service = CacheService(store, config.contexts, wall_clock)
        self._health = health.aio.HealthServicer()
        self._status = health_pb2.HealthCheckResponse.UNKNOWN
        self._metrics_thread: threading.Thread | None = None
        self.tasks = BackgroundTasks(self._count_failure, self._on_task_end)
        self._stack = AsyncExitStack()
        self.port = config.port

    async def __aenter__(self) -> Self:
        async with AsyncExitStack() as stack:
            stack.push_async_callback(self.service.store.close)
            self._record_loop_errors(stack)
            server = self._build()
            await server.start()
            stack.push_async_callback(self._stop, server)
            await self._tick()
            stack.push_async_callback(self.tasks.close)
            self.tasks.start("the search for lapsed leases", self._tick_forever)
            if self._config.metrics_port is not None:
                self._serve_metrics(stack, self._config.metrics_port)
            self._stack = stack.pop_all()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._stack.aclose()

    def _build(self) -> grpc.aio.Server:
        server = grpc.aio.server(interceptors=[CallInterceptor(self.service.metrics)], options=OPTIONS)
        for add, servicer in _SERVICERS:
            add(servicer(self.service), server)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, server)
        reflection.enable_server_reflection((*SERVICES, health.SERVICE_NAME, reflection.SERVICE_NAME), server)
        address = address_of(self._config.host, self._config.port)
        try:
            self.port = server.add_insecure_port(address)
        except RuntimeError as error:
            raise InvalidRequest(f"can't listen on {address}: choose another --host or --port") from error
        return server

    def _serve_metrics(self, stack: AsyncExitStack, port: int) -> None:
        """Serve metrics until `stack` closes."""
        try:
            metrics, thread = start_http_server(port, self._config.host, self.service.metrics.registry)
            self._metrics_thread = thread
        except OSError as error:
            raise InvalidRequest(f"can't serve metrics: choose another --host or --metrics-port: {error}") from error
        stack.callback(thread.join)
        stack.callback(metrics.server_close)
        stack.callback(metrics.shutdown)

    async def _stop(self, server: grpc.aio.Server) -> None:
        """Refuse new calls, end the watches, and give calls in progress time to finish."""
        await self._health.enter_graceful_shutdown()
        self.service.store.feed.close()
        await server.stop(self._config.grace_s)

    def _record_loop_errors(self, stack: AsyncExitStack) -> None:
        """Count, until `stack` closes, the exceptions of tasks that nothing waits for, as redis-py begins some."""
        loop = asyncio.get_running_loop()
        before = loop.get_exception_handler()

        def record(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
            if "exception" in context:
                self._count_failure("another task of the event loop")
            loop.default_exception_handler(context)

        loop.set_exception_handler(record)
        stack.callback(loop.set_exception_handler, before)

    def _count_failure(self, task: str) -> None:
        self.service.metrics.task_failures.labels(task).inc()

    def _on_task_end(self) -> None:
        """Update the health at once, since the task that has ended may be the one that updates it periodically."""
        self._last_tick = asyncio.get_running_loop().create_task(self._tick())

    async def _tick_forever(self) -> None:
        while True:
            await asyncio.sleep(self._config.tick_s)
            await self._tick()

    async def _tick(self) -> None:
        """End lapsed leases; the instance is healthy while the store answers and all its tasks run."""
        try:
            await self.service.tick()
            self._require_tasks()
            status = health_pb2.HealthCheckResponse.SERVING
        except Exception as error:  # the next tick may succeed, whatever failed
            status = health_pb2.HealthCheckResponse.NOT_SERVING
            is_unexpected = not isinstance(error, CacheServiceError)
            if is_unexpected:
                self._count_failure("the search for lapsed leases")
            if self._status != status:
                _log.warning("not serving: %s", error, exc_info=is_unexpected)
        if self._status != status:
            for name in ("", *SERVICES):
                await self._health.set(name, status)
            self._status = status

    def _require_tasks(self) -> None:
        """Raise CacheServiceUnavailable if a task or a thread has ended that should run."""
        self.tasks.check()
        if self._metrics_thread is not None and not self._metrics_thread.is_alive():
            raise CacheServiceUnavailable("the thread that serves metrics has ended: restart this instance")
