"""`palimpsest.cache.v1.Events`."""
# ruff: noqa: N802 (method names are the protocol's)

from __future__ import annotations

from collections.abc import AsyncIterator

from grpc.aio import ServicerContext

from cache_service import convert
from cache_service.errors import Compacted
from cache_service.servicers.base import Servicer
from cache_service.types import Revision
from protos import cache_v1_pb2 as pb


class EventsServicer(Servicer):
    async def Watch(self, request: pb.WatchRequest, _: ServicerContext) -> AsyncIterator[pb.WatchResponse]:
        after = Revision(request.after_revision) if request.HasField("after_revision") else None
        try:
            async for update in self.service.watch(after, request.incarnation):
                yield convert.update_to_pb(update)
        except Compacted:
            self.service.metrics.resyncs.inc()
            raise
