"""A request's decoding parameters, checked and with the model's own defaults."""

from __future__ import annotations

import enum
import math
from typing import TypeVar

from workers.api import DecodingParams, GenerateRequest
from workers.decoding.rules import Decoding, Unmasking
from workers.decoding.timetable import Timing
from workers.errors import check
from workers.models.base import ModelConfig

Named = TypeVar("Named", bound=enum.Enum)

MAX_GUIDANCE, MAX_BIAS = 100.0, 100.0


def timing_of(params: DecodingParams, model: ModelConfig) -> Timing:
    return model.decoding.timing if params.timetable is None else named(Timing, params.timetable, "timetable")


def decoding_of(request: GenerateRequest, model: ModelConfig, *, policy: str, keeps_kv: bool) -> Decoding:
    """Return the decoding rule of a request whose policy is named `policy`, and `keeps_kv` from step to step.

    Raises InvalidRequestError.
    """
    params = request.params
    unmasking = (
        model.decoding.unmasking if params.unmasking is None else named(Unmasking, params.unmasking, "unmasking")
    )
    check_sampling(params)
    check_combination(params, unmasking, policy, keeps_kv=keeps_kv)
    check_bias(params, model)
    check(
        0 <= params.min_tokens <= request.max_tokens,
        "min_tokens",
        f"must lie in 0..max_tokens ({request.max_tokens}), got {params.min_tokens}",
    )
    usual = Decoding()
    return Decoding(
        unmasking=unmasking,
        temperature=params.temperature,
        top_p=params.top_p,
        top_k=params.top_k,
        logit_bias=params.logit_bias,
        guidance=params.guidance,
        threshold=usual.threshold if params.threshold is None else params.threshold,
        factor=usual.factor if params.factor is None else params.factor,
        remask=params.remask,
        first_eos=len(request.token_ids) + params.min_tokens,
    )


def named(kind: type[Named], name: str, param: str) -> Named:
    known = {member.value: member for member in kind}
    check(name in known, param, f"{name!r} is unknown; there are {', '.join(known)}")
    return known[name]


def check_sampling(params: DecodingParams) -> None:
    """Each number on its own."""
    warmth, share, count = params.temperature, params.top_p, params.top_k
    check(math.isfinite(warmth) and warmth >= 0, "temperature", f"must be finite and not negative, got {warmth}")
    check(0 < share <= 1, "top_p", f"must lie in (0, 1], got {share}")
    check(count is None or count >= 1, "top_k", f"must be at least 1, got {count}")
    weight = params.guidance
    check(0 <= weight <= MAX_GUIDANCE, "guidance", f"must lie in 0..{MAX_GUIDANCE:g}, got {weight}")
    check(params.remask >= 0, "remask", f"must not be negative, got {params.remask}")
    least, factor = params.threshold, params.factor
    check(least is None or 0 <= least <= 1, "threshold", f"must lie in 0..1, got {least}")
    check(
        factor is None or (math.isfinite(factor) and factor >= 0),
        "factor",
        f"must be finite and not negative, got {factor}",
    )


def check_combination(params: DecodingParams, unmasking: Unmasking, policy: str, *, keeps_kv: bool) -> None:
    """What goes together."""
    for param, rule in (("threshold", Unmasking.THRESHOLD), ("factor", Unmasking.FACTOR)):
        unused = getattr(params, param) is not None and unmasking is not rule
        check(not unused, param, f"needs unmasking {rule.value}, got {unmasking.value}")
    check(
        not (params.remask and unmasking.is_adaptive),
        "remask",
        f"needs an unmasking rule that keeps to a timetable, got unmasking {unmasking.value}",
    )
    check(
        not (params.guidance and keeps_kv),
        "guidance",
        f"needs policy none, which recomputes everything with and without the prompt, got policy {policy}",
    )


def check_bias(params: DecodingParams, model: ModelConfig) -> None:
    tokens = [token_id for token_id, _ in params.logit_bias]
    foreign = next((token_id for token_id in tokens if not 0 <= token_id < model.vocab_size), None)
    check(foreign is None, "logit_bias", f"names token id {foreign}; ids lie in 0..{model.vocab_size - 1}")
    check(
        model.mask_token_id not in tokens,
        "logit_bias",
        f"names the mask token {model.mask_token_id}, which is never chosen",
    )
    check(len(set(tokens)) == len(tokens), "logit_bias", "names a token id twice")
    beyond = next((bias for _, bias in params.logit_bias if not -MAX_BIAS <= bias <= MAX_BIAS), None)
    check(beyond is None, "logit_bias", f"must lie in -{MAX_BIAS:g}..{MAX_BIAS:g}, got {beyond}")
