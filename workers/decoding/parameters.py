"""Checks a request's decoding parameters and fills in the model's defaults."""

from __future__ import annotations

import enum
from typing import TypeVar

from workers.api import PARAMETERS, DecodingParams, GenerateRequest
from workers.decoding.rules import Decoding, Unmasking
from workers.decoding.timetable import CommitSchedule
from workers.errors import check
from workers.models.base import ModelConfig

Named = TypeVar("Named", bound=enum.Enum)


def resolve_schedule(params: DecodingParams, model: ModelConfig) -> CommitSchedule:
    return (
        model.decoding.timing
        if params.timetable is None
        else enum_member(CommitSchedule, params.timetable, "timetable")
    )


def resolve_decoding(request: GenerateRequest, model: ModelConfig, *, policy: str, keeps_kv: bool) -> Decoding:
    """Return the decoding rule of a request under `policy`; `keeps_kv` says whether that keeps K/V between steps.

    Raises InvalidRequestError.
    """
    params = request.params
    unmasking = (
        model.decoding.unmasking if params.unmasking is None else enum_member(Unmasking, params.unmasking, "unmasking")
    )
    check_bounds(params)
    check_combination(params, unmasking, policy, keeps_kv=keeps_kv)
    check_bias(params, model)
    check(
        params.min_tokens <= request.max_tokens,
        "min_tokens",
        f"must lie in 0..max_tokens ({request.max_tokens}), got {params.min_tokens}",
    )
    defaults = Decoding()
    return Decoding(
        unmasking=unmasking,
        temperature=params.temperature,
        top_p=params.top_p,
        top_k=params.top_k,
        logit_bias=params.logit_bias,
        guidance=params.guidance,
        threshold=defaults.threshold if params.threshold is None else params.threshold,
        factor=defaults.factor if params.factor is None else params.factor,
        remask=params.remask,
        first_eos=len(request.token_ids) + params.min_tokens,
    )


def enum_member(kind: type[Named], name: str, param: str) -> Named:
    """Return the member of `kind` with this name. Raises InvalidRequestError for an unknown one."""
    known = {member.value: member for member in kind}
    check(name in known, param, f"{name!r} is unknown; there are {', '.join(known)}")
    return known[name]


def check_bounds(params: DecodingParams) -> None:
    """Raise InvalidRequestError for a number beyond its declared bounds."""
    for parameter in PARAMETERS:
        beyond = parameter.find_out_of_bounds(getattr(params, parameter.name))
        check(beyond is None, parameter.client_name, f"{parameter.bounds}, got {beyond}")


def check_combination(params: DecodingParams, unmasking: Unmasking, policy: str, *, keeps_kv: bool) -> None:
    """Raise InvalidRequestError for parameters that exclude each other."""
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
    """Raise InvalidRequestError if `logit_bias` names a token that is never chosen, or names one twice."""
    tokens = [token_id for token_id, _ in params.logit_bias]
    foreign = next((token_id for token_id in tokens if not 0 <= token_id < model.vocab_size), None)
    check(foreign is None, "logit_bias", f"names token id {foreign}; ids lie in 0..{model.vocab_size - 1}")
    check(
        model.mask_token_id not in tokens,
        "logit_bias",
        f"names the mask token {model.mask_token_id}, which is never chosen",
    )
    check(len(set(tokens)) == len(tokens), "logit_bias", "names a token id twice")
