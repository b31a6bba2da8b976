"""Fakes of what Ray Serve passes to our code: replicas, pending requests, results and handles. None starts Ray."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

from prometheus_client import REGISTRY
from ray.serve.config import DeploymentID
from ray.serve.request_router import ReplicaID

from cluster.router import PrefixAffinityRouter

DEPLOYMENT = "DiffusionWorker"


@dataclass(frozen=True)
class RunningReplica:
    """Is a replica as the request router meets it."""

    replica_id: ReplicaID

    @classmethod
    def named(cls, name: str) -> RunningReplica:
        return cls(ReplicaID(name, DeploymentID(name=DEPLOYMENT)))


@dataclass
class PendingRequest:
    """Is a call that waits for a replica."""

    args: list[Any]
    routing_context: SimpleNamespace = field(default_factory=lambda: SimpleNamespace(should_backoff=False))


@dataclass
class Result:
    """Is the result of a call that a replica has accepted."""

    callbacks: list[Callable[[object], object]] = field(default_factory=list)

    def add_done_callback(self, callback: Callable[[object], object]) -> None:
        self.callbacks.append(callback)

    async def complete(self) -> None:
        """Report the end from another thread, as Ray does, and let the loop work on it."""
        for callback in self.callbacks:
            await asyncio.to_thread(callback, self)
        await asyncio.sleep(0)


@contextmanager
def affinity_router(**changes: object) -> Iterator[PrefixAffinityRouter]:
    """Make a router without Serve's part of its construction; a replica's calls for copies go through such a one."""
    router = PrefixAffinityRouter.__new__(PrefixAffinityRouter)
    router._replica_queue_len_cache = {}
    options: dict[str, Any] = {
        "deployment": DEPLOYMENT,
        "cache_service": "127.0.0.1:1",
        "uncached": 1.0,
        "queued": 1.0,
        "request_timeout_s": 60.0,
        "cut_share": 0.5,
    }
    router.initialize_state(**options | changes)
    try:
        yield router
    finally:
        REGISTRY.unregister(router._collector)


@dataclass
class Stream:
    """Is the response of a streaming call: it yields `replies`, then raises what is `raised`, hangs or ends."""

    replies: Sequence[object]
    raised: BaseException | None = None
    hangs: bool = False
    is_cancelled: bool = False

    async def __aiter__(self) -> AsyncIterator[object]:
        for reply in self.replies:
            yield reply
        if self.raised:
            raise self.raised
        if self.hangs:
            await asyncio.Event().wait()

    def cancel(self) -> None:
        self.is_cancelled = True


@dataclass
class Response:
    """Is the response of a call with one answer, and one replica's part of a call to all of them."""

    answer: Callable[[], Awaitable[object]]
    is_cancelled: bool = False

    def __await__(self) -> Generator[Any, None, object]:
        return self.get_async().__await__()

    async def get_async(self) -> object:
        return await self.answer()

    def cancel(self) -> None:
        self.is_cancelled = True


def answering(value: object) -> Response:
    """Return a response that gives `value`, or raises it where it is an exception."""

    async def answer() -> object:
        if isinstance(value, BaseException):
            raise value
        return value

    return Response(answer)


def hanging() -> Response:
    """Return a response that is never given."""
    return Response(asyncio.Event().wait)


@dataclass
class Method:
    """Is one method of a handle: it returns the next of `responses` and keeps the arguments."""

    responses: list[Any]
    calls: list[Any] = field(default_factory=list)

    def remote(self, request: object) -> Any:
        self.calls.append(request)
        return self.responses.pop(0)


@dataclass
class Handle:
    """Is a deployment handle: its streams, its copies and its broadcasts are what the test puts there."""

    streams: Method = field(default_factory=lambda: Method([]))
    send_packed_copy: Method = field(default_factory=lambda: Method([]))
    broadcasts: list[Callable[[], Awaitable[list[Response]]]] = field(default_factory=list)
    options_given: dict[str, Any] = field(default_factory=dict)
    methods_called: list[str] = field(default_factory=list)

    def options(self, **options: Any) -> Method:
        self.options_given = options
        return self.streams

    def broadcast(self, method: str) -> SimpleNamespace:
        self.methods_called.append(method)
        return SimpleNamespace(_fetch_replica_results_async=self.broadcasts.pop(0))

    def answer_all(self, *responses: Response) -> None:
        """Let the next broadcast reach replicas that respond so."""

        async def fetch() -> list[Response]:
            return list(responses)

        self.broadcasts.append(fetch)
