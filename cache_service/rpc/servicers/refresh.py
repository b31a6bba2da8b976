"""Serve `palimpsest.cache.v1.Refresh`."""
# ruff: noqa: N802 (method names are the protocol's)

from __future__ import annotations

from grpc.aio import ServicerContext

from cache_service.core.types import Epoch, FencingToken, PrefixKey
from cache_service.rpc import convert
from cache_service.rpc.servicers.base import Servicer
from protos import cache_v1_pb2 as pb


class RefreshServicer(Servicer):
    """Serves the calls about builds, and the reports of drift."""

    async def Acquire(self, request: pb.AcquireRequest, _: ServicerContext) -> pb.AcquireResponse:
        lease = convert.lease_from_pb(request.lease)
        key, epoch = PrefixKey(request.key), Epoch(request.epoch)
        context = convert.context_id_from_pb(request)
        build = await self.service.acquire(lease, key, epoch, context, request.ttl_s)
        return pb.AcquireResponse(header=self.header(), build=convert.build_to_pb(build))

    async def Extend(self, request: pb.ExtendRequest, _: ServicerContext) -> pb.ExtendResponse:
        await self.service.extend(convert.lease_from_pb(request.lease), convert.build_from_pb(request.build))
        return pb.ExtendResponse(header=self.header())

    async def Complete(self, request: pb.CompleteRequest, _: ServicerContext) -> pb.CompleteResponse:
        lease, token = convert.lease_from_pb(request.lease), FencingToken(request.token)
        placement = convert.placement_from_pb(request.placement)
        await self.append(lambda state, at: state.complete(lease, token, placement, at))
        return pb.CompleteResponse(header=self.header())

    async def Release(self, request: pb.ReleaseRequest, _: ServicerContext) -> pb.ReleaseResponse:
        lease, build = convert.lease_from_pb(request.lease), convert.build_from_pb(request.build)
        await self.append(lambda state, at: state.release(lease, build.key, build.epoch, build.token, at))
        return pb.ReleaseResponse(header=self.header())

    async def ReportDrift(self, request: pb.ReportDriftRequest, _: ServicerContext) -> pb.ReportDriftResponse:
        lease = convert.lease_from_pb(request.lease)
        limits = [convert.limit_from_pb(message) for message in request.limits]
        await self.append(lambda state, at: state.report_drift(lease, limits, at))
        return pb.ReportDriftResponse(header=self.header())
