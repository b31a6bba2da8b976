from protos import inference_v1_pb2 as _inference_v1_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class TextParts(_message.Message):
    __slots__ = ("parts",)
    PARTS_FIELD_NUMBER: _ClassVar[int]
    parts: _containers.RepeatedCompositeFieldContainer[TextPart]
    def __init__(self, parts: _Optional[_Iterable[_Union[TextPart, _Mapping]]] = ...) -> None: ...

class TextPart(_message.Message):
    __slots__ = ("text", "hole")
    TEXT_FIELD_NUMBER: _ClassVar[int]
    HOLE_FIELD_NUMBER: _ClassVar[int]
    text: str
    hole: int
    def __init__(self, text: _Optional[str] = ..., hole: _Optional[int] = ...) -> None: ...

class TokenParts(_message.Message):
    __slots__ = ("parts",)
    PARTS_FIELD_NUMBER: _ClassVar[int]
    parts: _containers.RepeatedCompositeFieldContainer[TokenPart]
    def __init__(self, parts: _Optional[_Iterable[_Union[TokenPart, _Mapping]]] = ...) -> None: ...

class TokenPart(_message.Message):
    __slots__ = ("tokens", "hole")
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    HOLE_FIELD_NUMBER: _ClassVar[int]
    tokens: _inference_v1_pb2.TokenIds
    hole: int
    def __init__(self, tokens: _Optional[_Union[_inference_v1_pb2.TokenIds, _Mapping]] = ..., hole: _Optional[int] = ...) -> None: ...

class Turn(_message.Message):
    __slots__ = ("role", "parts")
    ROLE_FIELD_NUMBER: _ClassVar[int]
    PARTS_FIELD_NUMBER: _ClassVar[int]
    role: str
    parts: _containers.RepeatedCompositeFieldContainer[TextPart]
    def __init__(self, role: _Optional[str] = ..., parts: _Optional[_Iterable[_Union[TextPart, _Mapping]]] = ...) -> None: ...

class Turns(_message.Message):
    __slots__ = ("turns",)
    TURNS_FIELD_NUMBER: _ClassVar[int]
    turns: _containers.RepeatedCompositeFieldContainer[Turn]
    def __init__(self, turns: _Optional[_Iterable[_Union[Turn, _Mapping]]] = ...) -> None: ...

class ContextContent(_message.Message):
    __slots__ = ("turns", "text", "tokens")
    TURNS_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    turns: Turns
    text: TextParts
    tokens: TokenParts
    def __init__(self, turns: _Optional[_Union[Turns, _Mapping]] = ..., text: _Optional[_Union[TextParts, _Mapping]] = ..., tokens: _Optional[_Union[TokenParts, _Mapping]] = ...) -> None: ...

class TokenRange(_message.Message):
    __slots__ = ("start", "end")
    START_FIELD_NUMBER: _ClassVar[int]
    END_FIELD_NUMBER: _ClassVar[int]
    start: int
    end: int
    def __init__(self, start: _Optional[int] = ..., end: _Optional[int] = ...) -> None: ...

class ContextEdit(_message.Message):
    __slots__ = ("range", "find", "text", "tokens")
    RANGE_FIELD_NUMBER: _ClassVar[int]
    FIND_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    range: TokenRange
    find: str
    text: TextParts
    tokens: TokenParts
    def __init__(self, range: _Optional[_Union[TokenRange, _Mapping]] = ..., find: _Optional[str] = ..., text: _Optional[_Union[TextParts, _Mapping]] = ..., tokens: _Optional[_Union[TokenParts, _Mapping]] = ...) -> None: ...

class ContextEdits(_message.Message):
    __slots__ = ("edits",)
    EDITS_FIELD_NUMBER: _ClassVar[int]
    edits: _containers.RepeatedCompositeFieldContainer[ContextEdit]
    def __init__(self, edits: _Optional[_Iterable[_Union[ContextEdit, _Mapping]]] = ...) -> None: ...

class ContextVersion(_message.Message):
    __slots__ = ("epoch", "key")
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    KEY_FIELD_NUMBER: _ClassVar[int]
    epoch: int
    key: bytes
    def __init__(self, epoch: _Optional[int] = ..., key: _Optional[bytes] = ...) -> None: ...

class Context(_message.Message):
    __slots__ = ("id", "epoch", "versions", "text", "token_ids", "holes", "expires_at")
    ID_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    VERSIONS_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    HOLES_FIELD_NUMBER: _ClassVar[int]
    EXPIRES_AT_FIELD_NUMBER: _ClassVar[int]
    id: str
    epoch: int
    versions: _containers.RepeatedCompositeFieldContainer[ContextVersion]
    text: str
    token_ids: _containers.RepeatedScalarFieldContainer[int]
    holes: _containers.RepeatedCompositeFieldContainer[TokenRange]
    expires_at: float
    def __init__(self, id: _Optional[str] = ..., epoch: _Optional[int] = ..., versions: _Optional[_Iterable[_Union[ContextVersion, _Mapping]]] = ..., text: _Optional[str] = ..., token_ids: _Optional[_Iterable[int]] = ..., holes: _Optional[_Iterable[_Union[TokenRange, _Mapping]]] = ..., expires_at: _Optional[float] = ...) -> None: ...

class CreateContextRequest(_message.Message):
    __slots__ = ("content", "cache_salt", "ttl_s")
    CONTENT_FIELD_NUMBER: _ClassVar[int]
    CACHE_SALT_FIELD_NUMBER: _ClassVar[int]
    TTL_S_FIELD_NUMBER: _ClassVar[int]
    content: ContextContent
    cache_salt: str
    ttl_s: float
    def __init__(self, content: _Optional[_Union[ContextContent, _Mapping]] = ..., cache_salt: _Optional[str] = ..., ttl_s: _Optional[float] = ...) -> None: ...

class CreateContextResponse(_message.Message):
    __slots__ = ("context",)
    CONTEXT_FIELD_NUMBER: _ClassVar[int]
    context: Context
    def __init__(self, context: _Optional[_Union[Context, _Mapping]] = ...) -> None: ...

class GetContextRequest(_message.Message):
    __slots__ = ("id", "cache_salt")
    ID_FIELD_NUMBER: _ClassVar[int]
    CACHE_SALT_FIELD_NUMBER: _ClassVar[int]
    id: str
    cache_salt: str
    def __init__(self, id: _Optional[str] = ..., cache_salt: _Optional[str] = ...) -> None: ...

class GetContextResponse(_message.Message):
    __slots__ = ("context",)
    CONTEXT_FIELD_NUMBER: _ClassVar[int]
    context: Context
    def __init__(self, context: _Optional[_Union[Context, _Mapping]] = ...) -> None: ...

class ListContextsRequest(_message.Message):
    __slots__ = ("cache_salt", "page_size", "page_token")
    CACHE_SALT_FIELD_NUMBER: _ClassVar[int]
    PAGE_SIZE_FIELD_NUMBER: _ClassVar[int]
    PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    cache_salt: str
    page_size: int
    page_token: str
    def __init__(self, cache_salt: _Optional[str] = ..., page_size: _Optional[int] = ..., page_token: _Optional[str] = ...) -> None: ...

class ListContextsResponse(_message.Message):
    __slots__ = ("contexts", "next_page_token")
    CONTEXTS_FIELD_NUMBER: _ClassVar[int]
    NEXT_PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    contexts: _containers.RepeatedCompositeFieldContainer[Context]
    next_page_token: str
    def __init__(self, contexts: _Optional[_Iterable[_Union[Context, _Mapping]]] = ..., next_page_token: _Optional[str] = ...) -> None: ...

class ChangeContextRequest(_message.Message):
    __slots__ = ("id", "cache_salt", "expected_epoch", "edits", "content", "ttl_s")
    ID_FIELD_NUMBER: _ClassVar[int]
    CACHE_SALT_FIELD_NUMBER: _ClassVar[int]
    EXPECTED_EPOCH_FIELD_NUMBER: _ClassVar[int]
    EDITS_FIELD_NUMBER: _ClassVar[int]
    CONTENT_FIELD_NUMBER: _ClassVar[int]
    TTL_S_FIELD_NUMBER: _ClassVar[int]
    id: str
    cache_salt: str
    expected_epoch: int
    edits: ContextEdits
    content: ContextContent
    ttl_s: float
    def __init__(self, id: _Optional[str] = ..., cache_salt: _Optional[str] = ..., expected_epoch: _Optional[int] = ..., edits: _Optional[_Union[ContextEdits, _Mapping]] = ..., content: _Optional[_Union[ContextContent, _Mapping]] = ..., ttl_s: _Optional[float] = ...) -> None: ...

class ChangeContextResponse(_message.Message):
    __slots__ = ("context",)
    CONTEXT_FIELD_NUMBER: _ClassVar[int]
    context: Context
    def __init__(self, context: _Optional[_Union[Context, _Mapping]] = ...) -> None: ...

class DeleteContextRequest(_message.Message):
    __slots__ = ("id", "cache_salt")
    ID_FIELD_NUMBER: _ClassVar[int]
    CACHE_SALT_FIELD_NUMBER: _ClassVar[int]
    id: str
    cache_salt: str
    def __init__(self, id: _Optional[str] = ..., cache_salt: _Optional[str] = ...) -> None: ...

class DeleteContextResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class DenoiseRequest(_message.Message):
    __slots__ = ("model", "id", "cache_salt", "temperature", "top_p", "seed", "logit_bias", "diffusion")
    class LogitBiasEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: int
        value: float
        def __init__(self, key: _Optional[int] = ..., value: _Optional[float] = ...) -> None: ...
    MODEL_FIELD_NUMBER: _ClassVar[int]
    ID_FIELD_NUMBER: _ClassVar[int]
    CACHE_SALT_FIELD_NUMBER: _ClassVar[int]
    TEMPERATURE_FIELD_NUMBER: _ClassVar[int]
    TOP_P_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    LOGIT_BIAS_FIELD_NUMBER: _ClassVar[int]
    DIFFUSION_FIELD_NUMBER: _ClassVar[int]
    model: str
    id: str
    cache_salt: str
    temperature: float
    top_p: float
    seed: int
    logit_bias: _containers.ScalarMap[int, float]
    diffusion: _inference_v1_pb2.DiffusionOptions
    def __init__(self, model: _Optional[str] = ..., id: _Optional[str] = ..., cache_salt: _Optional[str] = ..., temperature: _Optional[float] = ..., top_p: _Optional[float] = ..., seed: _Optional[int] = ..., logit_bias: _Optional[_Mapping[int, float]] = ..., diffusion: _Optional[_Union[_inference_v1_pb2.DiffusionOptions, _Mapping]] = ...) -> None: ...

class CommittedBlock(_message.Message):
    __slots__ = ("epoch", "positions", "text")
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    POSITIONS_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    epoch: int
    positions: _containers.RepeatedScalarFieldContainer[int]
    text: str
    def __init__(self, epoch: _Optional[int] = ..., positions: _Optional[_Iterable[int]] = ..., text: _Optional[str] = ...) -> None: ...

class Denoised(_message.Message):
    __slots__ = ("context", "lost_races", "diffusion")
    CONTEXT_FIELD_NUMBER: _ClassVar[int]
    LOST_RACES_FIELD_NUMBER: _ClassVar[int]
    DIFFUSION_FIELD_NUMBER: _ClassVar[int]
    context: Context
    lost_races: int
    diffusion: _inference_v1_pb2.DiffusionReport
    def __init__(self, context: _Optional[_Union[Context, _Mapping]] = ..., lost_races: _Optional[int] = ..., diffusion: _Optional[_Union[_inference_v1_pb2.DiffusionReport, _Mapping]] = ...) -> None: ...

class DenoiseResponse(_message.Message):
    __slots__ = ("block", "denoised")
    BLOCK_FIELD_NUMBER: _ClassVar[int]
    DENOISED_FIELD_NUMBER: _ClassVar[int]
    block: CommittedBlock
    denoised: Denoised
    def __init__(self, block: _Optional[_Union[CommittedBlock, _Mapping]] = ..., denoised: _Optional[_Union[Denoised, _Mapping]] = ...) -> None: ...
