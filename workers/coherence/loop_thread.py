"""Run an event loop in a thread of its own, so that neither the engine nor requests wait for its work."""

from __future__ import annotations

import asyncio
import logging
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import suppress
from types import TracebackType
from typing import Any, Self

from workers.coherence.faults import TaskFaults

logger = logging.getLogger(__name__)


class LoopThread(ABC):
    """Runs an event loop between entering and leaving the `with` block."""

    def __init__(self, name: str, faults: TaskFaults) -> None:
        """Record in `faults` each exception of the loop's callbacks and tasks that nothing else handles."""
        self._loop = asyncio.new_event_loop()
        self._loop.set_exception_handler(self._record_error)
        self._loop_faults = faults
        self._stop = asyncio.Event()
        self._end_reason: str | None = None
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Ask the thread to end, and wait until it has."""
        self._call(self._stop.set)
        self._thread.join()

    @property
    def is_alive(self) -> bool:
        return self._thread.is_alive() and self._end_reason is None

    @property
    def end_reason(self) -> str | None:
        """Return the reason why the thread has ended by itself; None otherwise."""
        return self._end_reason

    def _call(self, function: Callable[[], None]) -> bool:
        """Run `function` on the thread soon. Return False if the thread has ended."""
        with suppress(RuntimeError):  # the loop is closed
            self._loop.call_soon_threadsafe(function)
            return True
        return False

    @abstractmethod
    async def _main(self) -> None:
        """Do the thread's work until `_stop` is set, and clean up."""

    def _run(self) -> None:
        reason = "it returned"
        try:
            with asyncio.Runner(loop_factory=lambda: self._loop) as runner:
                runner.run(self._main())
        except BaseException as error:
            logger.exception("the %s thread has ended", self._thread.name)
            self._loop_faults.count("loop")
            reason = repr(error)
        if not self._stop.is_set():
            self._end_reason = f"the {self._thread.name} thread has ended: {reason}"

    def _record_error(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        if error := context.get("exception"):
            self._loop_faults.record("loop", error)
        else:
            loop.default_exception_handler(context)
