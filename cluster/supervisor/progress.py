"""Log each part of the system as it becomes ready, since a start takes many seconds."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any

import psutil

logger = logging.getLogger(__name__)

PERIOD_S = 0.5
RUNNING = "RUNNING"

Counts = Mapping[str, int]
"""Replicas that are ready, by deployment."""


def seconds_since_start() -> float:
    """Return the age of this process, its imports included."""
    return max(0.0, time.time() - psutil.Process().create_time())


def ready_counts(status: Any, application: str) -> Counts:
    """Return the counts from Serve's status; empty until the application is known."""
    if application not in status.applications:
        return {}
    deployments = status.applications[application].deployments
    return {name: states_of(deployment).get(RUNNING, 0) for name, deployment in deployments.items()}


def states_of(deployment: Any) -> Mapping[str, int]:
    return {getattr(state, "value", state): number for state, number in deployment.replica_states.items()}


@contextmanager
def replicas_reported(read: Callable[[], Counts], wanted: Counts) -> Iterator[None]:
    """Log whenever more replicas are ready, as `read` says, of those that are `wanted`."""
    is_over = threading.Event()
    seen: dict[str, int] = {}

    def look() -> None:
        with suppress(Exception):  # Serve itself may still be starting, or end
            log_new(read(), wanted, seen)

    def report() -> None:
        while not is_over.wait(PERIOD_S):
            look()

    thread = threading.Thread(target=report, name="progress", daemon=True)
    thread.start()
    try:
        yield
    finally:
        is_over.set()
    thread.join()
    look()  # the last replicas may have become ready since


def log_new(counts: Counts, wanted: Counts, seen: dict[str, int]) -> None:
    """Log the counts that have risen, and note them in `seen`."""
    for name, number in counts.items():
        if number > seen.get(name, 0):
            seen[name] = number
            logger.info(
                "%s: %d of %d replicas ready after %.0f s",
                name,
                number,
                wanted.get(name, number),
                seconds_since_start(),
            )
