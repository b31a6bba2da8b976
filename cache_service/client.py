"""The cache service as workers and routers see it: asyncio, with deadlines, and a watch that heals itself."""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator, Awaitable, Sequence
from functools import cached_property
from types import TracebackType
from typing import Any, Self, TypeVar

import grpc
from tenacity import AsyncRetrying, RetryCallState, retry_if_exception_type, wait_random_exponential

from cache_service import convert
from cache_service.cursor import Cursor
from cache_service.errors import CacheServiceError, CacheServiceUnavailable, Compacted
from cache_service.status import error_of
from cache_service.types import Event, Lease, Placement, PrefixKey, ReplicaId, Revision, Snapshot
from protos import cache_v1_pb2 as pb
from protos import cache_v1_pb2_grpc as pb_grpc

_log = logging.getLogger(__name__)
_Response = TypeVar("_Response")

OPTIONS = (
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 2_000),
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.keepalive_timeout_ms", 5_000),
)
MAX_BACKOFF_S = 2.0


class CacheClient:
    """One connection to the service. Opens at the first call, in the event loop of that call.

    Unary calls raise CacheServiceUnavailable where no answer comes within `timeout_s`, and else what the service
    refused: see `cache_service.errors`. A caller that gets Unavailable goes on without the service.
    """

    def __init__(self, target: str, *, timeout_s: float = 1.0) -> None:
        self._target = target
        self._timeout_s = timeout_s

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """End all calls and watches."""
        await self._channel.close()

    @cached_property
    def _channel(self) -> grpc.aio.Channel:
        return grpc.aio.insecure_channel(self._target, options=OPTIONS)

    @cached_property
    def _members(self) -> Any:
        return pb_grpc.MembersStub(self._channel)  # type: ignore[no-untyped-call]

    @cached_property
    def _directory(self) -> Any:
        return pb_grpc.DirectoryStub(self._channel)  # type: ignore[no-untyped-call]

    @cached_property
    def _events(self) -> Any:
        return pb_grpc.EventsStub(self._channel)  # type: ignore[no-untyped-call]

    async def register(self, replica: ReplicaId, ttl_s: float) -> Lease:
        """Become a member for `ttl_s` seconds at a time. An older lease of `replica` ends, with its placements."""
        request = pb.RegisterRequest(replica=replica, ttl_s=ttl_s)
        response: pb.RegisterResponse = await _answer(self._members.Register(request, timeout=self._timeout_s))
        return convert.lease_from_pb(response.lease)

    async def keep_alive(self, lease: Lease) -> Lease:
        """Put the lease's deadline off by its TTL. Raises LeaseRefused once it has ended: register again."""
        request = pb.KeepAliveRequest(lease=convert.lease_to_pb(lease))
        response: pb.KeepAliveResponse = await _answer(self._members.KeepAlive(request, timeout=self._timeout_s))
        return convert.lease_from_pb(response.lease)

    async def leave(self, lease: Lease) -> Revision:
        """Stop being a member; all its placements are withdrawn."""
        request = pb.LeaveRequest(lease=convert.lease_to_pb(lease))
        response: pb.LeaveResponse = await _answer(self._members.Leave(request, timeout=self._timeout_s))
        return Revision(response.header.revision)

    async def announce(self, lease: Lease, placements: Sequence[Placement]) -> Revision:
        """State that the member holds these entries; all or none. Saying it again changes nothing."""
        request = pb.AnnounceRequest(
            lease=convert.lease_to_pb(lease), placements=map(convert.placement_to_pb, placements)
        )
        response: pb.AnnounceResponse = await _answer(self._directory.Announce(request, timeout=self._timeout_s))
        return Revision(response.header.revision)

    async def withdraw(self, lease: Lease, keys: Sequence[PrefixKey]) -> Revision:
        """State that the member no longer holds these entries. Keys that it never held are passed over."""
        request = pb.WithdrawRequest(lease=convert.lease_to_pb(lease), keys=keys)
        response: pb.WithdrawResponse = await _answer(self._directory.Withdraw(request, timeout=self._timeout_s))
        return Revision(response.header.revision)

    async def lookup(self, keys: Sequence[PrefixKey]) -> dict[PrefixKey, tuple[Placement, ...]]:
        """Who holds which of `keys`; keys that nobody holds are absent."""
        request = pb.LookupRequest(keys=keys)
        response: pb.LookupResponse = await _answer(self._directory.Lookup(request, timeout=self._timeout_s))
        found: dict[PrefixKey, tuple[Placement, ...]] = {}
        for placement in map(convert.placement_from_pb, response.placements):
            found[placement.key] = (*found.get(placement.key, ()), placement)
        return found

    async def watch(self) -> AsyncGenerator[Snapshot | Event, None]:
        """A snapshot, then every later event once and in order. Never ends by itself.

        A broken connection is made again, with jittered back-off, and the watch goes on where it stopped. Where
        events would be missing (a gap, compacted history, a service that lost its memory) a new Snapshot comes,
        which replaces all that was known. Close the iterator (`aclose`, or cancel its task) to stop.
        """
        stream = _WatchStream(self._events, self._target)
        try:
            while True:
                for item in await stream.read():
                    yield item
        finally:
            stream.cancel()


async def _answer(call: Awaitable[_Response]) -> _Response:
    try:
        return await call
    except grpc.aio.AioRpcError as failure:
        raise error_of(failure) from failure


class _WatchStream:
    """Reads one Watch call after the other, as if they were one."""

    def __init__(self, events: Any, target: str) -> None:
        self._events = events
        self._target = target
        self._cursor = Cursor()
        self._call: Any = None
        self._reading = AsyncRetrying(
            retry=retry_if_exception_type(CacheServiceError),
            wait=wait_random_exponential(multiplier=0.05, max=MAX_BACKOFF_S),
            before_sleep=self._log_first_failure,
        )

    async def read(self) -> list[Snapshot | Event]:
        """The next snapshot and events, however often that takes a new call."""
        return await self._reading(self._read_once)

    def cancel(self) -> None:
        if self._call is not None:
            self._call.cancel()
            self._call = None

    async def _read_once(self) -> list[Snapshot | Event]:
        try:
            if self._call is None:
                self._call = self._events.Watch(self._cursor.request())
            response = await _answer(self._call.read())
            if response is grpc.aio.EOF:
                raise CacheServiceUnavailable("the service ended the watch")
            return self._cursor.take(response)
        except Compacted:
            self._cursor.reset()
            self.cancel()
            raise
        except CacheServiceError:
            self.cancel()
            raise

    def _log_first_failure(self, state: RetryCallState) -> None:
        if state.attempt_number == 1 and state.outcome is not None:
            _log.warning("watch of %s is interrupted, trying on: %s", self._target, state.outcome.exception())
