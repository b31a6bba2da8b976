"""Define the base class of the servicers."""

from __future__ import annotations

from cache_service.core.events import Event
from cache_service.core.state import State
from cache_service.rpc.service import CacheService
from cache_service.store.base import Decision
from protos import cache_v1_pb2 as pb


class Servicer:
    """Holds the service, and no state of its own."""

    def __init__(self, service: CacheService) -> None:
        self.service = service

    def header(self) -> pb.Header:
        """Return the answer's header, with the revision from which the answer was made, or a later one."""
        store = self.service.store
        return pb.Header(incarnation=store.incarnation, revision=store.state.revision)

    async def append(self, decide: Decision) -> tuple[Event, ...]:
        return await self.service.append(decide)

    async def state(self) -> State:
        """Return the state with all events that were appended before this call."""
        await self.service.store.sync()
        return self.service.store.state
