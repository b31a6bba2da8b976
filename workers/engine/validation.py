"""Validates a request and resolves its defaults: returns a `Task`, or raises an error that names the parameter."""

from __future__ import annotations

import secrets
from dataclasses import dataclass, replace

from cache_service.core.hashing import prefix_keys
from cache_service.core.types import Context
from workers.api import SEED_BITS, ContextEpoch, DecodingParams, GenerateRequest, PrefixCandidate
from workers.bicache.cut import choose_cut
from workers.config import BiCacheConfig, EngineConfig
from workers.decoding.focus import FocusConfig
from workers.decoding.parameters import resolve_decoding, resolve_schedule
from workers.decoding.rules import Decoding
from workers.decoding.timetable import Timetable
from workers.errors import InvalidRequestError, check
from workers.models.base import ModelConfig
from workers.scheduler.policy import POLICIES, Policy
from workers.scheduler.task import RequestId, Task

CONTEXT_LENGTH_EXCEEDED = "context_length_exceeded"
MAX_STEPS = 1 << 16
"""Maximum number of steps of a request. Even a step that commits nothing runs a pass."""
GUIDED_POLICY = "none"


@dataclass(frozen=True)
class RequestResolver:
    """Turns the requests of one engine into tasks."""

    model: ModelConfig
    engine: EngineConfig
    bicache: BiCacheConfig

    def resolve(self, request: GenerateRequest) -> Task:
        """Fill in defaults and check every value. Raises InvalidRequestError."""
        model, engine, bicache = self.model, self.engine, self.bicache
        params = request.params
        check_tokens(request, model)
        policy = policy_by_name(params.policy or (GUIDED_POLICY if params.guidance else engine.policy))
        decoding = resolve_decoding(request, model, policy=policy.name, keeps_kv=policy.keeps_kv)
        interval = bicache.refresh_interval if params.refresh_interval is None else params.refresh_interval
        focus = resolve_focus(params, policy, bicache)
        prefixes = usable_prefixes(request, model)
        seed = secrets.randbits(SEED_BITS) if params.seed is None else params.seed
        return Task(
            id=RequestId(request.request_id),
            prompt=request.token_ids,
            suffix=request.suffix,
            num_canvas=request.max_tokens,
            prefixes=prefixes,
            cut=choose_cut(prefixes, bicache.cut_share) if policy.reuses_prefix else None,
            timetable=resolve_timetable(request, model, policy, decoding, engine),
            policy=policy,
            refresh_interval=interval,
            reuse_depth=params.reuse_depth,
            deterministic=bicache.deterministic if params.deterministic is None else params.deterministic,
            decoding=decoding,
            seed=seed,
            focus=focus,
            context=request.context,
        )

    def replace_context(self, task: Task, content: Context) -> Task:
        """Return `task` with `content` instead of its context's older epoch; all positions after the context move.

        Boundaries within the old context are dropped. Raises InvalidRequestError if the newer content is too long, or
        has another vocabulary.
        """
        model, bicache = self.model, self.bicache
        read = task.context
        if read is None:
            return task
        shift = len(content.token_ids) - read.num_tokens
        check(
            task.total + shift <= model.context_length,
            "context",
            f"{content.id} has grown to {len(content.token_ids)} tokens at epoch {content.epoch}: with what follows "
            f"it, {task.total + shift} tokens exceed the context of {model.context_length}; shorten it, or pin the "
            "request",
            code=CONTEXT_LENGTH_EXCEEDED,
        )
        check(max(content.token_ids) < model.vocab_size, "context", f"{content.id} has token ids beyond the vocabulary")
        prompt = content.token_ids + task.prompt[read.num_tokens :]
        lengths = [prefix.num_tokens + shift for prefix in task.prefixes if prefix.num_tokens >= read.num_tokens]
        keys = prefix_keys(content.fingerprint, content.salt, prompt, lengths)
        prefixes = tuple(map(PrefixCandidate, lengths, keys))
        at = ContextEpoch(content.id, content.epoch)
        whole = len(content.token_ids)
        return replace(
            task,
            prompt=prompt,
            prefixes=prefixes,
            cut=choose_cut(prefixes, bicache.cut_share) if task.policy.reuses_prefix else None,
            timetable=replace(task.timetable, positions=tuple(p + shift for p in task.timetable.positions)),
            decoding=replace(task.decoding, first_eos=task.decoding.first_eos + shift),
            context=replace(read, at=at, num_tokens=whole),
        )


def check_tokens(request: GenerateRequest, model: ModelConfig) -> None:
    """Check every token id and position, and that all of them fit into the context."""
    holes, asked = request.holes, request.max_tokens
    check(asked >= (0 if holes else 1), "max_tokens", f"must be at least 1, or 0 with holes, got {asked}")
    given = len(request.token_ids) + len(request.suffix)
    check(given >= 1, "token_ids", "must hold at least one prompt token, or suffix one")
    check(
        given + asked <= model.context_length,
        "max_tokens",
        f"of {asked} and {given} prompt tokens exceed the context of {model.context_length} tokens; "
        f"lower max_tokens to {max(0, model.context_length - given)}, or shorten the prompt",
    )
    for param, token_ids in (("token_ids", request.token_ids), ("suffix", request.suffix)):
        foreign = next((token for token in token_ids if not 0 <= token < model.vocab_size), None)
        check(foreign is None, param, f"must lie in 0..{model.vocab_size - 1}, got {foreign}")
    num_prompt = len(request.token_ids)
    check(
        list(holes) == sorted(set(holes)) and all(0 <= hole < num_prompt for hole in holes),
        "holes",
        f"must be distinct ascending positions within the {num_prompt} prompt tokens, got {list(holes)}",
    )
    read = request.context
    if read is not None:
        own = range(read.num_tokens, num_prompt)
        check(0 < read.num_tokens <= num_prompt, "context", f"must fill 1 to {num_prompt} prompt tokens")
        check(all(hole in own for hole in holes), "holes", "must lie behind the context that the prompt begins with")


def policy_by_name(name: str) -> Policy:
    if name not in POLICIES:
        raise InvalidRequestError(f"policy {name!r} is unknown; there are {', '.join(POLICIES)}", param="policy")
    return POLICIES[name]


def resolve_focus(params: DecodingParams, policy: Policy, bicache: BiCacheConfig) -> FocusConfig:
    """Resolve anchors and skipped refreshes; the worker's defaults apply only to policies that support them."""
    anchors = 1.0 if params.anchors is None else params.anchors
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


def resolve_timetable(
    request: GenerateRequest, model: ModelConfig, policy: Policy, decoding: Decoding, engine: EngineConfig
) -> Timetable:
    """Resolve blocks and steps.

    A request that gives no number of steps gets one for every `engine.tokens_per_step` tokens of each block, or one for
    every token if confidence sets the pace, since that number is then only an upper bound.
    """
    params, start = request.params, len(request.token_ids)
    positions = (*request.holes, *range(start, start + request.max_tokens))
    length = len(positions)
    asked = engine.block_length if params.block_length is None else params.block_length
    block_length = length if policy.whole_canvas else min(asked, length)
    num_blocks = -(-length // block_length)
    num_steps = params.num_steps
    if num_steps is None:
        tokens_per_step = 1 if decoding.unmasking.is_adaptive else engine.tokens_per_step
        num_steps = num_blocks * -(-block_length // tokens_per_step)
    check(
        num_steps >= num_blocks,
        "steps",
        f"must be at least 1 for each of the {num_blocks} blocks, got {num_steps}; raise it, or raise block_length",
    )
    check(num_steps <= MAX_STEPS, "steps", f"must be at most {MAX_STEPS}, got {num_steps}")
    return Timetable(positions, block_length, num_steps, resolve_schedule(params, model))


def usable_prefixes(request: GenerateRequest, model: ModelConfig) -> tuple[PrefixCandidate, ...]:
    """Return the boundaries that come before all holes, and before all rows whose logits the canvas needs."""
    longest = min((*request.holes, len(request.token_ids))) - model.prediction_shift
    lengths = [candidate.num_tokens for candidate in request.prefixes]
    check(
        lengths == sorted(lengths) and all(0 <= length <= len(request.token_ids) for length in lengths),
        "prefixes",
        f"must ascend within the {len(request.token_ids)} prompt tokens, got {lengths}",
    )
    return tuple(candidate for candidate in request.prefixes if 0 < candidate.num_tokens <= longest)
