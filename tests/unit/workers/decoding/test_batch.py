"""Any rules together in one batch, and what callers see on the way."""

from __future__ import annotations

import random

import pytest

from tests.unit.workers.decoding.requests import EOS, TABLE, infill_request
from tests.unit.workers.tiny import Answer, drain, engine_of, prompt_of, request_of, run_one, tiny_model
from workers.api import GenerateChunk, GenerateRequest
from workers.config import EngineConfig
from workers.decoding.rules import Unmasking
from workers.scheduler.policy import POLICIES


def any_request(draw: random.Random, number: int) -> GenerateRequest:
    """Any rule with any parameters that go with it."""
    unmasking = draw.choice(list(Unmasking))
    guidance = draw.choice((0.0, 0.0, 1.0))
    return infill_request(
        draw,
        number,
        policy="none" if guidance else draw.choice(sorted(POLICIES)),
        block_length=draw.randint(1, 8),
        num_steps=draw.choice((None, 40)),
        unmasking=unmasking.value,
        timetable=draw.choice(("quota", "dream")),
        temperature=draw.choice((0.0, 0.7)),
        top_p=draw.choice((1.0, 0.8)),
        top_k=draw.choice((None, 5)),
        logit_bias=draw.choice(((), ((EOS, 1.0),))),
        guidance=guidance,
        remask=0 if unmasking.is_adaptive else draw.choice((0, 2)),
        seed=number,
    )


@pytest.mark.parametrize("seed", range(4))
def test_a_result_does_not_depend_on_the_batch(seed: int) -> None:
    draw = random.Random(seed)
    loaded = tiny_model(seed, depth_table=TABLE)
    requests = [any_request(draw, number) for number in range(12)]
    alone = [run_one(engine_of(loaded), request) for request in requests]
    engine = engine_of(loaded, engine=EngineConfig(max_batch=5, max_heavy_rows=60))
    answers = {request.request_id: Answer() for request in requests}
    for request in requests:  # they join at any step
        engine.submit(request)
        for _ in range(draw.randint(0, 3)):
            for outcome in engine.step():
                answers[outcome.request_id].take(outcome)
    drain(engine, answers)
    assert [answer.token_ids for answer in answers.values()] == [answer.token_ids for answer in alone]
    engine.check_integrity()


def test_every_chunk_says_what_it_took_so_far() -> None:
    engine = engine_of(tiny_model(2))
    engine.submit(request_of(prompt_of(10), 24, policy="none", block_length=8, num_steps=24, remask=1))
    counted: list[tuple[int, int]] = []
    length = 0
    while engine.has_work:
        for chunk in engine.step():
            assert isinstance(chunk, GenerateChunk)
            assert chunk.usage is not None
            length += len(chunk.token_ids)
            assert chunk.usage.completion_tokens == length
            counted.append((chunk.usage.num_steps, length))
    assert counted == sorted(counted)
    assert len(counted) > 3
