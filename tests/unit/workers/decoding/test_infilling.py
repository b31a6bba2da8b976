"""Holes, a canvas, and text behind it."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest

from tests.unit.workers.decoding.decoders import Denoiser, quota
from tests.unit.workers.decoding.requests import EOS, TABLE, dream_model, infill_request, layout, rules_of
from tests.unit.workers.tiny import Answer, drain, engine_of, prompt_of, request_of, run_one, tiny_model
from workers.api import FinishReason
from workers.scheduler.policy import POLICIES


@pytest.mark.parametrize("policy", ["none", "dual"])
@pytest.mark.parametrize("seed", range(8))
def test_infilling_keeps_the_text_around_the_holes(seed: int, policy: str) -> None:
    draw = random.Random(seed)
    loaded = draw.choice((tiny_model, dream_model))(seed)
    block = draw.randint(1, 6)
    request = infill_request(
        draw, seed, policy=policy, block_length=block, num_steps=60, unmasking="low_confidence", timetable="quota"
    )
    plain = Denoiser(loaded, *layout(request), rules_of(request), keeps_kv=policy == "dual")
    num_blocks = -(-len(plain.fills) // min(block, len(plain.fills)))
    engine = engine_of(loaded)
    engine.submit(request)
    [scheduled] = engine.scheduler.schedule().passes
    answers = {request.request_id: Answer()}
    drain(engine, answers)
    assert answers[request.request_id].token_ids == plain.decode(block, quota(60 // num_blocks))
    given = set(range(len(plain.token_ids))) - set(plain.fills)
    assert all(scheduled.sequence.canvas.token_ids[i] == plain.token_ids[i] for i in given)


@pytest.mark.parametrize("policy", sorted(POLICIES))
def test_a_hole_is_part_of_no_prefix(policy: str) -> None:
    request = replace(request_of(prompt_of(30), 4, prefixes=[8, 24], policy=policy), holes=(12, 20))
    engine = engine_of(tiny_model(depth_table=TABLE))
    engine.submit(request)
    [task] = engine.scheduler._waiting
    assert [candidate.num_tokens for candidate in task.prefixes] == [8]
    answers = {"r": Answer()}
    drain(engine, answers)
    assert answers["r"].reason is not None
    assert answers["r"].usage is not None
    assert answers["r"].usage.prompt_tokens == 28


@pytest.mark.parametrize("seed", range(6))
def test_caches_that_are_renewed_at_every_step_infill_alike(seed: int) -> None:
    draw = random.Random(seed)
    request = infill_request(draw, seed, block_length=256, num_steps=10)
    longest = min((*request.holes, len(request.token_ids)))
    keyed = request_of(request.token_ids, 1, prefixes=[longest] if longest else [])
    loaded = tiny_model(seed, depth_table=TABLE)
    exact, cached = (
        run_one(
            engine_of(loaded),
            replace(
                request,
                prefixes=keyed.prefixes,
                params=replace(request.params, policy=policy, reuse_depth=0, refresh_interval=1),
            ),
        )
        for policy in ("none", "bicache")
    )
    assert cached.token_ids == exact.token_ids


def test_holes_and_canvas_come_in_order_and_eos_only_in_the_canvas() -> None:
    loaded = tiny_model(0)
    request = request_of(prompt_of(12), 6, policy="none", block_length=3, num_steps=12, logit_bias=((EOS, 100.0),))
    answer = run_one(engine_of(loaded), replace(request, holes=(0, 5, 6), suffix=(7, 8)))
    assert len(answer.token_ids) == 3
    assert EOS not in answer.token_ids
    assert answer.reason is FinishReason.STOP


def test_a_suffix_alone_is_enough_of_a_prompt() -> None:
    for loaded in (tiny_model(3), dream_model(3)):
        request = replace(request_of([], 5, policy="none", min_tokens=5), suffix=(3, 4, 5))
        assert len(run_one(engine_of(loaded), request).token_ids) == 5
