"""The engine behind asyncio: streams, departures, overload and shutdown."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import replace

import pytest

from tests.support.waiting import until
from tests.unit.workers.engine.contexts import content, reading
from tests.unit.workers.tiny import engine_of, prompt_of, request_of, run_one, tiny_model
from workers.api import ContextMode, ContextRead, ContextReply, GenerateChunk, GenerateRequest
from workers.bicache.entry import Changes
from workers.config import EngineConfig
from workers.engine.async_engine import AsyncEngine, NullObserver
from workers.engine.engine import Engine
from workers.errors import EngineClosedError, InvalidRequestError, OverloadedError, StepFailedError


@pytest.fixture
def engine() -> Engine:
    return engine_of(tiny_model(depth_table={0: 1}), engine=EngineConfig(max_batch=2, max_waiting=4))


@pytest.fixture
def front(engine: Engine) -> Iterator[AsyncEngine]:
    with AsyncEngine(engine) as front:
        yield front


async def text(front: AsyncEngine, request: GenerateRequest) -> tuple[int, ...]:
    return tuple([token async for chunk in front.generate(request) for token in chunk.token_ids])


def long_request(name: str) -> GenerateRequest:
    return request_of(prompt_of(20), 200, request_id=name, policy="none", block_length=200, num_steps=200)


async def test_many_callers_get_what_each_gets_alone(front: AsyncEngine) -> None:
    requests = [request_of(prompt_of(10, seed), 12, request_id=str(seed)) for seed in range(5)]
    answers = await asyncio.gather(*(text(front, request) for request in requests))
    alone = engine_of(tiny_model(depth_table={0: 1}))
    assert list(answers) == [run_one(alone, request).token_ids for request in requests]


async def test_a_bad_request_is_refused(front: AsyncEngine) -> None:
    with pytest.raises(InvalidRequestError) as refusal:
        await text(front, request_of([1], 0))
    assert refusal.value.param == "max_tokens"


async def test_a_request_is_accepted_before_it_runs(front: AsyncEngine) -> None:
    running = [asyncio.create_task(text(front, long_request(name))) for name in "ab"]
    await until(lambda: front.num_running == 2)
    chunks = front.generate(long_request("c"))
    assert await anext(chunks) == GenerateChunk.acceptance("c")
    assert (front.num_running, front.stats().num_waiting) == (2, 1)
    await chunks.aclose()
    for task in running:
        task.cancel()
    await asyncio.gather(*running, return_exceptions=True)


async def test_closing_the_generator_aborts(front: AsyncEngine, engine: Engine) -> None:
    request = request_of(prompt_of(20), 200, request_id="a", policy="none", block_length=4, num_steps=200)
    chunks = front.generate(request)  # the first block's tokens come early
    while not (await anext(chunks)).token_ids:
        pass
    await chunks.aclose()
    await until(lambda: front.stats().num_aborted == 1)
    assert not engine.has_work
    assert engine.num_used_pages == 0


async def test_a_cancelled_caller_aborts(front: AsyncEngine, engine: Engine) -> None:
    task = asyncio.create_task(text(front, long_request("a")))
    await until(lambda: front.num_running == 1)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await until(lambda: front.stats().num_aborted == 1)
    assert not engine.has_work


async def test_a_second_caller_with_an_id_in_use_does_not_end_the_first(front: AsyncEngine) -> None:
    first = asyncio.create_task(text(front, request_of(prompt_of(20), 60, request_id="a", policy="none")))
    await until(lambda: front.num_running == 1)
    with pytest.raises(InvalidRequestError):
        await text(front, long_request("a"))
    assert await first


async def test_overload_is_refused_at_once(front: AsyncEngine) -> None:
    tasks = [asyncio.create_task(text(front, long_request(str(number)))) for number in range(6)]
    await until(lambda: front.stats().num_requests == 6)
    with pytest.raises(OverloadedError):
        await text(front, long_request("late"))
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def test_a_request_waits_for_the_newest_content_of_its_context(engine: Engine) -> None:
    asked: asyncio.Queue[tuple[ContextRead, ContextReply]] = asyncio.Queue()
    loop = asyncio.get_running_loop()
    old, new = content(0, prompt_of(8)), content(1, prompt_of(9, seed=1))

    class Observer(NullObserver):
        def ask(self, read: ContextRead, reply: ContextReply) -> None:
            loop.call_soon_threadsafe(asked.put_nowait, (read, reply))

    front = AsyncEngine(engine)
    front.connect(Observer())
    with front:
        task = asyncio.create_task(text(front, reading(old, 1)))
        read, reply = await asked.get()
        assert read.at.epoch == 0
        assert front.stats().num_forwards == 0
        reply(new)
        assert (
            await task
            == run_one(engine_of(tiny_model(depth_table={0: 1})), reading(new, 1, mode=ContextMode.PIN)).token_ids
        )


async def test_without_an_observer_to_ask_a_request_goes_on_as_it_is(front: AsyncEngine) -> None:
    request = reading(content(0, prompt_of(8)), 2)
    alone = engine_of(tiny_model(depth_table={0: 1}))
    assert await text(front, request) == run_one(alone, replace(request, context=None)).token_ids


async def test_shutdown_fails_what_is_open(engine: Engine) -> None:
    with AsyncEngine(engine) as front:
        task = asyncio.create_task(text(front, long_request("a")))
        await until(lambda: front.num_running == 1)
    with pytest.raises(EngineClosedError):
        await task
    assert not front.is_alive
    assert engine.num_used_pages == 0
    with pytest.raises(EngineClosedError):
        await text(front, long_request("b"))


async def test_a_broken_step_leaves_a_working_engine(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    with AsyncEngine(engine) as front:
        with monkeypatch.context() as patch:
            patch.setattr(engine.scheduler, "schedule", lambda: 1 / 0)
            with pytest.raises(StepFailedError):
                await text(front, request_of([1, 2], 4))
        assert await text(front, request_of([1, 2], 4))


async def test_entries_and_steps_are_reported(engine: Engine) -> None:
    heard: list[Changes] = []
    steps: list[float] = []

    class Observer(NullObserver):
        def apply(self, changes: Changes) -> None:
            heard.append(changes)

    front = AsyncEngine(engine, on_step=[steps.append])
    front.connect(Observer())
    with front:
        await text(front, request_of(prompt_of(20), 8, prefixes=[16]))
    assert [len(entry.token_ids) for changes in heard for entry in changes.live] == [16]
    assert len(steps) == front.stats().num_forwards


async def test_answered_requests_are_reported_and_abandoned_ones_are_not(engine: Engine) -> None:
    durations: list[float] = []
    with AsyncEngine(engine, on_answer=[durations.append]) as front:
        task = asyncio.create_task(text(front, long_request("a")))
        await until(lambda: front.num_running == 1)
        task.cancel()
        await asyncio.gather(*(text(front, request_of([1, 2], 4, request_id=name)) for name in "bc"))
        await until(lambda: front.num_running == 0)
    assert len(durations) == 2
    assert all(duration > 0 for duration in durations)
