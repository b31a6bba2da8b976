"""What is refused, and by which name."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest

from tests.unit.workers.decoding.requests import MASK
from tests.unit.workers.tiny import engine_of, request_of, tiny_model
from workers.api import GenerateRequest
from workers.errors import InvalidRequestError


def with_layout(holes: Sequence[int] = (), suffix: Sequence[int] = (), max_tokens: int = 4) -> GenerateRequest:
    return replace(request_of([1, 2, 3], max_tokens), holes=tuple(holes), suffix=tuple(suffix))


@pytest.mark.parametrize(
    ("param", "request_"),
    [
        ("unmasking", request_of([1], 8, unmasking="hope")),
        ("timetable", request_of([1], 8, timetable="never")),
        ("threshold", request_of([1], 8, unmasking="threshold", threshold=1.1)),
        ("threshold", request_of([1], 8, threshold=0.5)),
        ("factor", request_of([1], 8, unmasking="factor", factor=-1.0)),
        ("factor", request_of([1], 8, unmasking="factor", factor=float("inf"))),
        ("factor", request_of([1], 8, unmasking="threshold", factor=1.0)),
        ("top_p", request_of([1], 8, top_p=0.0)),
        ("top_p", request_of([1], 8, top_p=float("nan"))),
        ("top_k", request_of([1], 8, top_k=0)),
        ("logit_bias", request_of([1], 8, logit_bias=((97, 1.0),))),
        ("logit_bias", request_of([1], 8, logit_bias=((MASK, 1.0),))),
        ("logit_bias", request_of([1], 8, logit_bias=((1, 1.0), (1, 2.0)))),
        ("logit_bias", request_of([1], 8, logit_bias=((1, float("-inf")),))),
        ("logit_bias", request_of([1], 8, logit_bias=((1, 100.5),))),
        ("min_tokens", request_of([1], 8, min_tokens=9)),
        ("min_tokens", request_of([1], 8, min_tokens=-1)),
        ("guidance", request_of([1], 8, guidance=-0.5)),
        ("guidance", request_of([1], 8, guidance=1e308)),
        ("guidance", request_of([1], 8, guidance=1.0, policy="lean")),
        ("remask", request_of([1], 8, remask=-1)),
        ("remask", request_of([1], 8, remask=1, unmasking="factor")),
        ("holes", with_layout(holes=(1, 0))),
        ("holes", with_layout(holes=(0, 0))),
        ("holes", with_layout(holes=(3,))),
        ("suffix", with_layout(suffix=(97,))),
        ("max_tokens", with_layout(suffix=(1,) * 250)),
        ("max_tokens", with_layout(max_tokens=0)),
        ("token_ids", request_of([], 8)),
    ],
)
def test_a_bad_value_is_refused_by_name(param: str, request_: GenerateRequest) -> None:
    engine = engine_of(tiny_model())
    with pytest.raises(InvalidRequestError, match=param) as refusal:
        engine.submit(request_)
    assert refusal.value.param == param
    assert not engine.has_work


def test_a_combination_that_is_refused_names_both_sides() -> None:
    for request, other in (
        (request_of([1], 8, guidance=1.0, policy="dual"), "policy"),
        (request_of([1], 8, remask=1, unmasking="threshold"), "unmasking"),
        (request_of([1], 8, threshold=0.5), "unmasking"),
    ):
        with pytest.raises(InvalidRequestError, match=other):
            engine_of(tiny_model()).submit(request)
