"""The cache service as workers, routers and the edge see it: asyncio, deadlines, fail-over, a watch that heals."""

from __future__ import annotations

import uuid
from collections import deque
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

from cache_service.client.connection import Connection
from cache_service.client.watch import WatchStream
from cache_service.core.types import (
    FIRST_EPOCH,
    Build,
    CommitId,
    Context,
    ContextId,
    DepthLimit,
    Edit,
    Epoch,
    Event,
    Lease,
    Placement,
    PrefixKey,
    ReplicaId,
    Revision,
    Snapshot,
    Version,
)
from cache_service.rpc import convert
from protos import cache_v1_pb2 as pb


@dataclass(frozen=True)
class ContextPage:
    """Contexts without their tokens, and the token of the next page where there is one."""

    contexts: tuple[Context, ...]
    next_page_token: str | None


class CacheClient:
    """Connections to the instances of one service: HOST:PORT, or several with commas between.

    Unary calls try the instances in turn. They raise CacheServiceUnavailable where none answers within `timeout_s`,
    and else what the service refused: see `cache_service.errors`. Who gets Unavailable goes on without the service;
    the call may or may not have been carried out, and every call but `leave` and `release` can be repeated.
    """

    def __init__(self, target: str, *, timeout_s: float = 1.0) -> None:
        self._connection = Connection(target, timeout_s)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """End all calls and watches."""
        await self._connection.close()

    async def register(self, replica: ReplicaId, ttl_s: float) -> Lease:
        """Become a member for `ttl_s` seconds at a time. An older lease of `replica` ends, with its placements."""
        request = pb.RegisterRequest(replica=replica, ttl_s=ttl_s)
        response = await self._connection.call("members", "Register", request)
        return convert.lease_from_pb(response.lease)

    async def keep_alive(self, lease: Lease) -> Lease:
        """Put the lease's deadline off by its TTL. Raises LeaseRefused once it has ended: register again."""
        request = pb.KeepAliveRequest(lease=convert.lease_to_pb(lease))
        response = await self._connection.call("members", "KeepAlive", request)
        return convert.lease_from_pb(response.lease)

    async def drain(self, lease: Lease) -> Revision:
        """Take no new work from now on; what the member holds stays listed."""
        request = pb.DrainRequest(lease=convert.lease_to_pb(lease))
        return _revision(await self._connection.call("members", "Drain", request))

    async def leave(self, lease: Lease) -> Revision:
        """Stop being a member; all its placements are withdrawn and its builds released."""
        request = pb.LeaveRequest(lease=convert.lease_to_pb(lease))
        return _revision(await self._connection.call("members", "Leave", request))

    async def announce(self, lease: Lease, placements: Sequence[Placement]) -> Revision:
        """State that the member holds these entries; all or none. Raises StaleEpoch for one of an old epoch."""
        placed = map(convert.placement_to_pb, placements)
        request = pb.AnnounceRequest(lease=convert.lease_to_pb(lease), placements=placed)
        return _revision(await self._connection.call("directory", "Announce", request))

    async def withdraw(self, lease: Lease, keys: Sequence[PrefixKey]) -> Revision:
        """State that the member no longer holds these entries. Keys that it never held are passed over."""
        request = pb.WithdrawRequest(lease=convert.lease_to_pb(lease), keys=keys)
        return _revision(await self._connection.call("directory", "Withdraw", request))

    async def lookup(
        self, keys: Sequence[PrefixKey], *, max_staleness: int = 0
    ) -> dict[PrefixKey, tuple[Placement, ...]]:
        """Who holds which of `keys` now; keys that nobody holds are absent.

        An entry of a context is among them only where it is at most `max_staleness` epochs behind the newest.
        """
        request = pb.LookupRequest(keys=keys, max_staleness=max_staleness)
        response = await self._connection.call("directory", "Lookup", request)
        found: dict[PrefixKey, tuple[Placement, ...]] = {}
        for placement in map(convert.placement_from_pb, response.placements):
            found[placement.key] = (*found.get(placement.key, ()), placement)
        return found

    async def depth_limits(self, keys: Sequence[PrefixKey]) -> tuple[DepthLimit, ...]:
        """How deep `keys` may be reused, where drift was reported."""
        response = await self._connection.call("directory", "Lookup", pb.LookupRequest(keys=keys))
        return tuple(map(convert.limit_from_pb, response.limits))

    async def hottest(self, count: int) -> tuple[Placement, ...]:
        """The `count` prefixes that served most, hottest first, each with its hottest holder."""
        response = await self._connection.call("directory", "Hottest", pb.HottestRequest(count=count))
        return tuple(map(convert.placement_from_pb, response.placements))

    async def acquire(
        self,
        lease: Lease,
        key: PrefixKey,
        ttl_s: float,
        *,
        epoch: Epoch = FIRST_EPOCH,
        context: ContextId | None = None,
    ) -> Build:
        """The build of (key, epoch) that is under way: the caller's own, if its `replica` is the caller's.

        It ends `ttl_s` seconds after this or the last `extend`. Raises StaleEpoch where the context has moved on.
        """
        request = pb.AcquireRequest(
            lease=convert.lease_to_pb(lease), key=key, epoch=epoch, context=context, ttl_s=ttl_s
        )
        response = await self._connection.call("refresh", "Acquire", request)
        return convert.build_from_pb(response.build)

    async def extend(self, lease: Lease, build: Build) -> None:
        """Put the end of the build off by its TTL. Raises FencedToken once it has ended."""
        request = pb.ExtendRequest(lease=convert.lease_to_pb(lease), build=convert.build_to_pb(build))
        await self._connection.call("refresh", "Extend", request)

    async def complete(self, lease: Lease, build: Build, placement: Placement) -> Revision:
        """Announce what was built. Raises FencedToken once the build has ended or was granted anew."""
        request = pb.CompleteRequest(
            lease=convert.lease_to_pb(lease), token=build.token, placement=convert.placement_to_pb(placement)
        )
        return _revision(await self._connection.call("refresh", "Complete", request))

    async def release(self, lease: Lease, build: Build) -> Revision:
        """Give the build up. Raises FencedToken once it has ended."""
        request = pb.ReleaseRequest(lease=convert.lease_to_pb(lease), build=convert.build_to_pb(build))
        return _revision(await self._connection.call("refresh", "Release", request))

    async def report_drift(self, lease: Lease, limits: Sequence[DepthLimit]) -> Revision:
        """Lower how deep prefixes may be reused, for all; a limit that is not lower changes nothing."""
        request = pb.ReportDriftRequest(lease=convert.lease_to_pb(lease), limits=map(convert.limit_to_pb, limits))
        return _revision(await self._connection.call("refresh", "ReportDrift", request))

    async def create_context(
        self,
        fingerprint: str,
        salt: str,
        token_ids: Sequence[int],
        *,
        masked: Sequence[int] = (),
        author: ReplicaId,
        commit: CommitId | None = None,
    ) -> Context:
        """A new context at epoch 0 with holes at the positions `masked`. The same `commit` makes only one."""
        request = pb.CreateContextRequest(
            fingerprint=fingerprint,
            salt=salt,
            token_ids=token_ids,
            masked=masked,
            commit_id=commit or uuid.uuid4().hex,
            author=author,
        )
        response = await self._connection.call("contexts", "Create", request)
        return convert.context_from_pb(response.context)

    async def get_context(self, context: ContextId, *, known: Context | None = None) -> Context:
        """The newest epoch. Where `known` is that, it is given back, and no content travels. Raises UnknownContext."""
        request = pb.GetContextRequest(id=context, known_commit_id=known.version.commit if known else "")
        newest = (await self._connection.call("contexts", "Get", request)).context
        if known is not None and newest.version.commit_id == known.version.commit:
            return known
        return convert.context_from_pb(newest)

    async def list_contexts(self, salt: str, *, page_size: int = 100, page_token: str | None = None) -> ContextPage:
        """One tenant's contexts in order of creation, without their tokens."""
        request = pb.ListContextsRequest(salt=salt, page_size=page_size, page_token=page_token or "")
        response = await self._connection.call("contexts", "List", request)
        contexts = tuple(map(convert.context_from_pb, response.contexts))
        return ContextPage(contexts, response.next_page_token or None)

    async def commit(
        self,
        context: ContextId,
        expected_epoch: Epoch,
        edits: Sequence[Edit],
        *,
        author: ReplicaId,
        commit: CommitId | None = None,
    ) -> Version:
        """Make epoch `expected_epoch` + 1. Raises StaleEpoch where another commit was faster: read, then try again.

        The same `commit` id is accepted only once, so a commit whose answer was lost can be sent again with it.
        """
        request = pb.CommitRequest(
            context=context,
            expected_epoch=expected_epoch,
            edits=map(convert.edit_to_pb, edits),
            commit_id=commit or uuid.uuid4().hex,
            author=author,
        )
        response = await self._connection.call("contexts", "Commit", request)
        return convert.version_from_pb(response.version)

    async def delete_context(self, context: ContextId, *, author: ReplicaId) -> Revision:
        """Raises UnknownContext."""
        request = pb.DeleteContextRequest(id=context, author=author)
        return _revision(await self._connection.call("contexts", "Delete", request))

    async def watch(self) -> AsyncGenerator[Snapshot | Event, None]:
        """A snapshot, then every later event once and in order. Never ends by itself.

        A broken connection is made again, with jittered back-off, and the watch goes on where it stopped. Where
        events would be missing (a gap, compacted history, a service that lost its memory) a new Snapshot comes,
        which replaces all that was known. Close the iterator (`aclose`, or cancel its task) to stop.
        """
        stream = WatchStream(self._connection)
        try:
            while True:
                items = deque(await stream.read())
                while items:  # handed over, not kept: a snapshot is large
                    yield items.popleft()
        finally:
            stream.cancel()


def _revision(response: Any) -> Revision:
    return Revision(response.header.revision)
