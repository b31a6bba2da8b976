"""Simulate clients and watchers of one service over a faulty network, with the real cores, store and cursor."""

from __future__ import annotations

from cache_service.testing import Faults, require_same_view
from tests.faults.client import MEMBER_TTL_S, TICK_S, Client
from tests.faults.watcher import Watcher
from tests.faults.world import STRAYS_S, World, run


class Simulation(World):
    """Simulates one cluster. `run` raises Violation where an invariant breaks."""

    def __init__(self, seed: int, *, num_clients: int = 12, num_watchers: int = 4) -> None:
        super().__init__(seed)
        self.watchers = [Watcher(self.network, self.store) for _ in range(num_watchers)]
        for _ in range(num_clients):
            self.start_client()
        self._tick()
        self._jump()

    def start_client(self) -> None:
        Client(self, self._on_death).resume(None)

    def _on_death(self, client: Client) -> None:
        gone_by = self.network.now + STRAYS_S + MEMBER_TTL_S + 2 * TICK_S
        self.checker.entries.died(client.replica, gone_by)
        self.start_client()

    def run(self, num_operations: int) -> None:
        """Carry out so many operations under faults; then heal the network and require that all views become one."""
        self.network.run(until=lambda: self.checker.num_operations >= num_operations)
        self.network.faults = Faults()
        self.is_quiet = True
        healed = self.network.now + 10.0
        self.network.run(until=lambda: self.network.now > healed)
        self.store.state.check_integrity()
        for watcher in self.watchers:
            watcher.mirror.state.check_integrity()
            watcher.checker.require_nothing_overdue()
            require_same_view(watcher.mirror.state.snapshot(), self.store.state.snapshot())
            require_same_view(watcher.checker.view(), self.store.state.snapshot())

    def _tick(self) -> None:
        if self.is_quiet:
            return
        now = self.wall_time()
        run(self.service.tick())
        self.checker.contexts.lifetimes.end_sweep(now)
        self.store.state.check_integrity()
        self.network.after(TICK_S, self._tick)

    def _jump(self) -> None:
        """Let the service's clock leap ahead: leases lapse early, and only tokens still protect."""
        self.skipped_s += self.rng.random() * MEMBER_TTL_S
        self.network.after(self.rng.expovariate(1 / 5.0), self._jump)
