"""Exceptions on the engine's thread: each is logged and counted, and strikes no request but its own."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace

import pytest

from tests.unit.workers.engine.contexts import content, reading
from tests.unit.workers.engine.test_async_engine import long_request, text, until
from tests.unit.workers.tiny import engine_of, prompt_of, request_of, run_one, tiny_model
from workers.api import ContextRead, ContextReply
from workers.bicache.entry import Changes
from workers.engine.async_engine import AsyncEngine, NullObserver
from workers.engine.engine import Engine
from workers.engine.faults import EngineFault
from workers.errors import EngineClosedError, StepFailedError, WorkerError


class BrokenError(Exception):
    pass


def raise_broken(*_: object, **__: object) -> None:
    raise BrokenError


class BrokenObserver(NullObserver):
    def apply(self, changes: Changes) -> None:
        raise BrokenError

    def ask(self, _read: ContextRead, reply: ContextReply) -> None:
        raise BrokenError


@pytest.fixture
def engine() -> Engine:
    return engine_of(tiny_model(depth_table={0: 1}))


@pytest.fixture
def faults() -> list[EngineFault]:
    return []


@pytest.fixture
def front(engine: Engine, faults: list[EngineFault]) -> AsyncEngine:
    return AsyncEngine(engine, on_fault=[faults.append])


def has_stack(caplog: pytest.LogCaptureFixture) -> bool:
    return any(record.exc_info and record.exc_info[0] is BrokenError for record in caplog.records)


async def test_a_command_that_raises_disturbs_no_request(
    front: AsyncEngine, faults: list[EngineFault], caplog: pytest.LogCaptureFixture
) -> None:
    with front:
        request = asyncio.create_task(text(front, long_request("a")))
        await until(lambda: front.num_running == 1)
        with pytest.raises(BrokenError):
            await asyncio.wrap_future(front.call(raise_broken))
        assert await request
    assert faults == [EngineFault.COMMAND]
    assert has_stack(caplog)


@pytest.mark.parametrize("name", ["submit", "abort"])
async def test_a_request_that_breaks_a_command_is_the_only_one_to_fail(
    front: AsyncEngine, engine: Engine, faults: list[EngineFault], monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    expects: dict[str, Callable[[], AbstractContextManager[object]]] = {
        "submit": lambda: pytest.raises(StepFailedError),
        "abort": nullcontext,
    }
    with front:
        first = asyncio.create_task(text(front, long_request("a")))
        await until(lambda: front.num_running == 1)
        with monkeypatch.context() as patch:
            patch.setattr(engine, name, raise_broken)
            with expects[name]():
                chunks = front.generate(long_request("b"))
                await anext(chunks)
                await chunks.aclose()
            await until(lambda: bool(faults))
        assert await first
    assert faults == [EngineFault.COMMAND]


async def test_a_context_that_breaks_its_answer_fails_the_request_that_asked(
    front: AsyncEngine, engine: Engine, faults: list[EngineFault], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "answer", raise_broken)
    with front:
        with pytest.raises(StepFailedError):
            await text(front, reading(content(0, prompt_of(8)), 2))
        await until(lambda: engine.num_used_pages == 0)
        assert await text(front, request_of([1, 2], 4))
    assert faults == [EngineFault.COMMAND]


async def test_listeners_that_raise_change_no_answer(engine: Engine, faults: list[EngineFault]) -> None:
    request = request_of(prompt_of(20), 8)
    expected = run_one(engine_of(tiny_model(depth_table={0: 1})), request).token_ids
    heard: list[float] = []
    with AsyncEngine(
        engine, on_step=[raise_broken, heard.append], on_answer=[raise_broken], on_fault=[faults.append]
    ) as front:
        assert await text(front, request) == expected
    assert faults == [EngineFault.LISTENER] * (len(heard) + 1)


async def test_an_observer_that_raises_changes_no_answer(front: AsyncEngine, faults: list[EngineFault]) -> None:
    """A request whose context can't be asked for goes on with the content that it has."""
    request = reading(content(0, prompt_of(8)), 2, policy="lean")
    front.connect(BrokenObserver())
    expected = run_one(engine_of(tiny_model(depth_table={0: 1})), replace(request, context=None)).token_ids
    with front:
        assert await text(front, request) == expected
    assert set(faults) == {EngineFault.OBSERVER}


@pytest.mark.parametrize("broken", ["engine", "forward"])
async def test_a_step_that_raises_is_counted_once(
    front: AsyncEngine, engine: Engine, faults: list[EngineFault], monkeypatch: pytest.MonkeyPatch, broken: str
) -> None:
    with front, monkeypatch.context() as patch:
        if broken == "engine":
            patch.setattr(engine, "step", raise_broken)
        else:
            patch.setattr(engine.runner.forward, "run", raise_broken)
        with pytest.raises(StepFailedError):
            await text(front, request_of([1, 2], 4))
    assert faults == [EngineFault.STEP]


@pytest.mark.parametrize("broken", ["check_integrity", "take_changes", "fail_all"])
async def test_what_ends_the_thread_fails_what_is_open_and_is_named(
    front: AsyncEngine,
    engine: Engine,
    faults: list[EngineFault],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    broken: str,
) -> None:
    with front:
        request = asyncio.create_task(text(front, long_request("a")))
        await until(lambda: front.num_running == 1)
        monkeypatch.setattr(engine, broken, raise_broken)
        monkeypatch.setattr(engine, "step", raise_broken)
        with pytest.raises(WorkerError):
            await request
        await until(lambda: not front.is_alive)
        with pytest.raises(EngineClosedError, match="BrokenError"):
            await text(front, long_request("b"))
    assert "BrokenError" in front.end_reason
    assert EngineFault.THREAD in faults
    assert caplog.records[-1].levelno == logging.ERROR
    assert has_stack(caplog)
