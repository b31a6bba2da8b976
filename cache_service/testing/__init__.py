"""Fakes, faults and the history checker, for tests of the cache service and of those who use it.

Terms: docs/glossary.md.
"""

from cache_service.testing.clock import FakeClock, free_port
from cache_service.testing.history import HistoryChecker, Violation, WatchChecker, mirror_of, require_same_view
from cache_service.testing.network import Faults, Network

__all__ = [
    "FakeClock",
    "Faults",
    "HistoryChecker",
    "Network",
    "Violation",
    "WatchChecker",
    "free_port",
    "mirror_of",
    "require_same_view",
]
