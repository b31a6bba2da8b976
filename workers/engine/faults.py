"""Records exceptions on the engine's thread, so that they don't end the thread and don't pass unnoticed."""

from __future__ import annotations

import enum
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

logger = logging.getLogger(__name__)


class EngineFault(enum.Enum):
    """Lists the parts of the engine's thread in which an exception can occur that no request caused."""

    STEP = "step"
    """A step: the requests that it worked on end with the error."""
    COMMAND = "command"
    """A command from another thread, run between two steps."""
    LISTENER = "listener"
    """A listener to steps or answers."""
    OBSERVER = "observer"
    """The observer of entries and contexts."""
    THREAD = "thread"
    """The thread itself, which has ended."""


class FaultRecorder:
    """Logs faults with their stacks, and counts them by kind."""

    def __init__(self, listeners: Sequence[Callable[[EngineFault], None]]) -> None:
        self._listeners = listeners

    @contextmanager
    def guard(self, fault: EngineFault) -> Iterator[None]:
        """Record an exception instead of raising it."""
        try:
            yield
        except Exception as error:
            self.record(fault, error)

    def record(self, fault: EngineFault, error: BaseException) -> None:
        """Log and count an exception."""
        logger.error("the engine's %s raised %r", fault.value, error, exc_info=error)
        self.count(fault)

    def count(self, fault: EngineFault) -> None:
        """Count a fault that is logged already."""
        for listener in self._listeners:
            listener(fault)
