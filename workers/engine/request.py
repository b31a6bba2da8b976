"""A request as it came -> a `Task` without open questions, or an error that names the parameter at fault."""

from __future__ import annotations

import math
import secrets

from workers.api import DecodingParams, GenerateRequest, PrefixCandidate
from workers.config import BiCacheConfig, EngineConfig
from workers.errors import InvalidRequestError
from workers.models.base import ModelConfig
from workers.scheduler.canvas import Timetable
from workers.scheduler.focus import FocusConfig
from workers.scheduler.policy import POLICIES, Policy
from workers.scheduler.task import RequestId, Task

SEED_BITS = 63


def resolve(request: GenerateRequest, model: ModelConfig, engine: EngineConfig, bicache: BiCacheConfig) -> Task:
    """Fill in defaults and check every value. Raises InvalidRequestError."""
    params = request.params
    check_tokens(request, model)
    policy = policy_named(params.policy or engine.policy)
    interval = bicache.refresh_interval if params.refresh_interval is None else params.refresh_interval
    check(interval >= 0, "refresh_interval", f"must not be negative, got {interval}")
    depth = params.reuse_depth
    check(depth is None or depth >= 0, "reuse_depth", f"must not be negative, got {depth}")
    warmth = params.temperature
    check(math.isfinite(warmth) and warmth >= 0, "temperature", f"must be finite and not negative, got {warmth}")
    focus = focus_of(params, policy, bicache)
    seed = secrets.randbits(SEED_BITS) if params.seed is None else params.seed
    check(0 <= seed < 1 << SEED_BITS, "seed", f"must lie in 0..2^{SEED_BITS}-1, got {seed}")
    return Task(
        id=RequestId(request.request_id),
        prompt=request.token_ids,
        prefixes=usable_prefixes(request, model),
        timetable=timetable(request, policy, engine),
        policy=policy,
        refresh_interval=interval,
        reuse_depth=depth,
        temperature=warmth,
        seed=seed,
        focus=focus,
    )


def check(condition: bool, param: str, problem: str) -> None:
    if not condition:
        raise InvalidRequestError(f"{param} {problem}", param=param)


def check_tokens(request: GenerateRequest, model: ModelConfig) -> None:
    check(request.max_tokens >= 1, "max_tokens", f"must be at least 1, got {request.max_tokens}")
    num_prompt = len(request.token_ids)
    check(num_prompt >= 1, "token_ids", "must hold at least one prompt token")
    total = num_prompt + request.max_tokens
    check(
        total <= model.context_length,
        "max_tokens",
        f"of {request.max_tokens} and {num_prompt} prompt tokens exceed the context of {model.context_length} tokens; "
        f"lower max_tokens to {max(0, model.context_length - num_prompt)}, or shorten the prompt",
    )
    foreign = next((token for token in request.token_ids if not 0 <= token < model.vocab_size), None)
    check(foreign is None, "token_ids", f"must lie in 0..{model.vocab_size - 1}, got {foreign}")


def policy_named(name: str) -> Policy:
    if name not in POLICIES:
        raise InvalidRequestError(f"policy {name!r} is unknown; there are {', '.join(POLICIES)}", param="policy")
    return POLICIES[name]


def focus_of(params: DecodingParams, policy: Policy, bicache: BiCacheConfig) -> FocusConfig:
    """Anchors and skipped refreshes; the worker's defaults for them don't touch policies that know neither."""
    anchors = 1.0 if params.anchors is None else params.anchors
    check(math.isfinite(anchors) and 0 < anchors <= 1, "anchors", f"must lie in (0, 1], got {anchors}")
    adaptive = [other.name for other in POLICIES.values() if other.adaptive]
    problem = f"needs policy {' or '.join(adaptive)}, got {policy.name}"
    check(policy.adaptive or anchors == 1, "anchors", problem)
    check(policy.adaptive or not params.skip_refresh, "skip_refresh", problem)
    if not policy.adaptive:
        return FocusConfig(1.0, False, bicache.skip_similarity, bicache.max_skips)
    return FocusConfig(
        anchor_share=bicache.anchors if params.anchors is None else params.anchors,
        skip_refresh=bicache.skip_refresh if params.skip_refresh is None else params.skip_refresh,
        skip_similarity=bicache.skip_similarity,
        max_skips=bicache.max_skips,
    )


def timetable(request: GenerateRequest, policy: Policy, engine: EngineConfig) -> Timetable:
    """Blocks and steps. Without a number of steps, one for every `engine.tokens_per_step` tokens of each block."""
    params, length = request.params, request.max_tokens
    asked = engine.block_length if params.block_length is None else params.block_length
    check(asked >= 1, "block_length", f"must be at least 1, got {asked}")
    block_length = length if policy.whole_canvas else min(asked, length)
    num_blocks = -(-length // block_length)
    num_steps = params.num_steps
    if num_steps is None:
        num_steps = num_blocks * -(-block_length // engine.tokens_per_step)
    check(
        num_steps >= num_blocks,
        "num_steps",
        f"must be at least 1 for each of the {num_blocks} blocks, got {num_steps}; raise it, or raise block_length",
    )
    return Timetable(len(request.token_ids), length, block_length, num_steps)


def usable_prefixes(request: GenerateRequest, model: ModelConfig) -> tuple[PrefixCandidate, ...]:
    """The boundaries that leave the rows behind them all logits that the canvas needs."""
    longest = len(request.token_ids) - model.prediction_shift
    lengths = [candidate.num_tokens for candidate in request.prefixes]
    check(
        lengths == sorted(lengths) and all(0 <= length <= len(request.token_ids) for length in lengths),
        "prefixes",
        f"must ascend within the {len(request.token_ids)} prompt tokens, got {lengths}",
    )
    return tuple(candidate for candidate in request.prefixes if 0 < candidate.num_tokens <= longest)
