"""Check clients' observations against the invariants of the protocol during a run.

The checker believes only what clients observe: when a call began, when and how it ended. A call that got no answer
may or may not have been carried out, so it proves nothing.
"""

from __future__ import annotations

from cache_service.core.quotas import UNBOUNDED, ContextQuotas
from cache_service.core.types import Lease, ReplicaId
from cache_service.testing.builds import BuildHistory
from cache_service.testing.contexts import ContextHistory
from cache_service.testing.entries import EntryHistory
from cache_service.testing.moments import Clock, Moments


class HistoryChecker:
    """Checks one history of many clients, each of which makes one call at a time.

    A `begin_...` is called before a call is sent, and an `end_...` with the answer. The end of a call is judged by all
    that had been acknowledged, to any client, before the moment at which it began. Both raise Violation if an
    observation can't be true.
    """

    def __init__(
        self,
        clock: Clock,
        *,
        lease_clock: Clock | None = None,
        wall_clock: Clock | None = None,
        strays_s: float = 0.0,
        quotas: ContextQuotas = UNBOUNDED,
    ) -> None:
        """Messages take time by `clock`, and are carried out at most `strays_s` after they were sent.

        Leases lapse by `lease_clock`, which may leap ahead of `clock`, and lifetimes of contexts end by `wall_clock`;
        without them, `clock` counts.
        """
        self._moments = Moments(clock)
        self.contexts = ContextHistory(
            self._moments, clock=clock, wall_clock=wall_clock or clock, strays_s=strays_s, quotas=quotas
        )
        self.builds = BuildHistory(self._moments, lease_clock or clock)
        self.entries = EntryHistory(
            self._moments, self.contexts, clock=clock, lease_clock=lease_clock or clock, strays_s=strays_s
        )

    @property
    def num_operations(self) -> int:
        return self._moments.now

    def begin(self) -> int:
        """Return the moment at which a read is sent, or a change that no check refers to."""
        return self._moments.begin()

    def begin_register(self, replica: ReplicaId) -> int:
        return self.entries.begin_register(replica)

    def end_register(self, lease: Lease, safe_until: float) -> None:
        """Record a new lease, which can't lapse before `safe_until`."""
        self.entries.end_register(lease, safe_until)
        self.builds.end_register(lease)

    def __repr__(self) -> str:
        counts = f"{self.entries.num_found} entries found, {self.contexts.num_contents} contents compared"
        return f"<HistoryChecker [{self.num_operations} operations: {counts}, {self.builds.num_grants} grants]>"
