"""A watcher's place in the log: which response may come next, and what to ask for after a break. Pure."""

from __future__ import annotations

from cache_service import convert
from cache_service.errors import Compacted
from cache_service.types import Event, Revision, Snapshot
from protos import cache_v1_pb2 as pb


class Cursor:
    """Turns responses into one snapshot and then every later event once and in order, over many streams."""

    def __init__(self) -> None:
        self._incarnation = ""
        self._revision: Revision | None = None
        self._parts: list[pb.SnapshotPart] = []

    def request(self) -> pb.WatchRequest:
        """Where a new stream has to begin. Parts of a snapshot that broke off are dropped."""
        self._parts.clear()
        return pb.WatchRequest(after_revision=self._revision, incarnation=self._incarnation)

    def reset(self) -> None:
        """Begin with a snapshot the next time."""
        self._revision = None
        self._parts.clear()

    def take(self, response: pb.WatchResponse) -> list[Snapshot | Event]:
        """What `response` adds. Raises Compacted on a gap: `reset`, and ask anew."""
        if response.HasField("snapshot"):
            return list(self._take_part(response.header, response.snapshot))
        if self._revision is None or response.header.incarnation != self._incarnation:
            raise Compacted(f"events of incarnation {response.header.incarnation!r} came without their snapshot")
        taken: list[Snapshot | Event] = []
        for message in response.events.events:
            event = convert.event_from_pb(message)
            if event.revision > self._revision + 1:
                raise Compacted(f"event {event.revision} came after revision {self._revision}: some are missing")
            if event.revision == self._revision + 1:
                taken.append(event)
                self._revision = event.revision
        if not response.HasField("events") and response.header.revision != self._revision:
            raise Compacted(f"the service is idle at {response.header.revision}, this view at {self._revision}")
        return taken

    def _take_part(self, header: pb.Header, part: pb.SnapshotPart) -> tuple[Snapshot, ...]:
        self._parts.append(part)
        if not part.last:
            return ()
        snapshot = convert.snapshot_from_pb(header, self._parts)
        self._parts.clear()
        self._incarnation, self._revision = header.incarnation, snapshot.revision
        return (snapshot,)
