"""Waits for what other threads and processes do: each has a deadline, and a reason to fail with when it passes."""

from __future__ import annotations

import asyncio
import inspect
import time
from collections.abc import Callable
from contextlib import suppress

PATIENCE_S = 90.0
"""Far more than anything here takes, unless the machine is busy with other things."""


async def until(
    condition: Callable[[], object],
    timeout_s: float = PATIENCE_S,
    reason: Callable[[], str] | None = None,
    *,
    poll_s: float = 0.01,
    ignoring: type[Exception] | tuple[type[Exception], ...] = (),
) -> None:
    """Wait on the event loop until `condition`, or what it returns when awaited, holds.

    An exception that is named in `ignoring` counts as "not yet".

    Raises AssertionError with `reason` after `timeout_s`; without one, with the condition's source.
    """
    deadline = time.monotonic() + timeout_s
    while True:
        with suppress(ignoring):
            result = condition()
            if await result if inspect.isawaitable(result) else result:
                return
        require_time(deadline, timeout_s, condition, reason)
        await asyncio.sleep(poll_s)


def eventually(
    condition: Callable[[], object],
    timeout_s: float = PATIENCE_S,
    reason: Callable[[], str] | None = None,
    *,
    poll_s: float = 0.05,
    ignoring: type[Exception] | tuple[type[Exception], ...] = (),
) -> None:
    """Block until `condition` holds; an exception that is named in `ignoring` counts as "not yet".

    Raises AssertionError with `reason` after `timeout_s`; without one, with the condition's source.
    """
    deadline = time.monotonic() + timeout_s
    while True:
        with suppress(ignoring):
            if condition():
                return
        require_time(deadline, timeout_s, condition, reason)
        time.sleep(poll_s)


def require_time(
    deadline: float, timeout_s: float, condition: Callable[[], object], reason: Callable[[], str] | None
) -> None:
    """Raise AssertionError if the deadline has passed."""
    if time.monotonic() > deadline:
        raise AssertionError(f"not within {timeout_s:g} s: {reason() if reason else source_of(condition)}")


def source_of(condition: Callable[[], object]) -> str:
    """Return the source of a condition as it stands in its test, or its representation where there is none."""
    try:
        return inspect.getsource(condition).strip()
    except (OSError, TypeError):
        return repr(condition)
