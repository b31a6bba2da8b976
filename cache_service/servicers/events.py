"""`palimpsest.cache.v1.Events`."""
# ruff: noqa: N802 (method names are the protocol's)

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

from grpc.aio import ServicerContext

from cache_service import convert
from cache_service.errors import Compacted
from cache_service.service import CacheService
from cache_service.types import Revision
from protos import cache_v1_pb2 as pb

EVENT_BATCH = 1024
PROGRESS_S = 5.0
"""An idle watcher hears of the revision this often."""


class EventsServicer:
    def __init__(self, service: CacheService) -> None:
        self._service = service

    async def Watch(self, request: pb.WatchRequest, _: ServicerContext) -> AsyncIterator[pb.WatchResponse]:
        store = self._service.store
        incarnation = store.incarnation
        if request.HasField("after_revision"):
            cursor = Revision(request.after_revision)
            if request.incarnation != incarnation:
                raise Compacted(f"revision {cursor} is of incarnation {request.incarnation!r}, this is {incarnation!r}")
        else:
            await store.sync()
            snapshot = store.state.snapshot()
            for part in convert.snapshot_to_pb(snapshot, incarnation):
                yield part
            cursor = snapshot.revision
        while True:
            if store.incarnation != incarnation:
                raise Compacted(f"incarnation {incarnation!r} has ended")
            events = store.feed.read(cursor, EVENT_BATCH)
            response = pb.WatchResponse(header=convert.header_to_pb(store))
            if events:
                cursor = events[-1].revision
                response.events.events.extend(map(convert.event_to_pb, events))
            yield response
            try:
                await asyncio.wait_for(store.feed.wait(cursor), PROGRESS_S)
            except TimeoutError:
                continue
