"""Serve `palimpsest.cache.v1.Members`."""
# ruff: noqa: N802 (method names are the protocol's)

from __future__ import annotations

import logging

from grpc.aio import ServicerContext

from cache_service.core.events import Joined
from cache_service.core.types import ReplicaId
from cache_service.rpc import convert
from cache_service.rpc.servicers.base import Servicer
from protos import cache_v1_pb2 as pb

_log = logging.getLogger(__name__)


class MembersServicer(Servicer):
    """Serves the calls by which a replica begins, keeps and ends its membership."""

    async def Register(self, request: pb.RegisterRequest, _: ServicerContext) -> pb.RegisterResponse:
        replica = ReplicaId(request.replica)
        table = convert.depth_table_from_pb(request)
        events = await self.append(lambda state, at: state.register(replica, request.ttl_s, at, table))
        lease = next(event.lease for event in events if isinstance(event, Joined))
        _log.info("replica %s joined under lease %d of %g s", replica, lease.id, lease.ttl_s)
        return pb.RegisterResponse(header=self.header(), lease=convert.lease_to_pb(lease))

    async def KeepAlive(self, request: pb.KeepAliveRequest, _: ServicerContext) -> pb.KeepAliveResponse:
        lease = await self.service.keep_alive(convert.lease_from_pb(request.lease))
        return pb.KeepAliveResponse(header=self.header(), lease=convert.lease_to_pb(lease))

    async def Drain(self, request: pb.DrainRequest, _: ServicerContext) -> pb.DrainResponse:
        lease = convert.lease_from_pb(request.lease)
        await self.append(lambda state, at: state.directory.drain(lease, at))
        _log.info("replica %s takes no new work", lease.replica)
        return pb.DrainResponse(header=self.header())

    async def Leave(self, request: pb.LeaveRequest, _: ServicerContext) -> pb.LeaveResponse:
        lease = convert.lease_from_pb(request.lease)
        await self.append(lambda state, at: state.leave(lease, at))
        _log.info("replica %s left", lease.replica)
        return pb.LeaveResponse(header=self.header())
