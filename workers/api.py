"""What cluster/ may know of a worker: the request, the chunks that answer it, and its statistics."""

from __future__ import annotations

import enum
from dataclasses import dataclass, field

from cache_service.types import PrefixKey, ReplicaId


class FinishReason(enum.Enum):
    STOP = "stop"
    """The model ended its answer: EOS is committed with nothing masked before it."""
    LENGTH = "length"
    """The canvas is full."""


@dataclass(frozen=True)
class PrefixCandidate:
    """A boundary at which the prompt may be cut: its first `num_tokens` tokens have this key."""

    num_tokens: int
    key: PrefixKey


@dataclass(frozen=True)
class DecodingParams:
    """How the canvas is denoised. None means the worker's default."""

    num_steps: int | None = None
    block_length: int | None = None
    policy: str | None = None
    refresh_interval: int | None = None
    reuse_depth: int | None = None
    temperature: float = 0.0
    seed: int | None = None
    """None: drawn at random once, when the request is admitted."""
    anchors: float | None = None
    """Share of the prefix rows that refreshes after the first recompute; policy `lean` only."""
    skip_refresh: bool | None = None
    """Leave out refreshes while attention to the prefix stays put; policy `lean` only."""


@dataclass(frozen=True)
class GenerateRequest:
    """One canvas to denoise behind a prompt of token ids."""

    request_id: str
    token_ids: tuple[int, ...]
    max_tokens: int
    """Canvas length in tokens."""
    prefixes: tuple[PrefixCandidate, ...] = ()
    """Candidate boundaries, shortest first."""
    params: DecodingParams = field(default_factory=DecodingParams)


@dataclass(frozen=True)
class Usage:
    """What a finished request took."""

    prompt_tokens: int
    completion_tokens: int
    """Committed tokens up to, and without, EOS."""
    cached_tokens: int
    """Prompt tokens whose shallow layers came from a prefix entry that was there before this request."""
    num_steps: int
    num_forwards: int
    policy: str
    reuse_depth: int
    replica: ReplicaId


@dataclass(frozen=True)
class GenerateChunk:
    """Committed tokens in order: all before them are committed too. The last chunk has a reason and usage."""

    request_id: str
    token_ids: tuple[int, ...]
    finish_reason: FinishReason | None = None
    usage: Usage | None = None


@dataclass(frozen=True)
class ModelInfo:
    """What the edge must know of the served model."""

    name: str
    fingerprint: str
    """Digest over weights, dtype and tokenizer."""
    context_length: int
    mask_token_id: int
    eos_token_id: int


@dataclass(frozen=True)
class WorkerStats:
    """A worker's counters since its start, and its load now."""

    replica: ReplicaId
    num_running: int
    num_waiting: int
    num_requests: int
    num_forwards: int
    num_canvas_tokens: int
    num_prefix_hits: int
    num_prefix_misses: int
    prefix_entries: int
    prefix_bytes: int
    num_aborted: int
