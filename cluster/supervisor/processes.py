"""Start child processes that end with their parent, and end all descendants of this process."""

from __future__ import annotations

import contextlib
import ctypes
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import psutil

KILL_GRACE_S = 1.5
MAX_KILL_ROUNDS = 10
STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36
"""Options of prctl(2)."""


def as_child() -> None:
    """Let this child process die with its parent, and block SIGINT until `cluster.supervisor.launch` handles it."""
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    prctl(PR_SET_PDEATHSIG, signal.SIGINT)


def prctl(option: int, value: int) -> None:
    """Set an option of this process on Linux; on other systems children end only when they are asked to."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(option, value, 0, 0, 0)


@contextmanager
def no_orphans() -> Iterator[None]:
    """End every process that was started inside this context when it is left, including orphans."""
    prctl(PR_SET_CHILD_SUBREAPER, 1)
    try:
        yield
    finally:
        for number in STOP_SIGNALS:
            signal.signal(number, signal.SIG_IGN)
        end_descendants()


def end_descendants() -> None:
    """Ask every descendant of this process to end, and kill those that don't."""
    this = psutil.Process()
    for end in (psutil.Process.terminate, psutil.Process.kill):
        remaining = this.children(recursive=True)
        for child in remaining:
            with contextlib.suppress(psutil.NoSuchProcess):
                end(child)
        psutil.wait_procs(remaining, timeout=KILL_GRACE_S)


def kill_descendants(kept: int | None) -> None:
    """Kill every descendant of this process at once, except the process `kept`.

    A process that is killed may have started another one meanwhile, so this looks again until none is left.
    """
    for _ in range(MAX_KILL_ROUNDS):
        remaining = [child for child in psutil.Process().children(recursive=True) if child.pid != kept]
        for child in remaining:
            with contextlib.suppress(psutil.NoSuchProcess):
                child.kill()
        psutil.wait_procs(remaining, timeout=KILL_GRACE_S)
        if not remaining:
            return
