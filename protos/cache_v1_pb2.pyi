from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class EventKind(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    EVENT_KIND_UNSPECIFIED: _ClassVar[EventKind]
    EVENT_KIND_JOINED: _ClassVar[EventKind]
    EVENT_KIND_LEFT: _ClassVar[EventKind]
    EVENT_KIND_ANNOUNCED: _ClassVar[EventKind]
    EVENT_KIND_WITHDRAWN: _ClassVar[EventKind]
    EVENT_KIND_DRAINING: _ClassVar[EventKind]
    EVENT_KIND_CREATED: _ClassVar[EventKind]
    EVENT_KIND_COMMITTED: _ClassVar[EventKind]
    EVENT_KIND_DELETED: _ClassVar[EventKind]
    EVENT_KIND_GRANTED: _ClassVar[EventKind]
    EVENT_KIND_BUILT: _ClassVar[EventKind]
    EVENT_KIND_RELEASED: _ClassVar[EventKind]
    EVENT_KIND_LIMITED: _ClassVar[EventKind]
    EVENT_KIND_RENEWED: _ClassVar[EventKind]
EVENT_KIND_UNSPECIFIED: EventKind
EVENT_KIND_JOINED: EventKind
EVENT_KIND_LEFT: EventKind
EVENT_KIND_ANNOUNCED: EventKind
EVENT_KIND_WITHDRAWN: EventKind
EVENT_KIND_DRAINING: EventKind
EVENT_KIND_CREATED: EventKind
EVENT_KIND_COMMITTED: EventKind
EVENT_KIND_DELETED: EventKind
EVENT_KIND_GRANTED: EventKind
EVENT_KIND_BUILT: EventKind
EVENT_KIND_RELEASED: EventKind
EVENT_KIND_LIMITED: EventKind
EVENT_KIND_RENEWED: EventKind

class Header(_message.Message):
    __slots__ = ("incarnation", "revision")
    INCARNATION_FIELD_NUMBER: _ClassVar[int]
    REVISION_FIELD_NUMBER: _ClassVar[int]
    incarnation: str
    revision: int
    def __init__(self, incarnation: _Optional[str] = ..., revision: _Optional[int] = ...) -> None: ...

class Lease(_message.Message):
    __slots__ = ("id", "replica", "ttl_s", "depth_table")
    ID_FIELD_NUMBER: _ClassVar[int]
    REPLICA_FIELD_NUMBER: _ClassVar[int]
    TTL_S_FIELD_NUMBER: _ClassVar[int]
    DEPTH_TABLE_FIELD_NUMBER: _ClassVar[int]
    id: int
    replica: str
    ttl_s: float
    depth_table: DepthTable
    def __init__(self, id: _Optional[int] = ..., replica: _Optional[str] = ..., ttl_s: _Optional[float] = ..., depth_table: _Optional[_Union[DepthTable, _Mapping]] = ...) -> None: ...

class DepthTable(_message.Message):
    __slots__ = ("profile", "layers")
    PROFILE_FIELD_NUMBER: _ClassVar[int]
    LAYERS_FIELD_NUMBER: _ClassVar[int]
    profile: int
    layers: int
    def __init__(self, profile: _Optional[int] = ..., layers: _Optional[int] = ...) -> None: ...

class Placement(_message.Message):
    __slots__ = ("key", "replica", "num_tokens", "safe_depth", "size_bytes", "epoch", "context", "heat", "token")
    KEY_FIELD_NUMBER: _ClassVar[int]
    REPLICA_FIELD_NUMBER: _ClassVar[int]
    NUM_TOKENS_FIELD_NUMBER: _ClassVar[int]
    SAFE_DEPTH_FIELD_NUMBER: _ClassVar[int]
    SIZE_BYTES_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    CONTEXT_FIELD_NUMBER: _ClassVar[int]
    HEAT_FIELD_NUMBER: _ClassVar[int]
    TOKEN_FIELD_NUMBER: _ClassVar[int]
    key: bytes
    replica: str
    num_tokens: int
    safe_depth: int
    size_bytes: int
    epoch: int
    context: str
    heat: int
    token: int
    def __init__(self, key: _Optional[bytes] = ..., replica: _Optional[str] = ..., num_tokens: _Optional[int] = ..., safe_depth: _Optional[int] = ..., size_bytes: _Optional[int] = ..., epoch: _Optional[int] = ..., context: _Optional[str] = ..., heat: _Optional[int] = ..., token: _Optional[int] = ...) -> None: ...

class RegisterRequest(_message.Message):
    __slots__ = ("replica", "ttl_s", "depth_table")
    REPLICA_FIELD_NUMBER: _ClassVar[int]
    TTL_S_FIELD_NUMBER: _ClassVar[int]
    DEPTH_TABLE_FIELD_NUMBER: _ClassVar[int]
    replica: str
    ttl_s: float
    depth_table: DepthTable
    def __init__(self, replica: _Optional[str] = ..., ttl_s: _Optional[float] = ..., depth_table: _Optional[_Union[DepthTable, _Mapping]] = ...) -> None: ...

class RegisterResponse(_message.Message):
    __slots__ = ("header", "lease")
    HEADER_FIELD_NUMBER: _ClassVar[int]
    LEASE_FIELD_NUMBER: _ClassVar[int]
    header: Header
    lease: Lease
    def __init__(self, header: _Optional[_Union[Header, _Mapping]] = ..., lease: _Optional[_Union[Lease, _Mapping]] = ...) -> None: ...

class KeepAliveRequest(_message.Message):
    __slots__ = ("lease",)
    LEASE_FIELD_NUMBER: _ClassVar[int]
    lease: Lease
    def __init__(self, lease: _Optional[_Union[Lease, _Mapping]] = ...) -> None: ...

class KeepAliveResponse(_message.Message):
    __slots__ = ("header", "lease")
    HEADER_FIELD_NUMBER: _ClassVar[int]
    LEASE_FIELD_NUMBER: _ClassVar[int]
    header: Header
    lease: Lease
    def __init__(self, header: _Optional[_Union[Header, _Mapping]] = ..., lease: _Optional[_Union[Lease, _Mapping]] = ...) -> None: ...

class DrainRequest(_message.Message):
    __slots__ = ("lease",)
    LEASE_FIELD_NUMBER: _ClassVar[int]
    lease: Lease
    def __init__(self, lease: _Optional[_Union[Lease, _Mapping]] = ...) -> None: ...

class DrainResponse(_message.Message):
    __slots__ = ("header",)
    HEADER_FIELD_NUMBER: _ClassVar[int]
    header: Header
    def __init__(self, header: _Optional[_Union[Header, _Mapping]] = ...) -> None: ...

class LeaveRequest(_message.Message):
    __slots__ = ("lease",)
    LEASE_FIELD_NUMBER: _ClassVar[int]
    lease: Lease
    def __init__(self, lease: _Optional[_Union[Lease, _Mapping]] = ...) -> None: ...

class LeaveResponse(_message.Message):
    __slots__ = ("header",)
    HEADER_FIELD_NUMBER: _ClassVar[int]
    header: Header
    def __init__(self, header: _Optional[_Union[Header, _Mapping]] = ...) -> None: ...

class LookupRequest(_message.Message):
    __slots__ = ("keys", "max_staleness")
    KEYS_FIELD_NUMBER: _ClassVar[int]
    MAX_STALENESS_FIELD_NUMBER: _ClassVar[int]
    keys: _containers.RepeatedScalarFieldContainer[bytes]
    max_staleness: int
    def __init__(self, keys: _Optional[_Iterable[bytes]] = ..., max_staleness: _Optional[int] = ...) -> None: ...

class LookupResponse(_message.Message):
    __slots__ = ("header", "placements", "limits")
    HEADER_FIELD_NUMBER: _ClassVar[int]
    PLACEMENTS_FIELD_NUMBER: _ClassVar[int]
    LIMITS_FIELD_NUMBER: _ClassVar[int]
    header: Header
    placements: _containers.RepeatedCompositeFieldContainer[Placement]
    limits: _containers.RepeatedCompositeFieldContainer[DepthLimit]
    def __init__(self, header: _Optional[_Union[Header, _Mapping]] = ..., placements: _Optional[_Iterable[_Union[Placement, _Mapping]]] = ..., limits: _Optional[_Iterable[_Union[DepthLimit, _Mapping]]] = ...) -> None: ...

class HottestRequest(_message.Message):
    __slots__ = ("count",)
    COUNT_FIELD_NUMBER: _ClassVar[int]
    count: int
    def __init__(self, count: _Optional[int] = ...) -> None: ...

class HottestResponse(_message.Message):
    __slots__ = ("header", "placements")
    HEADER_FIELD_NUMBER: _ClassVar[int]
    PLACEMENTS_FIELD_NUMBER: _ClassVar[int]
    header: Header
    placements: _containers.RepeatedCompositeFieldContainer[Placement]
    def __init__(self, header: _Optional[_Union[Header, _Mapping]] = ..., placements: _Optional[_Iterable[_Union[Placement, _Mapping]]] = ...) -> None: ...

class AnnounceRequest(_message.Message):
    __slots__ = ("lease", "placements")
    LEASE_FIELD_NUMBER: _ClassVar[int]
    PLACEMENTS_FIELD_NUMBER: _ClassVar[int]
    lease: Lease
    placements: _containers.RepeatedCompositeFieldContainer[Placement]
    def __init__(self, lease: _Optional[_Union[Lease, _Mapping]] = ..., placements: _Optional[_Iterable[_Union[Placement, _Mapping]]] = ...) -> None: ...

class AnnounceResponse(_message.Message):
    __slots__ = ("header",)
    HEADER_FIELD_NUMBER: _ClassVar[int]
    header: Header
    def __init__(self, header: _Optional[_Union[Header, _Mapping]] = ...) -> None: ...

class WithdrawRequest(_message.Message):
    __slots__ = ("lease", "keys")
    LEASE_FIELD_NUMBER: _ClassVar[int]
    KEYS_FIELD_NUMBER: _ClassVar[int]
    lease: Lease
    keys: _containers.RepeatedScalarFieldContainer[bytes]
    def __init__(self, lease: _Optional[_Union[Lease, _Mapping]] = ..., keys: _Optional[_Iterable[bytes]] = ...) -> None: ...

class WithdrawResponse(_message.Message):
    __slots__ = ("header",)
    HEADER_FIELD_NUMBER: _ClassVar[int]
    header: Header
    def __init__(self, header: _Optional[_Union[Header, _Mapping]] = ...) -> None: ...

class Version(_message.Message):
    __slots__ = ("epoch", "key", "commit_id")
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    KEY_FIELD_NUMBER: _ClassVar[int]
    COMMIT_ID_FIELD_NUMBER: _ClassVar[int]
    epoch: int
    key: bytes
    commit_id: str
    def __init__(self, epoch: _Optional[int] = ..., key: _Optional[bytes] = ..., commit_id: _Optional[str] = ...) -> None: ...

class Context(_message.Message):
    __slots__ = ("id", "fingerprint", "salt", "token_ids", "masked", "created_revision", "origin_commit_id", "version", "past", "tenant", "lifetime")
    ID_FIELD_NUMBER: _ClassVar[int]
    FINGERPRINT_FIELD_NUMBER: _ClassVar[int]
    SALT_FIELD_NUMBER: _ClassVar[int]
    TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    MASKED_FIELD_NUMBER: _ClassVar[int]
    CREATED_REVISION_FIELD_NUMBER: _ClassVar[int]
    ORIGIN_COMMIT_ID_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    PAST_FIELD_NUMBER: _ClassVar[int]
    TENANT_FIELD_NUMBER: _ClassVar[int]
    LIFETIME_FIELD_NUMBER: _ClassVar[int]
    id: str
    fingerprint: str
    salt: str
    token_ids: _containers.RepeatedScalarFieldContainer[int]
    masked: _containers.RepeatedScalarFieldContainer[int]
    created_revision: int
    origin_commit_id: str
    version: Version
    past: _containers.RepeatedCompositeFieldContainer[Version]
    tenant: str
    lifetime: Lifetime
    def __init__(self, id: _Optional[str] = ..., fingerprint: _Optional[str] = ..., salt: _Optional[str] = ..., token_ids: _Optional[_Iterable[int]] = ..., masked: _Optional[_Iterable[int]] = ..., created_revision: _Optional[int] = ..., origin_commit_id: _Optional[str] = ..., version: _Optional[_Union[Version, _Mapping]] = ..., past: _Optional[_Iterable[_Union[Version, _Mapping]]] = ..., tenant: _Optional[str] = ..., lifetime: _Optional[_Union[Lifetime, _Mapping]] = ...) -> None: ...

class Lifetime(_message.Message):
    __slots__ = ("ttl_s", "expires_at")
    TTL_S_FIELD_NUMBER: _ClassVar[int]
    EXPIRES_AT_FIELD_NUMBER: _ClassVar[int]
    ttl_s: float
    expires_at: float
    def __init__(self, ttl_s: _Optional[float] = ..., expires_at: _Optional[float] = ...) -> None: ...

class Edit(_message.Message):
    __slots__ = ("start", "end", "token_ids", "masked")
    START_FIELD_NUMBER: _ClassVar[int]
    END_FIELD_NUMBER: _ClassVar[int]
    TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    MASKED_FIELD_NUMBER: _ClassVar[int]
    start: int
    end: int
    token_ids: _containers.RepeatedScalarFieldContainer[int]
    masked: bool
    def __init__(self, start: _Optional[int] = ..., end: _Optional[int] = ..., token_ids: _Optional[_Iterable[int]] = ..., masked: _Optional[bool] = ...) -> None: ...

class Commit(_message.Message):
    __slots__ = ("context", "version", "edits", "lifetime")
    CONTEXT_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    EDITS_FIELD_NUMBER: _ClassVar[int]
    LIFETIME_FIELD_NUMBER: _ClassVar[int]
    context: str
    version: Version
    edits: _containers.RepeatedCompositeFieldContainer[Edit]
    lifetime: Lifetime
    def __init__(self, context: _Optional[str] = ..., version: _Optional[_Union[Version, _Mapping]] = ..., edits: _Optional[_Iterable[_Union[Edit, _Mapping]]] = ..., lifetime: _Optional[_Union[Lifetime, _Mapping]] = ...) -> None: ...

class Renewal(_message.Message):
    __slots__ = ("context", "lifetime")
    CONTEXT_FIELD_NUMBER: _ClassVar[int]
    LIFETIME_FIELD_NUMBER: _ClassVar[int]
    context: str
    lifetime: Lifetime
    def __init__(self, context: _Optional[str] = ..., lifetime: _Optional[_Union[Lifetime, _Mapping]] = ...) -> None: ...

class CreateContextRequest(_message.Message):
    __slots__ = ("fingerprint", "salt", "token_ids", "masked", "commit_id", "author", "tenant", "ttl_s")
    FINGERPRINT_FIELD_NUMBER: _ClassVar[int]
    SALT_FIELD_NUMBER: _ClassVar[int]
    TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    MASKED_FIELD_NUMBER: _ClassVar[int]
    COMMIT_ID_FIELD_NUMBER: _ClassVar[int]
    AUTHOR_FIELD_NUMBER: _ClassVar[int]
    TENANT_FIELD_NUMBER: _ClassVar[int]
    TTL_S_FIELD_NUMBER: _ClassVar[int]
    fingerprint: str
    salt: str
    token_ids: _containers.RepeatedScalarFieldContainer[int]
    masked: _containers.RepeatedScalarFieldContainer[int]
    commit_id: str
    author: str
    tenant: str
    ttl_s: float
    def __init__(self, fingerprint: _Optional[str] = ..., salt: _Optional[str] = ..., token_ids: _Optional[_Iterable[int]] = ..., masked: _Optional[_Iterable[int]] = ..., commit_id: _Optional[str] = ..., author: _Optional[str] = ..., tenant: _Optional[str] = ..., ttl_s: _Optional[float] = ...) -> None: ...

class CreateContextResponse(_message.Message):
    __slots__ = ("header", "context")
    HEADER_FIELD_NUMBER: _ClassVar[int]
    CONTEXT_FIELD_NUMBER: _ClassVar[int]
    header: Header
    context: Context
    def __init__(self, header: _Optional[_Union[Header, _Mapping]] = ..., context: _Optional[_Union[Context, _Mapping]] = ...) -> None: ...

class GetContextRequest(_message.Message):
    __slots__ = ("id", "known_commit_id")
    ID_FIELD_NUMBER: _ClassVar[int]
    KNOWN_COMMIT_ID_FIELD_NUMBER: _ClassVar[int]
    id: str
    known_commit_id: str
    def __init__(self, id: _Optional[str] = ..., known_commit_id: _Optional[str] = ...) -> None: ...

class GetContextResponse(_message.Message):
    __slots__ = ("header", "context")
    HEADER_FIELD_NUMBER: _ClassVar[int]
    CONTEXT_FIELD_NUMBER: _ClassVar[int]
    header: Header
    context: Context
    def __init__(self, header: _Optional[_Union[Header, _Mapping]] = ..., context: _Optional[_Union[Context, _Mapping]] = ...) -> None: ...

class ListContextsRequest(_message.Message):
    __slots__ = ("salt", "page_size", "page_token")
    SALT_FIELD_NUMBER: _ClassVar[int]
    PAGE_SIZE_FIELD_NUMBER: _ClassVar[int]
    PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    salt: str
    page_size: int
    page_token: str
    def __init__(self, salt: _Optional[str] = ..., page_size: _Optional[int] = ..., page_token: _Optional[str] = ...) -> None: ...

class ListContextsResponse(_message.Message):
    __slots__ = ("header", "contexts", "next_page_token")
    HEADER_FIELD_NUMBER: _ClassVar[int]
    CONTEXTS_FIELD_NUMBER: _ClassVar[int]
    NEXT_PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    header: Header
    contexts: _containers.RepeatedCompositeFieldContainer[Context]
    next_page_token: str
    def __init__(self, header: _Optional[_Union[Header, _Mapping]] = ..., contexts: _Optional[_Iterable[_Union[Context, _Mapping]]] = ..., next_page_token: _Optional[str] = ...) -> None: ...

class CommitRequest(_message.Message):
    __slots__ = ("context", "expected_epoch", "edits", "commit_id", "author", "ttl_s")
    CONTEXT_FIELD_NUMBER: _ClassVar[int]
    EXPECTED_EPOCH_FIELD_NUMBER: _ClassVar[int]
    EDITS_FIELD_NUMBER: _ClassVar[int]
    COMMIT_ID_FIELD_NUMBER: _ClassVar[int]
    AUTHOR_FIELD_NUMBER: _ClassVar[int]
    TTL_S_FIELD_NUMBER: _ClassVar[int]
    context: str
    expected_epoch: int
    edits: _containers.RepeatedCompositeFieldContainer[Edit]
    commit_id: str
    author: str
    ttl_s: float
    def __init__(self, context: _Optional[str] = ..., expected_epoch: _Optional[int] = ..., edits: _Optional[_Iterable[_Union[Edit, _Mapping]]] = ..., commit_id: _Optional[str] = ..., author: _Optional[str] = ..., ttl_s: _Optional[float] = ...) -> None: ...

class CommitResponse(_message.Message):
    __slots__ = ("header", "version", "lifetime")
    HEADER_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    LIFETIME_FIELD_NUMBER: _ClassVar[int]
    header: Header
    version: Version
    lifetime: Lifetime
    def __init__(self, header: _Optional[_Union[Header, _Mapping]] = ..., version: _Optional[_Union[Version, _Mapping]] = ..., lifetime: _Optional[_Union[Lifetime, _Mapping]] = ...) -> None: ...

class RenewContextRequest(_message.Message):
    __slots__ = ("id", "ttl_s", "author")
    ID_FIELD_NUMBER: _ClassVar[int]
    TTL_S_FIELD_NUMBER: _ClassVar[int]
    AUTHOR_FIELD_NUMBER: _ClassVar[int]
    id: str
    ttl_s: float
    author: str
    def __init__(self, id: _Optional[str] = ..., ttl_s: _Optional[float] = ..., author: _Optional[str] = ...) -> None: ...

class RenewContextResponse(_message.Message):
    __slots__ = ("header", "lifetime")
    HEADER_FIELD_NUMBER: _ClassVar[int]
    LIFETIME_FIELD_NUMBER: _ClassVar[int]
    header: Header
    lifetime: Lifetime
    def __init__(self, header: _Optional[_Union[Header, _Mapping]] = ..., lifetime: _Optional[_Union[Lifetime, _Mapping]] = ...) -> None: ...

class DeleteContextRequest(_message.Message):
    __slots__ = ("id", "author")
    ID_FIELD_NUMBER: _ClassVar[int]
    AUTHOR_FIELD_NUMBER: _ClassVar[int]
    id: str
    author: str
    def __init__(self, id: _Optional[str] = ..., author: _Optional[str] = ...) -> None: ...

class DeleteContextResponse(_message.Message):
    __slots__ = ("header",)
    HEADER_FIELD_NUMBER: _ClassVar[int]
    header: Header
    def __init__(self, header: _Optional[_Union[Header, _Mapping]] = ...) -> None: ...

class Build(_message.Message):
    __slots__ = ("key", "epoch", "replica", "token", "ttl_s", "context")
    KEY_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    REPLICA_FIELD_NUMBER: _ClassVar[int]
    TOKEN_FIELD_NUMBER: _ClassVar[int]
    TTL_S_FIELD_NUMBER: _ClassVar[int]
    CONTEXT_FIELD_NUMBER: _ClassVar[int]
    key: bytes
    epoch: int
    replica: str
    token: int
    ttl_s: float
    context: str
    def __init__(self, key: _Optional[bytes] = ..., epoch: _Optional[int] = ..., replica: _Optional[str] = ..., token: _Optional[int] = ..., ttl_s: _Optional[float] = ..., context: _Optional[str] = ...) -> None: ...

class DepthLimit(_message.Message):
    __slots__ = ("key", "bucket", "depth", "profile")
    KEY_FIELD_NUMBER: _ClassVar[int]
    BUCKET_FIELD_NUMBER: _ClassVar[int]
    DEPTH_FIELD_NUMBER: _ClassVar[int]
    PROFILE_FIELD_NUMBER: _ClassVar[int]
    key: bytes
    bucket: int
    depth: int
    profile: int
    def __init__(self, key: _Optional[bytes] = ..., bucket: _Optional[int] = ..., depth: _Optional[int] = ..., profile: _Optional[int] = ...) -> None: ...

class AcquireRequest(_message.Message):
    __slots__ = ("lease", "key", "epoch", "context", "ttl_s")
    LEASE_FIELD_NUMBER: _ClassVar[int]
    KEY_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    CONTEXT_FIELD_NUMBER: _ClassVar[int]
    TTL_S_FIELD_NUMBER: _ClassVar[int]
    lease: Lease
    key: bytes
    epoch: int
    context: str
    ttl_s: float
    def __init__(self, lease: _Optional[_Union[Lease, _Mapping]] = ..., key: _Optional[bytes] = ..., epoch: _Optional[int] = ..., context: _Optional[str] = ..., ttl_s: _Optional[float] = ...) -> None: ...

class AcquireResponse(_message.Message):
    __slots__ = ("header", "build")
    HEADER_FIELD_NUMBER: _ClassVar[int]
    BUILD_FIELD_NUMBER: _ClassVar[int]
    header: Header
    build: Build
    def __init__(self, header: _Optional[_Union[Header, _Mapping]] = ..., build: _Optional[_Union[Build, _Mapping]] = ...) -> None: ...

class ExtendRequest(_message.Message):
    __slots__ = ("lease", "build")
    LEASE_FIELD_NUMBER: _ClassVar[int]
    BUILD_FIELD_NUMBER: _ClassVar[int]
    lease: Lease
    build: Build
    def __init__(self, lease: _Optional[_Union[Lease, _Mapping]] = ..., build: _Optional[_Union[Build, _Mapping]] = ...) -> None: ...

class ExtendResponse(_message.Message):
    __slots__ = ("header",)
    HEADER_FIELD_NUMBER: _ClassVar[int]
    header: Header
    def __init__(self, header: _Optional[_Union[Header, _Mapping]] = ...) -> None: ...

class CompleteRequest(_message.Message):
    __slots__ = ("lease", "token", "placement")
    LEASE_FIELD_NUMBER: _ClassVar[int]
    TOKEN_FIELD_NUMBER: _ClassVar[int]
    PLACEMENT_FIELD_NUMBER: _ClassVar[int]
    lease: Lease
    token: int
    placement: Placement
    def __init__(self, lease: _Optional[_Union[Lease, _Mapping]] = ..., token: _Optional[int] = ..., placement: _Optional[_Union[Placement, _Mapping]] = ...) -> None: ...

class CompleteResponse(_message.Message):
    __slots__ = ("header",)
    HEADER_FIELD_NUMBER: _ClassVar[int]
    header: Header
    def __init__(self, header: _Optional[_Union[Header, _Mapping]] = ...) -> None: ...

class ReleaseRequest(_message.Message):
    __slots__ = ("lease", "build")
    LEASE_FIELD_NUMBER: _ClassVar[int]
    BUILD_FIELD_NUMBER: _ClassVar[int]
    lease: Lease
    build: Build
    def __init__(self, lease: _Optional[_Union[Lease, _Mapping]] = ..., build: _Optional[_Union[Build, _Mapping]] = ...) -> None: ...

class ReleaseResponse(_message.Message):
    __slots__ = ("header",)
    HEADER_FIELD_NUMBER: _ClassVar[int]
    header: Header
    def __init__(self, header: _Optional[_Union[Header, _Mapping]] = ...) -> None: ...

class ReportDriftRequest(_message.Message):
    __slots__ = ("lease", "limits")
    LEASE_FIELD_NUMBER: _ClassVar[int]
    LIMITS_FIELD_NUMBER: _ClassVar[int]
    lease: Lease
    limits: _containers.RepeatedCompositeFieldContainer[DepthLimit]
    def __init__(self, lease: _Optional[_Union[Lease, _Mapping]] = ..., limits: _Optional[_Iterable[_Union[DepthLimit, _Mapping]]] = ...) -> None: ...

class ReportDriftResponse(_message.Message):
    __slots__ = ("header",)
    HEADER_FIELD_NUMBER: _ClassVar[int]
    header: Header
    def __init__(self, header: _Optional[_Union[Header, _Mapping]] = ...) -> None: ...

class Event(_message.Message):
    __slots__ = ("revision", "kind", "replica", "placement", "lease", "context", "commit", "context_id", "build", "limit", "renewal")
    REVISION_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    REPLICA_FIELD_NUMBER: _ClassVar[int]
    PLACEMENT_FIELD_NUMBER: _ClassVar[int]
    LEASE_FIELD_NUMBER: _ClassVar[int]
    CONTEXT_FIELD_NUMBER: _ClassVar[int]
    COMMIT_FIELD_NUMBER: _ClassVar[int]
    CONTEXT_ID_FIELD_NUMBER: _ClassVar[int]
    BUILD_FIELD_NUMBER: _ClassVar[int]
    LIMIT_FIELD_NUMBER: _ClassVar[int]
    RENEWAL_FIELD_NUMBER: _ClassVar[int]
    revision: int
    kind: EventKind
    replica: str
    placement: Placement
    lease: Lease
    context: Context
    commit: Commit
    context_id: str
    build: Build
    limit: DepthLimit
    renewal: Renewal
    def __init__(self, revision: _Optional[int] = ..., kind: _Optional[_Union[EventKind, str]] = ..., replica: _Optional[str] = ..., placement: _Optional[_Union[Placement, _Mapping]] = ..., lease: _Optional[_Union[Lease, _Mapping]] = ..., context: _Optional[_Union[Context, _Mapping]] = ..., commit: _Optional[_Union[Commit, _Mapping]] = ..., context_id: _Optional[str] = ..., build: _Optional[_Union[Build, _Mapping]] = ..., limit: _Optional[_Union[DepthLimit, _Mapping]] = ..., renewal: _Optional[_Union[Renewal, _Mapping]] = ...) -> None: ...

class WatchRequest(_message.Message):
    __slots__ = ("after_revision", "incarnation")
    AFTER_REVISION_FIELD_NUMBER: _ClassVar[int]
    INCARNATION_FIELD_NUMBER: _ClassVar[int]
    after_revision: int
    incarnation: str
    def __init__(self, after_revision: _Optional[int] = ..., incarnation: _Optional[str] = ...) -> None: ...

class WatchResponse(_message.Message):
    __slots__ = ("header", "snapshot", "events")
    HEADER_FIELD_NUMBER: _ClassVar[int]
    SNAPSHOT_FIELD_NUMBER: _ClassVar[int]
    EVENTS_FIELD_NUMBER: _ClassVar[int]
    header: Header
    snapshot: SnapshotPart
    events: EventBatch
    def __init__(self, header: _Optional[_Union[Header, _Mapping]] = ..., snapshot: _Optional[_Union[SnapshotPart, _Mapping]] = ..., events: _Optional[_Union[EventBatch, _Mapping]] = ...) -> None: ...

class SnapshotPart(_message.Message):
    __slots__ = ("members", "placements", "last", "draining", "contexts", "builds", "limits")
    MEMBERS_FIELD_NUMBER: _ClassVar[int]
    PLACEMENTS_FIELD_NUMBER: _ClassVar[int]
    LAST_FIELD_NUMBER: _ClassVar[int]
    DRAINING_FIELD_NUMBER: _ClassVar[int]
    CONTEXTS_FIELD_NUMBER: _ClassVar[int]
    BUILDS_FIELD_NUMBER: _ClassVar[int]
    LIMITS_FIELD_NUMBER: _ClassVar[int]
    members: _containers.RepeatedScalarFieldContainer[str]
    placements: _containers.RepeatedCompositeFieldContainer[Placement]
    last: bool
    draining: _containers.RepeatedScalarFieldContainer[str]
    contexts: _containers.RepeatedCompositeFieldContainer[Context]
    builds: _containers.RepeatedCompositeFieldContainer[Build]
    limits: _containers.RepeatedCompositeFieldContainer[DepthLimit]
    def __init__(self, members: _Optional[_Iterable[str]] = ..., placements: _Optional[_Iterable[_Union[Placement, _Mapping]]] = ..., last: _Optional[bool] = ..., draining: _Optional[_Iterable[str]] = ..., contexts: _Optional[_Iterable[_Union[Context, _Mapping]]] = ..., builds: _Optional[_Iterable[_Union[Build, _Mapping]]] = ..., limits: _Optional[_Iterable[_Union[DepthLimit, _Mapping]]] = ...) -> None: ...

class EventBatch(_message.Message):
    __slots__ = ("events",)
    EVENTS_FIELD_NUMBER: _ClassVar[int]
    events: _containers.RepeatedCompositeFieldContainer[Event]
    def __init__(self, events: _Optional[_Iterable[_Union[Event, _Mapping]]] = ...) -> None: ...
