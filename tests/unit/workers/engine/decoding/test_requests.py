"""Whole requests under every rule: against plain decoders, in a batch and alone, with and without caches."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch

from tests.unit.workers.engine.decoding.decoders import Denoiser, dream, quota
from tests.unit.workers.engine.decoding.reference import Rules
from tests.unit.workers.engine.reference import Decoder
from tests.unit.workers.tiny import TINY, Answer, drain, engine_of, prompt_of, request_of, run_one, tiny_model
from workers.api import FinishReason, GenerateChunk, GenerateRequest
from workers.config import EngineConfig
from workers.errors import InvalidRequestError
from workers.models.loader import LoadedModel
from workers.scheduler.decoding import Decoding, Unmasking
from workers.scheduler.policy import POLICIES

EOS, MASK = TINY.eos_token_id, TINY.mask_token_id
TABLE = {0: 1, 50: 2, 80: 3}


def dream_model(seed: int) -> LoadedModel:
    return tiny_model(seed, architecture="dream", prediction_shift=1)  # type: ignore[arg-type]


def rules_of(request: GenerateRequest, **decoding: object) -> Rules:
    first_eos = len(request.token_ids) + request.params.min_tokens
    return Rules(Decoding(first_eos=first_eos, **decoding), MASK, EOS)  # type: ignore[arg-type]


def infill_request(draw: random.Random, number: int, **params: object) -> GenerateRequest:
    """Holes in the prompt, a canvas, and text behind it; each may be missing."""
    prompt = prompt_of(draw.randint(1, 20), seed=number)
    holes = tuple(sorted(draw.sample(range(len(prompt)), draw.randint(0, len(prompt) // 2))))
    canvas = draw.randint(0 if holes else 1, 12)
    request = request_of(prompt, canvas, request_id=f"r{number}", **params)
    return replace(request, holes=holes, suffix=prompt_of(draw.randint(0, 9), seed=number + 1))


def layout(request: GenerateRequest) -> tuple[list[int], list[int]]:
    """The whole sequence, and the positions to fill."""
    canvas = range(len(request.token_ids), len(request.token_ids) + request.max_tokens)
    return [*request.token_ids, *[0] * len(canvas), *request.suffix], [*request.holes, *canvas]


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
    """Its loop, written anew: shifted logits, n = int(masked * (1 - s/t)), everything in the last step."""
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
    for guidance, num_turns in ((1.0, 1), (0.0, 3)):
        engine = engine_of(tiny_model(), engine=EngineConfig(max_heavy_rows=60))
        for name in "abc":
            engine.submit(request_of(prompt_of(12), 8, request_id=name, policy="none", guidance=guidance))
        assert len(engine.scheduler.schedule().turns) == num_turns


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
    [turn] = engine.scheduler.schedule().turns
    answers = {request.request_id: Answer()}
    drain(engine, answers)
    assert answers[request.request_id].token_ids == plain.decode(block, quota(60 // num_blocks))
    given = set(range(len(plain.token_ids))) - set(plain.fills)
    assert all(turn.sequence.canvas.token_ids[i] == plain.token_ids[i] for i in given)


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
        refreshed += [turn.sequence.block_index for turn in plan.turns if turn.run.deep]
        engine.scheduler.commit(plan, engine.runner.run(plan))
    assert refreshed == [0, 4]


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
        ("min_tokens", request_of([1], 8, min_tokens=9)),
        ("min_tokens", request_of([1], 8, min_tokens=-1)),
        ("guidance", request_of([1], 8, guidance=-0.5)),
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


def test_a_suffix_alone_is_enough_of_a_prompt() -> None:
    for loaded in (tiny_model(3), dream_model(3)):
        request = replace(request_of([], 5, policy="none", min_tokens=5), suffix=(3, 4, 5))
        assert len(run_one(engine_of(loaded), request).token_ids) == 5
