"""Serve `palimpsest.cache.v1.Directory`."""
# ruff: noqa: N802 (method names are the protocol's)

from __future__ import annotations

from grpc.aio import ServicerContext

from cache_service.core.types import PrefixKey
from cache_service.rpc import convert
from cache_service.rpc.servicers.base import Servicer
from protos import cache_v1_pb2 as pb


class DirectoryServicer(Servicer):
    """Serves the calls that announce, withdraw and find entries."""

    async def Lookup(self, request: pb.LookupRequest, _: ServicerContext) -> pb.LookupResponse:
        state = await self.state()
        keys = [PrefixKey(key) for key in request.keys]
        found = state.lookup(keys, request.max_staleness)
        return pb.LookupResponse(
            header=self.header(),
            placements=[convert.placement_to_pb(p) for holders in found.values() for p in holders],
            limits=map(convert.limit_to_pb, state.depths.lookup(dict.fromkeys(keys))),
        )

    async def Announce(self, request: pb.AnnounceRequest, _: ServicerContext) -> pb.AnnounceResponse:
        lease = convert.lease_from_pb(request.lease)
        placements = [convert.placement_from_pb(message) for message in request.placements]
        await self.append(lambda state, at: state.announce(lease, placements, at))
        return pb.AnnounceResponse(header=self.header())

    async def Withdraw(self, request: pb.WithdrawRequest, _: ServicerContext) -> pb.WithdrawResponse:
        lease = convert.lease_from_pb(request.lease)
        keys = [PrefixKey(key) for key in request.keys]
        await self.append(lambda state, at: state.directory.withdraw(lease, keys, at))
        return pb.WithdrawResponse(header=self.header())

    async def Hottest(self, request: pb.HottestRequest, _: ServicerContext) -> pb.HottestResponse:
        state = await self.state()
        placements = state.hottest(request.count)
        return pb.HottestResponse(header=self.header(), placements=map(convert.placement_to_pb, placements))
