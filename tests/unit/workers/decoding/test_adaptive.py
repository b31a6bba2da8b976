"""Requests whose confidence sets the pace."""

from __future__ import annotations

from dataclasses import replace

from tests.unit.workers.decoding.requests import EOS
from tests.unit.workers.tiny import engine_of, prompt_of, request_of, run_one, tiny_model
from workers.api import FinishReason


def test_an_adaptive_request_ends_at_eos_too() -> None:
    request = request_of(
        prompt_of(9), 16, policy="none", block_length=4, unmasking="threshold", threshold=1.0, min_tokens=5,
        logit_bias=((EOS, 100.0),),
    )  # fmt: skip
    answer = run_one(engine_of(tiny_model(0)), request)
    assert answer.reason is FinishReason.STOP
    assert len(answer.token_ids) == 5
    assert answer.usage is not None
    assert answer.usage.num_steps < 16


def test_an_adaptive_request_keeps_to_its_steps() -> None:
    """Where confidence is lacking, the timetable commits."""
    for num_steps in (2, 4, 16):
        request = request_of(
            prompt_of(9), 16, policy="none", block_length=8, num_steps=num_steps, unmasking="factor", factor=0.0,
            min_tokens=16,
        )  # fmt: skip
        answer = run_one(engine_of(tiny_model(0)), request)
        assert answer.usage is not None
        assert answer.usage.num_steps == num_steps


def test_a_threshold_of_one_is_not_reached_by_rounding() -> None:
    """Confidence is float64, as in Fast-dLLM: 1 - 1e-9 is less than 1."""
    request = request_of(
        prompt_of(9), 8, policy="none", block_length=8, unmasking="threshold", threshold=1.0, logit_bias=((7, 25.0),)
    )
    answer = run_one(engine_of(tiny_model(0)), request)
    assert answer.token_ids == (7,) * 8
    assert answer.usage is not None
    assert answer.usage.num_steps == 8


def test_refreshes_follow_the_steps_that_an_adaptive_request_took() -> None:
    """Every block takes one step here, so the fifth one begins after four."""
    request = request_of(
        prompt_of(12), 10, prefixes=[8], policy="bicache-dual", block_length=2, refresh_interval=4, reuse_depth=0,
        unmasking="threshold", threshold=0.0,
    )  # fmt: skip
    engine = engine_of(tiny_model(0))
    engine.submit(replace(request, params=replace(request.params, min_tokens=10)))
    refreshed = []
    while engine.has_work:
        plan = engine.scheduler.schedule()
        refreshed += [scheduled.sequence.block_index for scheduled in plan.passes if scheduled.run.deep]
        engine.scheduler.apply(plan, engine.runner.run(plan))
    assert refreshed == [0, 4]
