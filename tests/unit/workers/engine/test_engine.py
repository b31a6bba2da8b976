"""What callers of the engine may rely on: independence of the batch, ends, errors, aborts, seeds."""

from __future__ import annotations

import random

import pytest
import torch

from tests.unit.workers.tiny import (
    PAGE_TOKENS,
    TINY,
    Answer,
    drain,
    engine_of,
    prompt_of,
    request_of,
    run_all,
    run_one,
    tiny_model,
)
from workers.api import FinishReason, GenerateRequest
from workers.config import EngineConfig, KVConfig
from workers.errors import InvalidRequestError, NonFiniteLogitsError, OverloadedError, StepFailedError
from workers.models.layers import Transformer
from workers.scheduler.policy import POLICIES

TABLE = {0: 1, 50: 2, 80: 3}
PAGE_BYTES = 2 * PAGE_TOKENS * TINY.hidden_size * 4


def any_request(draw: random.Random, number: int) -> GenerateRequest:
    """A request of any policy and shape; prompts share some prefixes."""
    prefix = draw.choice((0, 9, 24))
    prompt = prompt_of(prefix, seed=prefix) + prompt_of(draw.randint(1, 12), seed=number)
    canvas = draw.randint(1, 16)
    block = draw.randint(1, canvas)
    policy = draw.choice(sorted(POLICIES))
    flags = {"anchors": 0.4, "skip_refresh": True} if policy == "lean" and number % 2 else {}
    return request_of(
        prompt,
        canvas,
        prefixes=[prefix] if prefix else [],
        request_id=f"r{number}",
        policy=policy,
        block_length=block,
        num_steps=-(-canvas // block) * draw.randint(1, block),
        refresh_interval=draw.randint(0, 6),
        reuse_depth=draw.choice((None, None, 0, 2)),
        temperature=draw.choice((0.0, 0.0, 0.7)),
        seed=number,
        **flags,
    )


@pytest.mark.parametrize("seed", range(6))
def test_a_result_does_not_depend_on_the_batch(seed: int) -> None:
    draw = random.Random(seed)
    loaded = tiny_model(seed, depth_table=TABLE)
    requests = [any_request(draw, number) for number in range(10)]
    alone = [run_one(engine_of(loaded), request) for request in requests]
    engine = engine_of(loaded, engine=EngineConfig(max_batch=4, max_heavy_rows=40))
    answers: dict[str, Answer] = {}
    for request in requests:  # they join at any step
        engine.submit(request)
        answers[request.request_id] = Answer()
        for _ in range(draw.randint(0, 3)):
            for outcome in engine.step():
                answers[outcome.request_id].take(outcome)
    drain(engine, answers)
    assert [answer.token_ids for answer in answers.values()] == [answer.token_ids for answer in alone]
    engine.check_integrity()


def test_one_expensive_pass_a_step_beside_cheap_ones() -> None:
    loaded = tiny_model()
    engine = engine_of(loaded)
    cheap = request_of(prompt_of(8), 8, prefixes=[6], request_id="cheap", policy="prefix-naive", num_steps=8)
    engine.submit(cheap)
    engine.step()
    for number in range(3):
        engine.submit(request_of(prompt_of(8), 8, request_id=f"full{number}", policy="none"))
    for _ in range(4):
        plan = engine.scheduler.schedule()
        heavy = [scheduled.sequence.id for scheduled in plan.passes if scheduled.run.is_heavy]
        assert len(heavy) == 1
        assert [scheduled.sequence.id for scheduled in plan.passes if not scheduled.run.is_heavy] == ["cheap"]
        engine.scheduler.apply(plan, engine.runner.run(plan))


def test_full_passes_take_turns() -> None:
    engine = engine_of(tiny_model(), engine=EngineConfig(max_heavy_rows=1))
    for number in range(3):
        engine.submit(request_of(prompt_of(8), 8, request_id=f"r{number}", policy="none"))
    served = []
    for _ in range(6):
        plan = engine.scheduler.schedule()
        served += [scheduled.sequence.id for scheduled in plan.passes]
        engine.scheduler.apply(plan, engine.runner.run(plan))
    assert served == ["r0", "r1", "r2", "r0", "r1", "r2"]


def test_an_answer_ends_at_eos() -> None:
    """The head is turned so that EOS wins early; running on would give the same text."""
    loaded = tiny_model(5)
    assert isinstance(loaded.model, Transformer)
    answer = run_one(engine_of(loaded), request_of(prompt_of(10), 16, policy="none", block_length=4, num_steps=16))
    eos_like = answer.token_ids[5]
    config = loaded.config
    head = loaded.model.head.weight
    head[[config.eos_token_id, eos_like]] = head[[eos_like, config.eos_token_id]]
    embedding = loaded.model.embedding.weight
    embedding[[config.eos_token_id, eos_like]] = embedding[[eos_like, config.eos_token_id]]
    prompt = [config.eos_token_id if token == eos_like else token for token in prompt_of(10)]
    stopped = run_one(engine_of(loaded), request_of(prompt, 16, policy="none", block_length=4, num_steps=16))
    first = answer.token_ids.index(eos_like)
    assert stopped.token_ids == answer.token_ids[:first]
    assert stopped.reason is FinishReason.STOP
    assert stopped.usage is not None
    assert answer.usage is not None
    assert stopped.usage.completion_tokens == first
    assert stopped.usage.num_steps < answer.usage.num_steps == 16
    assert answer.reason is FinishReason.LENGTH


def test_tokens_come_in_order_and_once() -> None:
    engine = engine_of(tiny_model(2))
    engine.submit(request_of(prompt_of(10), 24, policy="none", block_length=8, num_steps=24))
    frontier = 0
    while engine.has_work:
        [sequence] = [scheduled.sequence for scheduled in engine.scheduler.schedule().passes]
        for outcome in engine.step():
            frontier += len(outcome.token_ids)  # type: ignore[union-attr]
            assert not sequence.canvas.masked(range(10, 10 + frontier))
    assert frontier == 24


def test_seeds_reproduce_and_differ() -> None:
    loaded = tiny_model(1)

    def sample(seed: int) -> tuple[int, ...]:
        request = request_of(prompt_of(10), 24, policy="none", temperature=1.0, seed=seed)
        return run_one(engine_of(loaded), request).token_ids

    assert sample(1) == sample(1)
    assert sample(1) != sample(2)


def test_the_second_request_reads_the_first_ones_entry() -> None:
    engine = engine_of(tiny_model(depth_table=TABLE))
    first, second = (run_one(engine, request_of(prompt_of(30), 8, prefixes=[24], request_id=name)) for name in "ab")
    assert first.usage is not None
    assert second.usage is not None
    assert (first.usage.cached_tokens, second.usage.cached_tokens) == (0, 24)
    assert first.usage.num_forwards == second.usage.num_forwards + 1
    assert first.usage.reuse_depth == second.usage.reuse_depth == 2
    assert first.token_ids == second.token_ids
    stats = engine.stats()
    assert (stats.num_prefix_misses, stats.num_prefix_hits, stats.prefix_entries) == (1, 1, 1)


def test_salts_keep_entries_apart() -> None:
    engine = engine_of(tiny_model(depth_table=TABLE))
    for salt in "xy":
        answer = run_one(engine, request_of(prompt_of(30), 8, prefixes=[24], salt=salt))
        assert answer.usage is not None
        assert answer.usage.cached_tokens == 0


def test_a_full_pool_makes_requests_wait_not_fail() -> None:
    loaded = tiny_model(depth_table=TABLE)
    kv = KVConfig(pool_bytes=48 * 1024, entry_bytes=24 * 1024, page_tokens=4)  # about one request at a time
    engine = engine_of(loaded, kv=kv)
    requests = [
        request_of(prompt_of(30, seed), 8, prefixes=[24], request_id=str(seed), refresh_interval=2) for seed in range(6)
    ]
    for request in requests:
        engine.submit(request)
    engine.step()
    assert engine.scheduler.num_waiting > 0
    answers = {request.request_id: Answer() for request in requests}
    drain(engine, answers)
    assert all(answer.reason for answer in answers.values())
    engine.check_integrity()


@pytest.mark.parametrize(
    ("param", "request_"),
    [
        ("max_tokens", request_of([1, 2], 0)),
        ("max_tokens", request_of([1] * 200, 57)),
        ("token_ids", request_of([], 8)),
        ("token_ids", request_of([1, 97], 8)),
        ("steps", request_of([1], 8, policy="none", block_length=2, num_steps=3)),
        ("steps", request_of([1], 8, timetable="dream", num_steps=10**12)),
        ("block_length", request_of([1], 8, policy="none", block_length=0)),
        ("policy", request_of([1], 8, policy="psychic")),
        ("refresh_interval", request_of([1], 8, refresh_interval=-1)),
        ("reuse_depth", request_of([1], 8, reuse_depth=-1)),
        ("temperature", request_of([1], 8, temperature=float("nan"))),
        ("temperature", request_of([1], 8, temperature=-0.1)),
        ("seed", request_of([1], 8, seed=-1)),
    ],
)
def test_a_bad_value_is_refused_by_name(param: str, request_: GenerateRequest) -> None:
    engine = engine_of(tiny_model())
    with pytest.raises(InvalidRequestError, match=param) as refusal:
        engine.submit(request_)
    assert refusal.value.param == param
    assert not engine.has_work


def test_a_request_that_never_fits_is_refused() -> None:
    engine = engine_of(tiny_model(), kv=KVConfig(pool_bytes=8192, entry_bytes=0, page_tokens=4))
    with pytest.raises(InvalidRequestError, match=r"kv\.pool_bytes"):
        engine.submit(request_of(prompt_of(100), 20, policy="bicache"))


def test_too_many_requests_are_refused() -> None:
    engine = engine_of(tiny_model(), engine=EngineConfig(max_batch=1, max_waiting=1))
    for name in "ab":
        engine.submit(request_of([1], 8, request_id=name))
    with pytest.raises(OverloadedError, match=r"engine\.max_waiting"):
        engine.submit(request_of([1], 8, request_id="c"))


def test_an_id_in_use_is_refused() -> None:
    engine = engine_of(tiny_model())
    engine.submit(request_of([1], 8))
    with pytest.raises(InvalidRequestError, match="in use"):
        engine.submit(request_of([1], 8))


def test_non_finite_logits_fail_their_request_alone() -> None:
    loaded = tiny_model()
    assert isinstance(loaded.model, Transformer)
    loaded.model.embedding.weight[7] = torch.nan
    answers = run_all(
        engine_of(loaded),
        [request_of([7, 1], 4, request_id="sick"), request_of([5, 1], 4, request_id="well")],
    )
    assert isinstance(answers["sick"].error, NonFiniteLogitsError)
    assert answers["well"].reason is not None


def test_a_failed_step_ends_its_requests_and_not_the_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = tiny_model()
    engine = engine_of(loaded)
    with monkeypatch.context() as patch:
        patch.setattr(loaded.model, "logits", lambda _: 1 / 0)
        answer = run_one(engine, request_of([1, 2], 4))
    assert isinstance(answer.error, StepFailedError)
    assert "ZeroDivisionError" in str(answer.error)
    assert run_one(engine, request_of([1, 2], 4)).reason is not None
    engine.check_integrity()


def test_a_failed_build_ends_its_readers_and_is_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = tiny_model(depth_table=TABLE)
    engine = engine_of(loaded)
    requests = [request_of(prompt_of(20), 4, prefixes=[16], request_id=name) for name in "ab"]
    with monkeypatch.context() as patch:
        patch.setattr(loaded.model, "rope", lambda _: 1 / 0)
        answers = run_all(engine, requests)
    assert all(isinstance(answer.error, StepFailedError) for answer in answers.values())
    assert engine.stats().prefix_entries == 0
    assert run_one(engine, requests[0]).reason is not None
    engine.check_integrity()


def test_aborts_free_everything_within_a_step() -> None:
    draw = random.Random(0)
    loaded = tiny_model(depth_table=TABLE)
    engine = engine_of(loaded)
    for round_ in range(334):
        for number in range(3):
            engine.submit(any_request(draw, 3 * round_ + number))
        for _ in range(draw.randint(0, 4)):
            engine.step()
        for number in range(3):
            engine.abort(f"r{3 * round_ + number}")
        assert not engine.has_work
        engine.check_integrity()
        assert engine.num_used_pages == engine.stats().prefix_bytes // PAGE_BYTES


def test_a_literal_mask_token_in_the_prompt_stays_text() -> None:
    loaded = tiny_model(4)
    mask = loaded.config.mask_token_id
    engine = engine_of(loaded)
    engine.submit(request_of([3, mask, 5, mask], 6, policy="none"))
    [scheduled] = engine.scheduler.schedule().passes
    sequence = scheduled.sequence
    answers = {"r": Answer()}
    drain(engine, answers)
    assert sequence.canvas.token_ids[:4] == [3, mask, 5, mask]
    assert len(answers["r"].token_ids) <= 6
    assert mask not in answers["r"].token_ids


def test_a_canvas_of_one_token_behind_a_prompt_of_one() -> None:
    answer = run_one(engine_of(tiny_model()), request_of([1], 1))
    assert answer.usage is not None
    assert answer.usage.num_steps == 1
