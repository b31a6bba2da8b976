"""Convert between protocol messages and the service's types. Nothing is decided here."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, assert_never, get_args

from cache_service.core.cursor import Part, Update
from cache_service.core.events import (
    Announced,
    Built,
    Created,
    Deleted,
    Draining,
    Edited,
    Event,
    Granted,
    Joined,
    Left,
    Limited,
    Released,
    Renewed,
    Withdrawn,
)
from cache_service.core.types import (
    Build,
    Context,
    ContextId,
    DepthLimit,
    DepthTable,
    Edit,
    EditId,
    Epoch,
    FencingToken,
    Lease,
    LeaseId,
    Lifetime,
    Placement,
    PrefixKey,
    ReplicaId,
    Revision,
    Snapshot,
    TenantId,
    Version,
)
from protos import cache_v1_pb2 as pb

_KINDS = {event: pb.EventKind.Value(f"EVENT_KIND_{event.kind.upper()}") for event in get_args(Event)}


def lease_to_pb(lease: Lease) -> pb.Lease:
    table = depth_table_to_pb(lease.depth_table)
    return pb.Lease(id=lease.id, replica=lease.replica, ttl_s=lease.ttl_s, depth_table=table)


def lease_from_pb(message: pb.Lease) -> Lease:
    return Lease(LeaseId(message.id), ReplicaId(message.replica), message.ttl_s, depth_table_from_pb(message))


def depth_table_to_pb(table: DepthTable | None) -> pb.DepthTable | None:
    return pb.DepthTable(profile=table.version, layers=table.num_layers) if table else None


def depth_table_from_pb(message: pb.Lease | pb.RegisterRequest) -> DepthTable | None:
    table = message.depth_table
    return DepthTable(table.profile, table.layers) if message.HasField("depth_table") else None


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
    return pb.Version(epoch=version.epoch, key=version.key, commit_id=version.edit_id)


def version_from_pb(message: pb.Version) -> Version:
    return Version(Epoch(message.epoch), PrefixKey(message.key), EditId(message.commit_id))


def lifetime_to_pb(lifetime: Lifetime | None) -> pb.Lifetime | None:
    return pb.Lifetime(ttl_s=lifetime.ttl_s, expires_at=lifetime.expires_at) if lifetime else None


def lifetime_from_pb(
    message: pb.Context | pb.Commit | pb.CommitResponse | pb.RenewContextResponse,
) -> Lifetime | None:
    """Return the lifetime that a message holds."""
    if not message.HasField("lifetime"):
        return None
    return Lifetime(message.lifetime.ttl_s, message.lifetime.expires_at)


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
        tenant=context.tenant,
        lifetime=lifetime_to_pb(context.lifetime),
    )


def context_from_pb(message: pb.Context) -> Context:
    return Context(
        id=ContextId(message.id),
        fingerprint=message.fingerprint,
        salt=message.salt,
        token_ids=tuple(message.token_ids),
        masked=tuple(message.masked),
        created=Revision(message.created_revision),
        origin=EditId(message.origin_commit_id),
        version=version_from_pb(message.version),
        past=tuple(map(version_from_pb, message.past)),
        tenant=TenantId(message.tenant),
        lifetime=lifetime_from_pb(message),
    )


def edit_to_pb(edit: Edit) -> pb.Edit:
    return pb.Edit(start=edit.start, end=edit.end, token_ids=edit.token_ids, masked=edit.masked)


def edit_from_pb(message: pb.Edit) -> Edit:
    return Edit(message.start, message.end, tuple(message.token_ids), message.masked)


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
    return pb.DepthLimit(key=limit.key, bucket=limit.bucket, depth=limit.depth, profile=limit.depth_table_version)


def limit_from_pb(message: pb.DepthLimit) -> DepthLimit:
    return DepthLimit(PrefixKey(message.key), message.bucket, message.depth, message.profile)


def event_to_pb(event: Event) -> pb.Event:
    return pb.Event(revision=event.revision, kind=_KINDS[type(event)], **_fields_to_pb(event))


def _fields_to_pb(event: Event) -> dict[str, Any]:
    fields: dict[str, Any]
    match event:
        case Joined(lease=lease):
            fields = {"replica": lease.replica, "lease": lease_to_pb(lease)}
        case Left(replica=replica) | Draining(replica=replica):
            fields = {"replica": replica}
        case Announced(placement=placement) | Withdrawn(placement=placement):
            fields = {"replica": placement.replica, "placement": placement_to_pb(placement)}
        case Created(author=author, context=context):
            fields = {"replica": author, "context": context_to_pb(context)}
        case Edited(author=author, context_id=context_id, version=version, edits=edits, lifetime=lifetime):
            commit = pb.Commit(
                context=context_id,
                version=version_to_pb(version),
                edits=map(edit_to_pb, edits),
                lifetime=lifetime_to_pb(lifetime),
            )
            fields = {"replica": author, "commit": commit}
        case Renewed(author=author, context_id=context_id, lifetime=lifetime):
            renewal = pb.Renewal(context=context_id, lifetime=lifetime_to_pb(lifetime))
            fields = {"replica": author, "renewal": renewal}
        case Deleted(author=author, context_id=context_id):
            fields = {"replica": author, "context_id": context_id}
        case Granted(build=build) | Built(build=build) | Released(build=build):
            fields = {"replica": build.replica, "build": build_to_pb(build)}
        case Limited(replica=replica, limit=limit):
            fields = {"replica": replica, "limit": limit_to_pb(limit)}
        case _:
            assert_never(event)
    return fields


def _edited_from_pb(revision: Revision, message: pb.Event) -> Edited:
    commit = message.commit
    version, edits = version_from_pb(commit.version), tuple(map(edit_from_pb, commit.edits))
    lifetime = lifetime_from_pb(commit)
    return Edited(revision, ReplicaId(message.replica), ContextId(commit.context), version, edits, lifetime)


def _renewed_from_pb(revision: Revision, message: pb.Event) -> Renewed:
    lifetime = message.renewal.lifetime
    context_id = ContextId(message.renewal.context)
    return Renewed(revision, ReplicaId(message.replica), context_id, Lifetime(lifetime.ttl_s, lifetime.expires_at))


_EVENTS_FROM_PB: dict[int, Callable[[Revision, pb.Event], Event]] = {
    pb.EVENT_KIND_JOINED: lambda at, message: Joined(at, lease_from_pb(message.lease)),
    pb.EVENT_KIND_LEFT: lambda at, message: Left(at, ReplicaId(message.replica)),
    pb.EVENT_KIND_DRAINING: lambda at, message: Draining(at, ReplicaId(message.replica)),
    pb.EVENT_KIND_ANNOUNCED: lambda at, message: Announced(at, placement_from_pb(message.placement)),
    pb.EVENT_KIND_WITHDRAWN: lambda at, message: Withdrawn(at, placement_from_pb(message.placement)),
    pb.EVENT_KIND_CREATED: lambda at, message: Created(
        at, ReplicaId(message.replica), context_from_pb(message.context)
    ),
    pb.EVENT_KIND_COMMITTED: _edited_from_pb,
    pb.EVENT_KIND_RENEWED: _renewed_from_pb,
    pb.EVENT_KIND_DELETED: lambda at, message: Deleted(at, ReplicaId(message.replica), ContextId(message.context_id)),
    pb.EVENT_KIND_GRANTED: lambda at, message: Granted(at, build_from_pb(message.build)),
    pb.EVENT_KIND_BUILT: lambda at, message: Built(at, build_from_pb(message.build)),
    pb.EVENT_KIND_RELEASED: lambda at, message: Released(at, build_from_pb(message.build)),
    pb.EVENT_KIND_LIMITED: lambda at, message: Limited(at, ReplicaId(message.replica), limit_from_pb(message.limit)),
}


def event_from_pb(message: pb.Event) -> Event:
    """Return the event. Raises ValueError for a kind that this version does not know."""
    decode = _EVENTS_FROM_PB.get(message.kind)
    if decode is None:
        raise ValueError(f"event {message.revision} is of unknown kind {message.kind}: update this side")
    return decode(Revision(message.revision), message)


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


def drop_content(message: pb.WatchResponse) -> None:
    """Remove tokens and holes of the contexts in `message`; edits stay."""
    created = (event.context for event in message.events.events if event.kind == pb.EVENT_KIND_CREATED)
    for context in (*message.snapshot.contexts, *created):
        del context.token_ids[:]
        del context.masked[:]


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
