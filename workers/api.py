"""Declares the interface between `cluster` and a worker: requests, the chunks that answer them, and statistics."""

from __future__ import annotations

import enum
from collections.abc import Callable
from dataclasses import dataclass, field

from cache_service.core.types import Context, ContextId, Epoch, PrefixKey, ReplicaId
from workers.parameter import Bounds, parameter, parameters_of

SEED_BITS = 63


class FinishReason(enum.Enum):
    """Lists the reasons why an answer ends."""

    STOP = "stop"
    """The model ended its answer: EOS is committed and no position before it is masked."""
    LENGTH = "length"
    """The canvas is full."""


class DepthLimiter(enum.Enum):
    """Lists the kinds of evidence that may lower a reuse depth."""

    PROBE = "probe"
    """A probe found that the prefix's states differ too much from the true ones in deeper layers."""
    REPORT = "report"
    """Another replica's drift report limits the depth. A deterministic request ignores reports."""


@dataclass(frozen=True)
class ContextEpoch:
    """Identifies a shared context at one of its epochs."""

    context: ContextId
    epoch: Epoch


@dataclass(frozen=True)
class PrefixCandidate:
    """Describes a boundary at which the prompt may be cut: `key` identifies its first `num_tokens` tokens."""

    num_tokens: int
    key: PrefixKey


@dataclass(frozen=True)
class DecodingParams:
    """Holds the parameters of denoising the canvas. None stands for the worker's default.

    The HTTP body, the gRPC decoder and the worker's check of bounds derive from these declarations.
    """

    num_steps: int | None = parameter("denoising steps of the whole canvas", name="steps", bounds=Bounds(1))
    block_length: int | None = parameter("canvas tokens that are denoised together", bounds=Bounds(1))
    policy: str | None = parameter("which states are reused from step to step")
    refresh_interval: int | None = parameter("steps between two refreshes of the prefix's states", bounds=Bounds(0))
    reuse_depth: int | None = parameter("layers that reuse the prefix's states", bounds=Bounds(0))
    temperature: float = parameter("0 commits the most likely token", 0.0, bounds=Bounds(0, 2), is_openai=True)
    seed: int | None = parameter(
        "repeats an answer; None is drawn at random once, when the request is admitted",
        bounds=Bounds(0, (1 << SEED_BITS) - 1),
        is_openai=True,
    )
    unmasking: str | None = parameter(
        "which masked positions are committed first, by a name of `workers.decoding.rules.Unmasking`; None is what the "
        "model's authors use: low_confidence for LLaDA, entropy for Dream"
    )
    timetable: str | None = parameter(
        "how a block's masks are spread over its steps: quota (LLaDA's default) or dream (Dream's)"
    )
    threshold: float | None = parameter(
        "for unmasking threshold: the confidence from which on a token is committed at once; None is 0.9",
        bounds=Bounds(0, 1),
    )
    factor: float | None = parameter(
        "for unmasking factor: the larger, the more tokens a step commits; None is 1", bounds=Bounds(0)
    )
    top_p: float = parameter(
        "choose among the most probable tokens up to this share",
        1.0,
        bounds=Bounds(0, 1, excludes_least=True),
        is_openai=True,
    )
    top_k: int | None = parameter(
        "at a temperature, choose among so many of the most probable tokens; before that, among those up to top_p",
        bounds=Bounds(1),
    )
    logit_bias: tuple[tuple[int, float], ...] = parameter(
        "token id to what is added to its logits; the mask token can't be named",
        (),
        bounds=Bounds(-100, 100),
        is_openai=True,
    )
    min_tokens: int = parameter("EOS is not chosen before this position of the canvas", 0, bounds=Bounds(0))
    guidance: float = parameter(
        "classifier-free guidance w: logits u + (w + 1)(c - u), where u sees the prompt masked; above 0 it needs "
        "policy none, which is then the default, and two forwards a step",
        0.0,
        bounds=Bounds(0, 100),
    )
    remask: int = parameter(
        "after each step, this many committed tokens of the active block, the least probable, are masked again and "
        "committed again by the timetable's end; what was delivered stays; not with unmasking threshold or factor",
        0,
        bounds=Bounds(0),
    )
    anchors: float | None = parameter(
        "share of the prefix rows that refreshes after the first recompute; policy lean only",
        bounds=Bounds(0, 1, excludes_least=True),
    )
    skip_refresh: bool | None = parameter(
        "leave out refreshes while attention to the prefix stays put; policy lean only"
    )
    deterministic: bool | None = parameter(
        "let the reuse depth follow from the request, the depth table and the prefix's own probe alone; false lets "
        "other replicas' drift reports lower it too, so that the same request may be answered differently later"
    )


PARAMETERS = parameters_of(DecodingParams)


class ContextMode(enum.Enum):
    """Lists the ways in which a request chooses the epochs of a shared context that it reads."""

    PIN = "pin"
    """The epoch with which the request began, until its end."""
    FOLLOW = "follow"
    """The newest epoch at each block start."""


@dataclass(frozen=True)
class ContextRead:
    """Declares that the first `num_tokens` token ids of a request are a shared context's content at `at.epoch`."""

    at: ContextEpoch
    num_tokens: int
    mode: ContextMode = ContextMode.PIN
    max_staleness: int = 0
    """Maximum age in epochs, in mode `follow`, of the request's content before a block start adopts the newest."""

    @property
    def follows(self) -> bool:
        return self.mode is ContextMode.FOLLOW

    def is_behind(self, newest: Epoch) -> bool:
        """Return whether the request lies further behind `newest` than it may."""
        return newest - self.at.epoch > self.max_staleness


ContextReply = Callable[[Context | None], None]
"""A function that takes the newest content of a context, or None if it is unknown. Any thread may call it; it returns
at once."""


@dataclass(frozen=True)
class GenerateRequest:
    """Asks the worker to denoise a canvas between a prompt and a suffix, and holes in the prompt."""

    request_id: str
    token_ids: tuple[int, ...]
    max_tokens: int
    """Canvas length in tokens; may be 0 if there are holes."""
    prefixes: tuple[PrefixCandidate, ...] = ()
    """Candidate boundaries, shortest first."""
    params: DecodingParams = field(default_factory=DecodingParams)
    suffix: tuple[int, ...] = ()
    """Token ids after the canvas: the text that the answer leads up to."""
    context: ContextRead | None = None
    """The context whose content the prompt begins with. Its holes stay masks; `holes` are the request's own."""
    holes: tuple[int, ...] = ()
    """Ascending positions in `token_ids` that are denoised too, whatever ids they have. They are never filled with EOS,
    since the text after them is known. Their tokens are delivered before the canvas's.
    """


@dataclass(frozen=True)
class CopyRequest:
    """Asks one replica for a copy of a prefix entry that it holds."""

    holder: ReplicaId
    key: PrefixKey
    depths: tuple[int, ...] | None
    """Ascending reuse depths that the copy must serve; None for all that the entry serves."""
    direct: bool = False
    """True if the requesting replica can read the copy directly from the holder's memory."""


@dataclass(frozen=True)
class Usage:
    """Reports the tokens and the work of a request: so far, or in total."""

    prompt_tokens: int
    """Given tokens: prompt and suffix without holes."""
    completion_tokens: int
    """Committed tokens before EOS."""
    cached_tokens: int
    """Prompt tokens whose shallow layers came from a prefix entry that existed before this request."""
    num_steps: int
    num_forwards: int
    policy: str
    prefix_tokens: int
    """Prompt tokens before the cut: the prefix that was reused, or recomputed at each refresh."""
    reuse_depth: int
    depth_limited_by: DepthLimiter | None
    """The evidence that lowered `reuse_depth`; None if it is the depth table's or the request's."""
    replica: ReplicaId
    epochs: tuple[Epoch, ...] = ()
    """Epochs of the shared context that the request's passes read, in order."""


@dataclass(frozen=True)
class GenerateChunk:
    """Delivers committed tokens in order of position, without gaps. The last chunk has a finish reason.

    Every chunk has the usage so far, for readers that stop early. The first chunk alone is an acceptance, which has
    neither tokens nor usage.
    """

    request_id: str
    token_ids: tuple[int, ...]
    finish_reason: FinishReason | None = None
    usage: Usage | None = None

    @classmethod
    def acceptance(cls, request_id: str) -> GenerateChunk:
        """Return the chunk that reports that the replica has checked the request and put it into its queue."""
        return cls(request_id, ())

    @property
    def is_acceptance(self) -> bool:
        return not self.token_ids and self.finish_reason is None


@dataclass(frozen=True)
class ModelInfo:
    """Describes the served model, as far as the ingress needs it."""

    name: str
    fingerprint: str
    """A digest over weights, dtype and tokenizer."""
    context_length: int
    mask_token_id: int
    eos_token_id: int


@dataclass(frozen=True)
class WorkerStats:
    """Reports a worker's counters since its start, and its present load."""

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
    """Number of times that a request continued with a newer epoch of the context that it follows."""
