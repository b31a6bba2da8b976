"""What cluster/ may know of a worker: the request, the chunks that answer it, and its statistics."""

from __future__ import annotations

import enum
from collections.abc import Callable
from dataclasses import dataclass, field

from cache_service.core.types import Context, ContextId, Epoch, PrefixKey, ReplicaId


class FinishReason(enum.Enum):
    STOP = "stop"
    """The model ended its answer: EOS is committed with nothing masked before it."""
    LENGTH = "length"
    """The canvas is full."""


class DepthLimiter(enum.Enum):
    """Evidence that lowered a reuse depth."""

    PROBE = "probe"
    """The prefix's states, compared with true ones, are not similar enough any deeper."""
    REPORT = "report"
    """Another replica reported so. A deterministic request ignores reports."""


@dataclass(frozen=True)
class ContextEpoch:
    """A shared context at one of its epochs."""

    context: ContextId
    epoch: Epoch


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
    unmasking: str | None = None
    """Which masked positions are committed first; the names and meanings are `workers.decoding.rules.Unmasking`'s.

    None is what the model's authors use: `low_confidence` for LLaDA, `entropy` for Dream.
    """
    timetable: str | None = None
    """How a block's masks are spread over its steps: `quota` (LLaDA's default) or `dream` (Dream's)."""
    threshold: float | None = None
    """For unmasking `threshold`: the confidence from which on a token is committed at once; None is 0.9."""
    factor: float | None = None
    """For unmasking `factor`: the larger, the more tokens a step commits; None is 1."""
    top_p: float = 1.0
    top_k: int | None = None
    """At a temperature, choose among the `top_k` most probable tokens; before that, among those up to `top_p`."""
    logit_bias: tuple[tuple[int, float], ...] = ()
    """(token id, what is added to its logits); the mask token can't be named."""
    min_tokens: int = 0
    """EOS is not chosen before this position of the canvas."""
    guidance: float = 0.0
    """Classifier-free guidance w: logits u + (w + 1)(c - u), where u sees the prompt masked. Above 0 it needs policy
    `none`, which is then the default, and two forwards a step.
    """
    remask: int = 0
    """After each step, this many committed tokens of the active block, the least probable, are masked again and
    committed anew by the timetable's end. What was handed out stays. Not with an unmasking that sets its own pace.
    """
    anchors: float | None = None
    """Share of the prefix rows that refreshes after the first recompute; policy `lean` only."""
    skip_refresh: bool | None = None
    """Leave out refreshes while attention to the prefix stays put; policy `lean` only."""
    deterministic: bool | None = None
    """Whether the reuse depth follows from the request, the depth table and the prefix's own probe alone. False lets
    other replicas' drift reports lower it too, so that the same request may be answered differently later.
    """


class ContextMode(enum.Enum):
    """Which epoch of a shared context a request goes by."""

    PIN = "pin"
    """The one that it began with, to its end."""
    FOLLOW = "follow"
    """The newest at each block start."""


@dataclass(frozen=True)
class ContextRead:
    """The shared context whose content at `at.epoch` the first `num_tokens` token ids of a request are."""

    at: ContextEpoch
    num_tokens: int
    mode: ContextMode = ContextMode.PIN
    max_staleness: int = 0
    """In mode `follow`: epochs that the request may lie behind at a block start without adopting the newest."""

    @property
    def follows(self) -> bool:
        return self.mode is ContextMode.FOLLOW

    def is_behind(self, newest: Epoch) -> bool:
        """By more than it may be."""
        return newest - self.at.epoch > self.max_staleness


ContextReply = Callable[[Context | None], None]
"""Takes the newest content of a context, None where it isn't known; from any thread, and at once."""


@dataclass(frozen=True)
class GenerateRequest:
    """A canvas of masks to denoise behind a prompt of token ids, in front of a suffix, and holes in the prompt."""

    request_id: str
    token_ids: tuple[int, ...]
    max_tokens: int
    """Canvas length in tokens; may be 0 where there are holes."""
    prefixes: tuple[PrefixCandidate, ...] = ()
    """Candidate boundaries, shortest first."""
    params: DecodingParams = field(default_factory=DecodingParams)
    suffix: tuple[int, ...] = ()
    """Token ids behind the canvas: text to fill up to."""
    context: ContextRead | None = None
    """Whose content the prompt begins with. Its holes stay masks; `holes` are the request's own."""
    holes: tuple[int, ...] = ()
    """Ascending positions in `token_ids` that are denoised too, whatever ids stand there. Never filled with EOS: what
    follows them is known. Their tokens come before the canvas's.
    """


@dataclass(frozen=True)
class CopyRequest:
    """Asks one replica for a copy of a prefix entry that it holds."""

    holder: ReplicaId
    key: PrefixKey
    depths: tuple[int, ...] | None
    """Ascending reuse depths that the copy must serve; None for all that the entry serves."""
    direct: bool = False
    """Whether the asker can read the copy out of the holder's memory by itself."""


@dataclass(frozen=True)
class Usage:
    """What a request took, so far or in the end."""

    prompt_tokens: int
    """Given tokens: prompt and suffix without holes."""
    completion_tokens: int
    """Committed tokens up to, and without, EOS."""
    cached_tokens: int
    """Prompt tokens whose shallow layers came from a prefix entry that was there before this request."""
    num_steps: int
    num_forwards: int
    policy: str
    prefix_tokens: int
    """Prompt tokens before the cut: the prefix that was reused, or recomputed at each refresh."""
    reuse_depth: int
    depth_limited_by: DepthLimiter | None
    """The evidence that lowered `reuse_depth`; None where it is what the depth table or the request says."""
    replica: ReplicaId
    epochs: tuple[Epoch, ...] = ()
    """Of the shared context that the request reads: those that its passes went by, in order."""


@dataclass(frozen=True)
class GenerateChunk:
    """Committed tokens in order: all before them are committed too. The last chunk has a reason.

    Every chunk has the usage so far, so that who has read enough knows what it took.
    """

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
    num_moved: int
    """Times that a request went on with a newer epoch of the context that it follows."""
