"""`palimpsest.cache.v1.Directory`."""
# ruff: noqa: N802 (method names are the protocol's)

from __future__ import annotations

from grpc.aio import ServicerContext

from cache_service import convert
from cache_service.service import CacheService
from cache_service.types import PrefixKey
from protos import cache_v1_pb2 as pb


class DirectoryServicer:
    def __init__(self, service: CacheService) -> None:
        self._service = service

    async def Lookup(self, request: pb.LookupRequest, _: ServicerContext) -> pb.LookupResponse:
        await self._service.store.sync()
        found = self._service.store.state.directory.lookup([PrefixKey(key) for key in request.keys])
        return pb.LookupResponse(
            header=convert.header_to_pb(self._service.store),
            placements=[convert.placement_to_pb(p) for holders in found.values() for p in holders],
        )

    async def Announce(self, request: pb.AnnounceRequest, _: ServicerContext) -> pb.AnnounceResponse:
        lease = convert.lease_from_pb(request.lease)
        placements = [convert.placement_from_pb(message) for message in request.placements]
        await self._service.commit(lambda state, at: state.directory.announce(lease, placements, at))
        return pb.AnnounceResponse(header=convert.header_to_pb(self._service.store))

    async def Withdraw(self, request: pb.WithdrawRequest, _: ServicerContext) -> pb.WithdrawResponse:
        lease = convert.lease_from_pb(request.lease)
        keys = [PrefixKey(key) for key in request.keys]
        await self._service.commit(lambda state, at: state.directory.withdraw(lease, keys, at))
        return pb.WithdrawResponse(header=convert.header_to_pb(self._service.store))
