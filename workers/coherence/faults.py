"""Record exceptions in tasks beside the engine, so that none goes unnoticed."""

from __future__ import annotations

import logging

from workers.coherence.tally import Tally

logger = logging.getLogger(__name__)


class TaskFaults:
    """Logs exceptions with their stacks, and counts them in the tally by task."""

    def __init__(self, tally: Tally) -> None:
        self._tally = tally

    def record(self, task: str, error: BaseException) -> None:
        """Log and count an exception that ends nothing but what raised it."""
        logger.error("the %s task beside the engine raised %r", task, error, exc_info=error)
        self.count(task)

    def count(self, task: str, _: BaseException | None = None) -> None:
        """Count an exception that is logged already."""
        self._tally.task_errors[task] += 1
