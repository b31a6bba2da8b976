"""Whole requests under every rule against plain decoders."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
import torch

from tests.unit.workers.decoding.decoders import Denoiser, dream, quota
from tests.unit.workers.decoding.requests import EOS, MASK, dream_model, infill_request, layout, rules_of
from tests.unit.workers.engine.reference import Decoder
from tests.unit.workers.tiny import engine_of, prompt_of, request_of, run_one, tiny_model
from workers.api import FinishReason
from workers.config import EngineConfig
from workers.decoding.rules import Unmasking


@pytest.mark.parametrize("unmasking", Unmasking)
@pytest.mark.parametrize("seed", range(4))
def test_every_rule_decodes_as_defined(unmasking: Unmasking, seed: int) -> None:
    """Bias makes EOS common, so that some answers end early."""
    draw = random.Random(seed)
    canvas = draw.randint(4, 20)
    block = draw.randint(2, canvas)
    steps = draw.randint(1, block)
    temperature, top_p, top_k = draw.choice(((0.0, 1.0, None), (0.8, 0.7, None), (1.0, 1.0, 4)))
    own: dict[str, float] = {}
    if unmasking in {Unmasking.THRESHOLD, Unmasking.FACTOR}:
        own = {unmasking.value: 0.3 if unmasking is Unmasking.THRESHOLD else 1.2}
    shared = {"temperature": temperature, "top_p": top_p, "top_k": top_k, "logit_bias": ((EOS, 2.0),), **own}
    request = request_of(
        prompt_of(9, seed),
        canvas,
        policy="none",
        block_length=block,
        num_steps=None if own else steps * -(-canvas // block),
        unmasking=unmasking.value,
        seed=seed,
        min_tokens=3,
        **shared,
    )
    loaded = tiny_model(seed)
    plain = Denoiser(loaded, *layout(request), rules_of(request, unmasking=unmasking, **shared), seed)
    answer = run_one(engine_of(loaded), request)
    expected = plain.decode(block, quota(block if own else steps))
    assert answer.token_ids == expected
    assert len(expected) >= 3
    assert answer.usage is not None
    assert answer.usage.num_steps == plain.num_steps or answer.reason is FinishReason.STOP


@pytest.mark.parametrize("unmasking", ["maskgit_plus", "topk_margin", "entropy"])
@pytest.mark.parametrize("seed", range(5))
def test_dream_decodes_as_published(unmasking: str, seed: int) -> None:
    """Its loop, written again: shifted logits, n = int(masked * (1 - s/t)), everything in the last step."""
    loaded, draw = dream_model(seed), random.Random(seed)
    prompt, canvas = prompt_of(draw.randint(1, 15), seed), draw.randint(1, 24)
    steps = draw.randint(1, 20)
    dense = Decoder(loaded, prompt, canvas)
    times = torch.linspace(1, 1e-3, steps + 1)
    for i in range(steps):
        logits, _ = dense.full()
        logits = torch.cat((logits[:1], logits[:-1]))[dense.masked]
        probabilities = logits.softmax(-1)
        confidence = probabilities.max(-1).values
        if unmasking == "topk_margin":
            ranked = probabilities.sort(descending=True).values
            confidence = ranked[:, 0] - ranked[:, 1]
        if unmasking == "entropy":
            confidence = (probabilities * (probabilities + 1e-10).log()).sum(-1)
        logits[:, MASK] = -torch.inf
        num_masked = dense.masked.sum() / 1
        count = int(num_masked * (1 - times[i + 1] / times[i])) if i < steps - 1 else int(num_masked)
        chosen = dense.masked.nonzero().squeeze(-1)[confidence.sort(descending=True, stable=True).indices[:count]]
        tokens = logits.argmax(-1)[confidence.sort(descending=True, stable=True).indices[:count]]
        dense.tokens[chosen], dense.masked[chosen] = tokens, False
    request = request_of(prompt, canvas, policy="none", block_length=canvas, num_steps=steps, unmasking=unmasking)
    assert run_one(engine_of(loaded), request).token_ids == dense.text()


@pytest.mark.parametrize("timetable", ["quota", "dream"])
@pytest.mark.parametrize("unmasking", [Unmasking.ORIGIN, Unmasking.LOW_CONFIDENCE])
def test_rules_and_timetables_combine(timetable: str, unmasking: Unmasking) -> None:
    for seed in range(4):
        loaded = dream_model(seed)
        request = request_of(
            prompt_of(7, seed), 16, policy="none", block_length=8, num_steps=10, seed=seed, timetable=timetable,
            unmasking=unmasking.value,
        )  # fmt: skip
        plain = Denoiser(loaded, *layout(request), rules_of(request, unmasking=unmasking), seed)
        pace = dream(5) if timetable == "dream" else quota(5)
        assert run_one(engine_of(loaded), request).token_ids == plain.decode(8, pace)


def test_each_architecture_has_its_authors_rule() -> None:
    for loaded, unmasking, timetable in (
        (tiny_model(1), "low_confidence", "quota"),
        (dream_model(1), "entropy", "dream"),
    ):
        plain = request_of(prompt_of(7), 20, policy="none", block_length=20, num_steps=9)
        named = replace(plain, params=replace(plain.params, unmasking=unmasking, timetable=timetable))
        assert run_one(engine_of(loaded), plain).token_ids == run_one(engine_of(loaded), named).token_ids


@pytest.mark.parametrize("seed", range(6))
def test_guidance_is_lladas(seed: int) -> None:
    draw = random.Random(seed)
    request = infill_request(draw, seed, block_length=4, num_steps=40, guidance=draw.choice((0.5, 2.0)))
    loaded = tiny_model(seed)
    plain = Denoiser(loaded, *layout(request), rules_of(request, guidance=request.params.guidance))
    num_blocks = -(-len(plain.fills) // 4)
    expected = plain.decode(4, quota(40 // num_blocks))
    engine = engine_of(loaded)
    answer = run_one(engine, request)
    assert answer.token_ids == expected
    assert answer.usage is not None
    assert answer.usage.policy == "none"
    assert answer.usage.num_forwards == 2 * answer.usage.num_steps == engine.stats().num_forwards


def test_guided_passes_count_twice_in_the_budget() -> None:
    for guidance, num_passes in ((1.0, 1), (0.0, 3)):
        engine = engine_of(tiny_model(), engine=EngineConfig(max_heavy_rows=60))
        for name in "abc":
            engine.submit(request_of(prompt_of(12), 8, request_id=name, policy="none", guidance=guidance))
        assert len(engine.scheduler.schedule().passes) == num_passes


@pytest.mark.parametrize("seed", range(8))
def test_remasking_gives_unlikely_tokens_a_second_chance(seed: int) -> None:
    draw = random.Random(seed)
    steps, remask = draw.randint(2, 8), draw.randint(1, 3)
    loaded = tiny_model(seed)
    request = request_of(
        prompt_of(9, seed), 24, policy="none", block_length=12, num_steps=2 * steps, remask=remask, min_tokens=24
    )
    plain = Denoiser(loaded, *layout(request), rules_of(request, remask=remask))
    engine = engine_of(loaded)
    assert run_one(engine, request).token_ids == plain.decode(12, quota(steps))
    assert plain.num_steps == 2 * steps
    assert engine.stats().num_canvas_tokens == 24


def test_remasking_changes_answers() -> None:
    once, twice = (
        run_one(engine_of(tiny_model(2)), request_of(prompt_of(9), 32, policy="none", num_steps=16, remask=remask))
        for remask in (0, 2)
    )
    assert once.token_ids != twice.token_ids
