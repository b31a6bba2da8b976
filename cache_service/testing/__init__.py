"""Offer fakes, faults and the history checker to tests of the cache service and of its users.

Terms: docs/glossary.md.
"""

from cache_service.testing.clock import FakeClock, free_port
from cache_service.testing.history import HistoryChecker
from cache_service.testing.moments import Violation
from cache_service.testing.network import Faults, Network
from cache_service.testing.watch import WatchChecker, require_same_view

__all__ = [
    "FakeClock",
    "Faults",
    "HistoryChecker",
    "Network",
    "Violation",
    "WatchChecker",
    "free_port",
    "require_same_view",
]
