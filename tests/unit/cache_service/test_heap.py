from __future__ import annotations

import asyncio
import gc
import weakref
from collections.abc import Iterator
from contextlib import suppress

import pytest

from cache_service.heap import collect_and_freeze, freeze_periodically


class Ring:
    """Refers to itself, so that only the cycle collector can free it."""

    def __init__(self) -> None:
        self.itself = self


@pytest.fixture(autouse=True)
def thawed() -> Iterator[None]:
    gc.disable()
    yield
    gc.unfreeze()
    gc.enable()


def test_objects_that_live_are_not_walked_again() -> None:
    ring = Ring()
    collect_and_freeze(whole=True)
    assert gc.get_freeze_count() > 0
    assert not any(found is ring for found in gc.get_objects())


def test_cycles_among_newer_objects_are_freed_at_the_next_turn() -> None:
    collect_and_freeze(whole=True)
    ring = weakref.ref(Ring())
    collect_and_freeze(whole=False)
    assert ring() is None


def test_a_cycle_that_was_in_use_when_set_aside_is_freed_by_a_whole_pass() -> None:
    ring = Ring()
    seen = weakref.ref(ring)
    collect_and_freeze(whole=False)
    del ring
    collect_and_freeze(whole=False)
    assert seen() is not None
    collect_and_freeze(whole=True)
    assert seen() is None


async def test_the_collector_is_as_before_once_the_task_ends() -> None:
    tending = asyncio.create_task(freeze_periodically())
    await asyncio.sleep(0)
    assert gc.get_freeze_count() > 0
    tending.cancel()
    with suppress(asyncio.CancelledError):
        await tending
    assert gc.get_freeze_count() == 0
