"""Requests that read a shared context, and go by its newest epoch from block to block, or don't."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cache_service.core.hashing import prefix_keys
from cache_service.core.types import Context
from tests.unit.workers.engine.contexts import BLOCK, TAIL, content, reading
from tests.unit.workers.tiny import TINY, Answer, engine_of, prompt_of, request_of, run_one, tiny_model
from workers.api import ContextMode, GenerateRequest, PrefixCandidate
from workers.config import BiCacheConfig
from workers.engine.engine import Engine
from workers.errors import InvalidRequestError
from workers.scheduler.plan import EpochQuestion

TABLE = {0: 1, 50: 2, 80: 3}


def follow(engine: Engine, request: GenerateRequest, newest: dict[int, Context]) -> Answer:
    """Run to the end; `newest` says from which block on which content is the newest."""
    answer = Answer()
    engine.submit(request)
    while engine.scheduler.num_running or engine.scheduler.num_waiting:
        assert engine.has_work
        for outcome in engine.step():
            answer.take(outcome)
        for question in engine.take_questions():
            known = [context for block, context in newest.items() if block <= question.block_index]
            for failure in engine.answer(question, known[-1] if known else None):
                answer.take(failure)
    return answer


def epochs(answer: Answer) -> list[int]:
    assert answer.usage is not None
    return list(answer.usage.epochs)


@given(
    seed=st.integers(0, 5),
    old_length=st.integers(1, 20),
    new_length=st.integers(1, 20),
    num_blocks=st.integers(1, 4),
    data=st.data(),
    policy=st.sampled_from(["none", "dual", "lean", "bicache-dual"]),
    refresh_interval=st.sampled_from([1, 1000]),
)
@settings(max_examples=60, deadline=None)
def test_a_followed_request_is_one_that_begins_again_at_that_block(
    seed: int,
    old_length: int,
    new_length: int,
    num_blocks: int,
    data: st.DataObject,
    policy: str,
    refresh_interval: int,
) -> None:
    loaded = tiny_model(seed, depth_table=TABLE)
    old, new = content(0, prompt_of(old_length, seed)), content(1, prompt_of(new_length, seed + 50))
    at_block = data.draw(st.integers(0, num_blocks - 1))
    params = {"policy": policy, "refresh_interval": refresh_interval, "min_tokens": num_blocks * BLOCK}

    engine = engine_of(loaded)
    followed = follow(engine, reading(old, num_blocks, **params), {at_block: new})

    pinned = run_one(engine_of(loaded), reading(old, num_blocks, mode=ContextMode.PIN, **params))
    before = pinned.token_ids[: at_block * BLOCK]
    left = num_blocks - at_block
    rest = {"num_steps": left * BLOCK, "min_tokens": left * BLOCK}
    restarted = run_one(engine_of(loaded), reading(new, left, mode=ContextMode.PIN, written=before, **(params | rest)))
    assert followed.token_ids == before + restarted.token_ids
    assert epochs(followed) == ([0, 1] if at_block else [1])
    assert followed.usage is not None
    assert followed.usage.prompt_tokens == new_length + len(TAIL)
    engine.check_integrity()
    assert engine.stats().num_running == 0


def test_a_pinned_request_asks_nothing() -> None:
    engine = engine_of(tiny_model())
    answer = follow(engine, reading(content(3, prompt_of(8)), 3, mode=ContextMode.PIN), {0: content(4, prompt_of(9))})
    assert epochs(answer) == [3]


def test_no_pass_runs_before_the_epoch_is_known() -> None:
    engine = engine_of(tiny_model())
    engine.submit(reading(content(0, prompt_of(8)), 2))
    engine.step()
    [question] = engine.take_questions()

    assert not engine.has_work
    assert engine.stats().num_forwards == 0
    engine.answer(question, None)
    assert engine.has_work
    for _ in range(BLOCK):
        engine.step()
    assert [asked.block_index for asked in engine.take_questions()] == []
    engine.step()
    assert [asked.block_index for asked in engine.take_questions()] == [1]


def test_others_go_on_while_one_waits_for_its_answer() -> None:
    engine = engine_of(tiny_model())
    engine.submit(replace(reading(content(0, prompt_of(8)), 2), request_id="waits"))
    engine.submit(request_of(prompt_of(8), 8, request_id="runs", policy="none"))
    ended = []
    while engine.has_work:
        ended += [outcome.request_id for outcome in engine.step() if getattr(outcome, "finish_reason", None)]
    assert ended == ["runs"]
    engine.abort("waits")
    assert engine.num_used_pages == 0


@pytest.mark.parametrize(("max_staleness", "read"), [(0, [0, 1, 2]), (1, [0, 2]), (2, [0])])
def test_a_staleness_budget_saves_moves(max_staleness: int, read: list[int]) -> None:
    versions = [content(epoch, prompt_of(8 + epoch, seed=epoch)) for epoch in range(3)]
    engine = engine_of(tiny_model())
    answer = follow(
        engine,
        reading(versions[0], 3, max_staleness=max_staleness, min_tokens=12),
        dict(enumerate(versions)),
    )
    assert epochs(answer) == read
    assert engine.stats().num_moved == len(read) - 1


def test_a_context_that_is_gone_or_unknown_leaves_the_request_as_it_is() -> None:
    loaded = tiny_model()
    request = reading(content(0, prompt_of(8)), 3)
    answer = follow(engine_of(loaded), request, {})
    assert answer.token_ids == run_one(engine_of(loaded), replace(request, context=None)).token_ids
    assert epochs(answer) == [0]


@pytest.mark.parametrize(("length", "token_id"), [(250, 1), (8, 5000)])
def test_content_that_cannot_be_read_ends_the_request(length: int, token_id: int) -> None:
    engine = engine_of(tiny_model())
    answer = follow(engine, reading(content(0, prompt_of(8)), 3), {1: content(1, (token_id,) * length)})
    assert isinstance(answer.error, InvalidRequestError)
    assert answer.error.param == "context"
    assert answer.error.code == ("context_length_exceeded" if length == 250 else None)
    assert engine.num_used_pages == 0


def test_the_new_content_is_cached_under_its_own_epoch() -> None:
    engine = engine_of(tiny_model(depth_table=TABLE))
    old, new = content(0, prompt_of(24)), content(1, prompt_of(26, seed=1))
    first = follow(engine, reading(old, 2, policy="lean", min_tokens=8), {1: new})
    changes = engine.take_changes()
    assert [entry.key for entry in changes.live] == [old.key, new.key]
    assert first.usage is not None
    assert first.usage.cached_tokens == 0

    second = run_one(engine, reading(new, 1, mode=ContextMode.PIN, policy="lean"))
    assert second.usage is not None
    assert second.usage.cached_tokens == 26


@pytest.mark.parametrize("length", [3, 12])
def test_the_least_length_counts_from_where_the_canvas_now_begins(length: int) -> None:
    request = reading(content(0, prompt_of(8)), 3, min_tokens=6, logit_bias=((TINY.eos_token_id, 100.0),))
    answer = follow(engine_of(tiny_model()), request, {1: content(1, prompt_of(length, seed=1))})
    assert len(answer.token_ids) == 6


def test_a_late_answer_changes_nothing() -> None:
    engine = engine_of(tiny_model())
    request = reading(content(0, prompt_of(8)), 2)
    stale = EpochQuestion(request.request_id, 1, request.context)  # type: ignore[arg-type]
    engine.submit(request)
    engine.step()
    [question] = engine.take_questions()
    engine.answer(stale, content(1, prompt_of(3)))
    assert not engine.has_work
    engine.answer(question, None)
    engine.answer(question, content(1, prompt_of(3)))
    engine.step()
    assert engine.stats().num_forwards == 1


def test_boundaries_behind_the_context_move_with_it() -> None:
    loaded = tiny_model(depth_table=TABLE)
    old, new = content(0, prompt_of(20)), content(1, prompt_of(23, seed=1))

    def turns(context: Context, mode: ContextMode) -> GenerateRequest:
        request = reading(context, 2, mode=mode, policy="lean")
        whole = len(context.token_ids)
        lengths = [whole, whole + 3]
        keys = prefix_keys("tiny", "", request.token_ids, lengths)
        return replace(request, prefixes=tuple(map(PrefixCandidate, lengths, keys)))

    engine = engine_of(loaded, bicache=BiCacheConfig(probe_positions=0, cut_share=1.0))
    follow(engine, turns(old, ContextMode.FOLLOW), {0: new})
    again = run_one(engine, turns(new, ContextMode.PIN))
    assert again.usage is not None
    assert again.usage.cached_tokens == 26
