"""Tasks that should run as long as their process."""

from __future__ import annotations

import asyncio

import pytest

from cache_service.background import run_forever


async def test_run_forever_runs_again_after_every_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    """A return and a cancellation that nobody asked for are failures, too."""
    monkeypatch.setattr("cache_service.background.RESTART_S", 0.0)
    failures = [None, asyncio.CancelledError(), LookupError(), ValueError()]
    recorded: list[type[BaseException]] = []

    async def run() -> None:
        if failures:
            failure = failures.pop()
            if failure is not None:
                raise failure
            return
        await asyncio.Event().wait()

    running = asyncio.create_task(run_forever(run, lambda error: recorded.append(type(error))))
    done, _ = await asyncio.wait([running], timeout=0.1)
    assert (done, failures) == (set(), [])
    assert recorded == [ValueError, LookupError, asyncio.CancelledError, RuntimeError]
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
