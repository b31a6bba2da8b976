from __future__ import annotations

from functools import partial
from itertools import count

import pytest

from tests.support.waiting import eventually, until


async def test_until_returns_once_the_condition_holds() -> None:
    calls, awaited = count(), count()

    async def holds() -> bool:
        return next(awaited) == 3

    await until(lambda: next(calls) == 3, poll_s=0.0)
    await until(holds, poll_s=0.0)
    assert (next(calls), next(awaited)) == (4, 4)


async def test_until_waits_while_the_condition_raises_what_is_ignored() -> None:
    calls = count()

    async def holds() -> bool:
        if next(calls) < 3:
            raise ConnectionError
        return True

    await until(holds, poll_s=0.0, ignoring=ConnectionError)
    assert next(calls) == 4
    with pytest.raises(ZeroDivisionError):
        await until(lambda: 1 / 0, ignoring=ConnectionError)


async def test_until_fails_with_the_reason_or_the_condition() -> None:
    with pytest.raises(AssertionError, match="the door is shut"):
        await until(lambda: False, 0.01, lambda: "the door is shut", poll_s=0.0)
    with pytest.raises(AssertionError, match=r"not within 0\.01 s: await until\(lambda: sum\(\[\]\)"):
        await until(lambda: sum([]), 0.01, poll_s=0.0)


def test_eventually_returns_once_the_condition_holds() -> None:
    calls = count()

    def holds() -> bool:
        if next(calls) < 3:
            raise ConnectionError
        return True

    eventually(holds, poll_s=0.0, ignoring=ConnectionError)
    assert next(calls) == 4


def test_eventually_fails_with_the_reason_or_the_condition() -> None:
    with pytest.raises(AssertionError, match="the door is shut"):
        eventually(lambda: False, 0.01, lambda: "the door is shut", poll_s=0.0)
    with pytest.raises(AssertionError, match=r"functools\.partial"):
        eventually(partial(bool, 0), 0.01, poll_s=0.0)
    with pytest.raises(ZeroDivisionError):
        eventually(lambda: 1 / 0)
