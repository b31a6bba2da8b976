"""Protocol messages to the service's types and back. Nothing is decided here."""

from __future__ import annotations

from collections.abc import Iterator

from cache_service.store.base import Store
from cache_service.types import (
    Epoch,
    Event,
    EventKind,
    Lease,
    LeaseId,
    Placement,
    PrefixKey,
    ReplicaId,
    Revision,
    Snapshot,
)
from protos import cache_v1_pb2 as pb

SNAPSHOT_PART = 4096
"""Placements in one part of a snapshot: about 400 KB, well under gRPC's message limit of 4 MB."""

_KIND_TO_PB = {
    EventKind.JOINED: pb.EVENT_KIND_JOINED,
    EventKind.LEFT: pb.EVENT_KIND_LEFT,
    EventKind.ANNOUNCED: pb.EVENT_KIND_ANNOUNCED,
    EventKind.WITHDRAWN: pb.EVENT_KIND_WITHDRAWN,
}
_KIND_FROM_PB = {number: kind for kind, number in _KIND_TO_PB.items()}


def header_to_pb(store: Store) -> pb.Header:
    return pb.Header(incarnation=store.incarnation, revision=store.state.revision)


def lease_to_pb(lease: Lease) -> pb.Lease:
    return pb.Lease(id=lease.id, replica=lease.replica, ttl_s=lease.ttl_s)


def lease_from_pb(message: pb.Lease) -> Lease:
    return Lease(LeaseId(message.id), ReplicaId(message.replica), message.ttl_s)


def placement_to_pb(placement: Placement) -> pb.Placement:
    return pb.Placement(
        key=placement.key,
        replica=placement.replica,
        num_tokens=placement.num_tokens,
        safe_depth=placement.safe_depth,
        size_bytes=placement.size_bytes,
        epoch=placement.epoch,
    )


def placement_from_pb(message: pb.Placement) -> Placement:
    return Placement(
        key=PrefixKey(message.key),
        replica=ReplicaId(message.replica),
        num_tokens=message.num_tokens,
        safe_depth=message.safe_depth,
        size_bytes=message.size_bytes,
        epoch=Epoch(message.epoch),
    )


def event_to_pb(event: Event) -> pb.Event:
    return pb.Event(
        revision=event.revision,
        kind=_KIND_TO_PB[event.kind],
        replica=event.replica,
        placement=None if event.placement is None else placement_to_pb(event.placement),
        lease=None if event.lease is None else lease_to_pb(event.lease),
    )


def event_from_pb(message: pb.Event) -> Event:
    """Raises ValueError for a kind that this version does not know."""
    kind = _KIND_FROM_PB.get(message.kind)
    if kind is None:
        raise ValueError(f"event {message.revision} is of unknown kind {message.kind}: update this side")
    return Event(
        revision=Revision(message.revision),
        kind=kind,
        replica=ReplicaId(message.replica),
        placement=placement_from_pb(message.placement) if message.HasField("placement") else None,
        lease=lease_from_pb(message.lease) if message.HasField("lease") else None,
    )


def snapshot_to_pb(snapshot: Snapshot, incarnation: str) -> Iterator[pb.WatchResponse]:
    """The parts of `snapshot` in sending order; there is at least one."""
    header = pb.Header(incarnation=incarnation, revision=snapshot.revision)
    for start in range(0, len(snapshot.placements) or 1, SNAPSHOT_PART):
        part = pb.SnapshotPart(
            members=snapshot.members if start == 0 else (),
            placements=map(placement_to_pb, snapshot.placements[start : start + SNAPSHOT_PART]),
            last=start + SNAPSHOT_PART >= len(snapshot.placements),
        )
        yield pb.WatchResponse(header=header, snapshot=part)


def snapshot_from_pb(header: pb.Header, parts: list[pb.SnapshotPart]) -> Snapshot:
    return Snapshot(
        revision=Revision(header.revision),
        members=tuple(ReplicaId(member) for part in parts for member in part.members),
        placements=tuple(placement_from_pb(message) for part in parts for message in part.placements),
    )
