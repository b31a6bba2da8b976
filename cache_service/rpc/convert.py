"""Protocol messages to the service's types and back. Nothing is decided here."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from cache_service.core.cursor import Part, Update
from cache_service.core.types import (
    Build,
    Commit,
    CommitId,
    Context,
    ContextId,
    DepthLimit,
    Edit,
    Epoch,
    Event,
    EventKind,
    FencingToken,
    Lease,
    LeaseId,
    Placement,
    PrefixKey,
    ReplicaId,
    Revision,
    Snapshot,
    Version,
)
from protos import cache_v1_pb2 as pb

_Value = TypeVar("_Value")
_Message = TypeVar("_Message")
_KIND_TO_PB = {kind: pb.EventKind.Value(f"EVENT_KIND_{kind.name}") for kind in EventKind}
_KIND_FROM_PB = {number: kind for kind, number in _KIND_TO_PB.items()}


def lease_to_pb(lease: Lease) -> pb.Lease:
    return pb.Lease(id=lease.id, replica=lease.replica, ttl_s=lease.ttl_s)


def lease_from_pb(message: pb.Lease) -> Lease:
    return Lease(LeaseId(message.id), ReplicaId(message.replica), message.ttl_s)


def context_id_from_pb(message: pb.Placement | pb.Build | pb.AcquireRequest) -> ContextId | None:
    return ContextId(message.context) if message.HasField("context") else None


def placement_to_pb(placement: Placement) -> pb.Placement:
    return pb.Placement(
        key=placement.key,
        replica=placement.replica,
        num_tokens=placement.num_tokens,
        safe_depth=placement.safe_depth,
        size_bytes=placement.size_bytes,
        epoch=placement.epoch,
        context=placement.context,
        heat=placement.heat,
        token=placement.token,
    )


def placement_from_pb(message: pb.Placement) -> Placement:
    return Placement(
        key=PrefixKey(message.key),
        replica=ReplicaId(message.replica),
        num_tokens=message.num_tokens,
        safe_depth=message.safe_depth,
        size_bytes=message.size_bytes,
        epoch=Epoch(message.epoch),
        context=context_id_from_pb(message),
        heat=message.heat,
        token=FencingToken(message.token) if message.HasField("token") else None,
    )


def version_to_pb(version: Version) -> pb.Version:
    return pb.Version(epoch=version.epoch, key=version.key, commit_id=version.commit)


def version_from_pb(message: pb.Version) -> Version:
    return Version(Epoch(message.epoch), PrefixKey(message.key), CommitId(message.commit_id))


def context_to_pb(context: Context) -> pb.Context:
    return pb.Context(
        id=context.id,
        fingerprint=context.fingerprint,
        salt=context.salt,
        token_ids=context.token_ids,
        masked=context.masked,
        created_revision=context.created,
        origin_commit_id=context.origin,
        version=version_to_pb(context.version),
        past=map(version_to_pb, context.past),
    )


def context_from_pb(message: pb.Context) -> Context:
    return Context(
        id=ContextId(message.id),
        fingerprint=message.fingerprint,
        salt=message.salt,
        token_ids=tuple(message.token_ids),
        masked=tuple(message.masked),
        created=Revision(message.created_revision),
        origin=CommitId(message.origin_commit_id),
        version=version_from_pb(message.version),
        past=tuple(map(version_from_pb, message.past)),
    )


def edit_to_pb(edit: Edit) -> pb.Edit:
    return pb.Edit(start=edit.start, end=edit.end, token_ids=edit.token_ids, masked=edit.masked)


def edit_from_pb(message: pb.Edit) -> Edit:
    return Edit(message.start, message.end, tuple(message.token_ids), message.masked)


def commit_to_pb(commit: Commit) -> pb.Commit:
    return pb.Commit(context=commit.context, version=version_to_pb(commit.version), edits=map(edit_to_pb, commit.edits))


def commit_from_pb(message: pb.Commit) -> Commit:
    return Commit(ContextId(message.context), version_from_pb(message.version), tuple(map(edit_from_pb, message.edits)))


def build_to_pb(build: Build) -> pb.Build:
    return pb.Build(
        key=build.key,
        epoch=build.epoch,
        replica=build.replica,
        token=build.token,
        ttl_s=build.ttl_s,
        context=build.context,
    )


def build_from_pb(message: pb.Build) -> Build:
    return Build(
        key=PrefixKey(message.key),
        epoch=Epoch(message.epoch),
        replica=ReplicaId(message.replica),
        token=FencingToken(message.token),
        ttl_s=message.ttl_s,
        context=context_id_from_pb(message),
    )


def limit_to_pb(limit: DepthLimit) -> pb.DepthLimit:
    return pb.DepthLimit(key=limit.key, bucket=limit.bucket, depth=limit.depth, profile=limit.profile)


def limit_from_pb(message: pb.DepthLimit) -> DepthLimit:
    return DepthLimit(PrefixKey(message.key), message.bucket, message.depth, message.profile)


def _known(convert: Callable[[_Value], _Message], value: _Value | None) -> _Message | None:
    return None if value is None else convert(value)


def event_to_pb(event: Event) -> pb.Event:
    return pb.Event(
        revision=event.revision,
        kind=_KIND_TO_PB[event.kind],
        replica=event.replica,
        placement=_known(placement_to_pb, event.placement),
        lease=_known(lease_to_pb, event.lease),
        context=_known(context_to_pb, event.context),
        commit=_known(commit_to_pb, event.commit),
        context_id=event.context_id,
        build=_known(build_to_pb, event.build),
        limit=_known(limit_to_pb, event.limit),
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
        context=context_from_pb(message.context) if message.HasField("context") else None,
        commit=commit_from_pb(message.commit) if message.HasField("commit") else None,
        context_id=ContextId(message.context_id) if message.HasField("context_id") else None,
        build=build_from_pb(message.build) if message.HasField("build") else None,
        limit=limit_from_pb(message.limit) if message.HasField("limit") else None,
    )


def update_to_pb(update: Update) -> pb.WatchResponse:
    header = pb.Header(incarnation=update.incarnation, revision=update.revision)
    if update.part is not None:
        return pb.WatchResponse(header=header, snapshot=_part_to_pb(update.part))
    if update.events:
        return pb.WatchResponse(header=header, events=pb.EventBatch(events=map(event_to_pb, update.events)))
    return pb.WatchResponse(header=header)


def update_from_pb(message: pb.WatchResponse) -> Update:
    revision = Revision(message.header.revision)
    return Update(
        incarnation=message.header.incarnation,
        revision=revision,
        part=_part_from_pb(message.snapshot, revision) if message.HasField("snapshot") else None,
        events=tuple(map(event_from_pb, message.events.events)),
    )


def _part_to_pb(part: Part) -> pb.SnapshotPart:
    return pb.SnapshotPart(
        members=part.snapshot.members,
        placements=map(placement_to_pb, part.snapshot.placements),
        draining=part.snapshot.draining,
        contexts=map(context_to_pb, part.snapshot.contexts),
        builds=map(build_to_pb, part.snapshot.builds),
        limits=map(limit_to_pb, part.snapshot.limits),
        last=part.last,
    )


def _part_from_pb(message: pb.SnapshotPart, revision: Revision) -> Part:
    snapshot = Snapshot(
        revision=revision,
        members=tuple(map(ReplicaId, message.members)),
        placements=tuple(map(placement_from_pb, message.placements)),
        draining=tuple(map(ReplicaId, message.draining)),
        contexts=tuple(map(context_from_pb, message.contexts)),
        builds=tuple(map(build_from_pb, message.builds)),
        limits=tuple(map(limit_from_pb, message.limits)),
    )
    return Part(snapshot, message.last)
