"""Serve `palimpsest.cache.v1.Events`."""
# ruff: noqa: N802 (method names are the protocol's)

from __future__ import annotations

from collections.abc import AsyncIterator

import grpc
from grpc.aio import ServicerContext

from cache_service.core.cursor import Update
from cache_service.core.types import Revision
from cache_service.errors import Compacted
from cache_service.rpc import convert
from cache_service.rpc.service import CacheService
from cache_service.rpc.servicers.base import Servicer
from protos import cache_v1_pb2 as pb

_NAME = pb.DESCRIPTOR.services_by_name["Events"].full_name


class EventsServicer(Servicer):
    """Serves watches. It yields messages as bytes, so a message for many watchers is encoded once."""

    def __init__(self, service: CacheService) -> None:
        super().__init__(service)
        self._last: tuple[Update, bytes] | None = None

    async def Watch(self, request: pb.WatchRequest, _: ServicerContext) -> AsyncIterator[bytes]:
        after = Revision(request.after_revision) if request.HasField("after_revision") else None
        try:
            async for update in self.service.watch(after, request.incarnation):
                yield self._encoded(update)
        except Compacted:
            self.service.metrics.resyncs.inc()
            raise

    def _encoded(self, update: Update) -> bytes:
        if self._last is None or self._last[0] is not update:
            self._last = update, convert.update_to_pb(update).SerializeToString()
        return self._last[1]


def add_to_server(servicer: EventsServicer, server: grpc.aio.Server) -> None:
    """Add the servicer as the generated function does, except that messages are already encoded."""
    watch = grpc.unary_stream_rpc_method_handler(servicer.Watch, request_deserializer=pb.WatchRequest.FromString)
    server.add_registered_method_handlers(_NAME, {"Watch": watch})
