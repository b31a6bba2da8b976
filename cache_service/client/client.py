"""Call the service from workers, routers and ingress: with deadlines, fail-over, and a watch that resumes."""

from __future__ import annotations

import uuid
from collections import deque
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

from cache_service.client.connection import Connection
from cache_service.client.contact import WatchContact
from cache_service.client.watch import WatchStream
from cache_service.core.contexts import apply_edits
from cache_service.core.events import Event
from cache_service.core.types import (
    FIRST_EPOCH,
    SOLE_TENANT,
    Build,
    Context,
    ContextId,
    DepthLimit,
    DepthTable,
    Edit,
    EditId,
    Epoch,
    Lease,
    Lifetime,
    Placement,
    PrefixKey,
    ReplicaId,
    Revision,
    Snapshot,
    TenantId,
    Version,
)
from cache_service.rpc import convert
from protos import cache_v1_pb2 as pb


@dataclass(frozen=True)
class ContextPage:
    """Holds contexts without their tokens, and the token of the next page if another follows."""

    contexts: tuple[Context, ...]
    next_page_token: str | None


class CacheClient:
    """Calls the instances of one service, given as HOST:PORT, separated by commas.

    Unary calls try the instances in turn. They raise CacheServiceUnavailable if no instance answers within
    `timeout_s`, and otherwise the service's refusals: see `cache_service.errors`. After CacheServiceUnavailable the
    call may or may not have been carried out; every call but `leave` and `release` can be repeated.
    """

    def __init__(self, target: str, *, timeout_s: float = 1.0, contact: WatchContact | None = None) -> None:
        """`contact` records what watches hear; by default it is the client's own."""
        self._connection = Connection(target, timeout_s)
        self.contact = contact or WatchContact()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """End all calls and watches."""
        await self._connection.close()

    async def register(self, replica: ReplicaId, ttl_s: float, *, depth_table: DepthTable | None = None) -> Lease:
        """Become a member for `ttl_s` seconds; `keep_alive` extends this. A lease of an earlier registration ends.

        A member without `depth_table` can't report drift.
        """
        table = convert.depth_table_to_pb(depth_table)
        request = pb.RegisterRequest(replica=replica, ttl_s=ttl_s, depth_table=table)
        response = await self._connection.call("members", "Register", request)
        return convert.lease_from_pb(response.lease)

    async def keep_alive(self, lease: Lease) -> Lease:
        """Extend the lease by its TTL from now. Raises LeaseRefused once it has ended: register again."""
        request = pb.KeepAliveRequest(lease=convert.lease_to_pb(lease))
        response = await self._connection.call("members", "KeepAlive", request)
        return convert.lease_from_pb(response.lease)

    async def drain(self, lease: Lease) -> Revision:
        """Mark the member as draining: it gets no new work, but its entries stay listed."""
        request = pb.DrainRequest(lease=convert.lease_to_pb(lease))
        return _revision(await self._connection.call("members", "Drain", request))

    async def leave(self, lease: Lease) -> Revision:
        """Stop being a member; all its placements are withdrawn and its builds released."""
        request = pb.LeaveRequest(lease=convert.lease_to_pb(lease))
        return _revision(await self._connection.call("members", "Leave", request))

    async def announce(self, lease: Lease, placements: Sequence[Placement]) -> Revision:
        """Announce atomically that the member holds these entries. Raises StaleEpoch if one has an old epoch."""
        messages = map(convert.placement_to_pb, placements)
        request = pb.AnnounceRequest(lease=convert.lease_to_pb(lease), placements=messages)
        return _revision(await self._connection.call("directory", "Announce", request))

    async def withdraw(self, lease: Lease, keys: Sequence[PrefixKey]) -> Revision:
        """Withdraw the member's entries under `keys`; unknown keys are ignored."""
        request = pb.WithdrawRequest(lease=convert.lease_to_pb(lease), keys=keys)
        return _revision(await self._connection.call("directory", "Withdraw", request))

    async def lookup(
        self, keys: Sequence[PrefixKey], *, max_staleness: int = 0
    ) -> dict[PrefixKey, tuple[Placement, ...]]:
        """Return the placements of each of `keys`; keys without holders are absent.

        An entry of a context is included only if it is at most `max_staleness` epochs behind the newest.
        """
        request = pb.LookupRequest(keys=keys, max_staleness=max_staleness)
        response = await self._connection.call("directory", "Lookup", request)
        found: dict[PrefixKey, tuple[Placement, ...]] = {}
        for placement in map(convert.placement_from_pb, response.placements):
            found[placement.key] = (*found.get(placement.key, ()), placement)
        return found

    async def depth_limits(self, keys: Sequence[PrefixKey]) -> tuple[DepthLimit, ...]:
        """Return the depth limits of those `keys` for which drift was reported."""
        response = await self._connection.call("directory", "Lookup", pb.LookupRequest(keys=keys))
        return tuple(map(convert.limit_from_pb, response.limits))

    async def hottest(self, count: int) -> tuple[Placement, ...]:
        """Return the `count` prefixes that served most requests, hottest first, each with its hottest holder."""
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
        """Ask for the build of (key, epoch), and return the build in progress, which may be another replica's.

        It ends `ttl_s` seconds after this call or the last `extend`. Raises StaleEpoch for an old epoch.
        """
        request = pb.AcquireRequest(
            lease=convert.lease_to_pb(lease), key=key, epoch=epoch, context=context, ttl_s=ttl_s
        )
        response = await self._connection.call("refresh", "Acquire", request)
        return convert.build_from_pb(response.build)

    async def extend(self, lease: Lease, build: Build) -> None:
        """Extend the build's lease by its TTL from now. Raises FencedToken once it has ended."""
        request = pb.ExtendRequest(lease=convert.lease_to_pb(lease), build=convert.build_to_pb(build))
        await self._connection.call("refresh", "Extend", request)

    async def complete(self, lease: Lease, build: Build, placement: Placement) -> Revision:
        """End the build and announce its entry. Raises FencedToken once the build has ended or was granted again."""
        request = pb.CompleteRequest(
            lease=convert.lease_to_pb(lease), token=build.token, placement=convert.placement_to_pb(placement)
        )
        return _revision(await self._connection.call("refresh", "Complete", request))

    async def release(self, lease: Lease, build: Build) -> Revision:
        """Give the build up. Raises FencedToken once it has ended."""
        request = pb.ReleaseRequest(lease=convert.lease_to_pb(lease), build=convert.build_to_pb(build))
        return _revision(await self._connection.call("refresh", "Release", request))

    async def report_drift(self, lease: Lease, limits: Sequence[DepthLimit]) -> Revision:
        """Limit the depth to which members may reuse prefixes; limits that aren't lower are ignored.

        Raises InvalidRequest for limits that the member can't have found: see `State.report_drift`.
        """
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
        edit_id: EditId | None = None,
        tenant: TenantId = SOLE_TENANT,
        ttl_s: float | None = None,
    ) -> Context:
        """Create a context at epoch 0 with holes at the positions `masked`. The same `edit_id` creates only one.

        The context is deleted `ttl_s` seconds after its creation or last edit; None takes the service's default. Raises
        TenantQuotaExceeded, TotalQuotaExceeded.
        """
        request = pb.CreateContextRequest(
            fingerprint=fingerprint,
            salt=salt,
            token_ids=token_ids,
            masked=masked,
            commit_id=edit_id or uuid.uuid4().hex,
            author=author,
            tenant=tenant,
            ttl_s=ttl_s,
        )
        response = await self._connection.call("contexts", "Create", request)
        return convert.context_from_pb(response.context)

    async def get_context(self, context: ContextId, *, known: Context | None = None) -> Context:
        """Return the newest epoch; no content is transferred if `known` is that epoch. Raises UnknownContext."""
        request = pb.GetContextRequest(id=context, known_commit_id=known.version.edit_id if known else "")
        newest = (await self._connection.call("contexts", "Get", request)).context
        if known is not None and newest.version.commit_id == known.version.edit_id:
            return known
        return convert.context_from_pb(newest)

    async def list_contexts(self, salt: str, *, page_size: int = 100, page_token: str | None = None) -> ContextPage:
        """Return one tenant's contexts in order of creation, without their tokens."""
        request = pb.ListContextsRequest(salt=salt, page_size=page_size, page_token=page_token or "")
        response = await self._connection.call("contexts", "List", request)
        contexts = tuple(map(convert.context_from_pb, response.contexts))
        return ContextPage(contexts, response.next_page_token or None)

    async def edit_context(
        self,
        context: ContextId,
        expected_epoch: Epoch,
        edits: Sequence[Edit],
        *,
        author: ReplicaId,
        edit_id: EditId | None = None,
    ) -> Version:
        """Create epoch `expected_epoch` + 1. Raises StaleEpoch if another edit was faster: read, then try again.

        Raises TenantQuotaExceeded or TotalQuotaExceeded if the edits add tokens beyond a quota.
        The same `edit_id` is accepted only once, so an edit whose answer was lost can be sent again with it.
        """
        version, _ = await self._commit(context, expected_epoch, edits, author, edit_id, None)
        return version

    async def edit_known_context(
        self,
        context: Context,
        edits: Sequence[Edit],
        *,
        author: ReplicaId,
        edit_id: EditId | None = None,
        ttl_s: float | None = None,
    ) -> Context:
        """Edit as `edit_context` does, and return the context as this edit left it.

        The time to live begins again, and is `ttl_s` from now on if that is given.
        """
        version, lifetime = await self._commit(context.id, context.epoch, edits, author, edit_id, ttl_s)
        return apply_edits(context, version, edits, lifetime)

    async def _commit(
        self,
        context: ContextId,
        expected_epoch: Epoch,
        edits: Sequence[Edit],
        author: ReplicaId,
        edit_id: EditId | None,
        ttl_s: float | None,
    ) -> tuple[Version, Lifetime | None]:
        request = pb.CommitRequest(
            context=context,
            expected_epoch=expected_epoch,
            edits=map(convert.edit_to_pb, edits),
            commit_id=edit_id or uuid.uuid4().hex,
            author=author,
            ttl_s=ttl_s,
        )
        response = await self._connection.call("contexts", "Commit", request)
        return convert.version_from_pb(response.version), convert.lifetime_from_pb(response)

    async def renew_context(
        self, context: ContextId, *, author: ReplicaId, ttl_s: float | None = None
    ) -> Lifetime | None:
        """Begin the time to live again, with `ttl_s` if that is given, and return it. The epoch stays.

        Raises UnknownContext.
        """
        request = pb.RenewContextRequest(id=context, ttl_s=ttl_s, author=author)
        return convert.lifetime_from_pb(await self._connection.call("contexts", "Renew", request))

    async def delete_context(self, context: ContextId, *, author: ReplicaId) -> Revision:
        """Delete the context. Raises UnknownContext."""
        request = pb.DeleteContextRequest(id=context, author=author)
        return _revision(await self._connection.call("contexts", "Delete", request))

    async def watch(self, *, with_content: bool = True) -> AsyncGenerator[Snapshot | Event, None]:
        """Yield a snapshot, then every later event once and in order, without end.

        A broken connection is restored, with jittered back-off, and the watch continues where it stopped. If
        events would be missing (a gap, compacted history, a service that lost its memory) a new Snapshot follows,
        which replaces all that was known. Close the iterator (`aclose`, or cancel its task) to stop.

        Without content, contexts come without tokens and holes; edits come whole.
        """
        stream = WatchStream(self._connection, self.contact, with_content=with_content)
        try:
            while True:
                items = deque(await stream.read())
                while items:  # dropped one by one: a snapshot is large
                    yield items.popleft()
        finally:
            stream.cancel()


def _revision(response: Any) -> Revision:
    return Revision(response.header.revision)
