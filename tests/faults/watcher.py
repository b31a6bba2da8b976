"""Put a watcher behind a faulty network: the real cursor reads from a stand-in for the stream."""

from __future__ import annotations

from collections.abc import Sequence

from cache_service.core.cursor import Cursor, Update, batch_of, parts_of
from cache_service.core.mirror import Mirror
from cache_service.core.types import Revision
from cache_service.errors import Compacted
from cache_service.store.base import Store
from cache_service.testing import Network, WatchChecker
from tests.faults.world import QUOTAS

PUMP_S = 0.02
PATIENCE_S = 0.5
"""How long a watcher waits for an update before it opens a new stream."""


class Watcher:
    """Keeps a mirror by snapshot and events, and takes a new snapshot whenever its cursor finds a gap."""

    def __init__(self, network: Network, store: Store) -> None:
        self._network = network
        self._store = store
        self._cursor = Cursor()
        self._stream = 0
        self._received_at = 0.0
        self.checker = WatchChecker(QUOTAS)
        self.mirror = Mirror()
        self.num_gaps = 0
        self._open()
        self._watch_the_clock()

    def _open(self) -> None:
        """Open a new stream; what an older one still brings is dropped."""
        self._stream += 1
        self._received_at = self._network.now
        stream, after, incarnation = self._stream, self._cursor.resume(), self._cursor.incarnation
        self._network.send(lambda: self._serve(stream, after, incarnation))

    def _watch_the_clock(self) -> None:
        if self._network.now - self._received_at > PATIENCE_S:
            self._open()
        self._network.after(PATIENCE_S, self._watch_the_clock)

    # On the service's side

    def _serve(self, stream: int, after: Revision | None, incarnation: str) -> None:
        if after is not None:
            self._pump(stream, after)
            return
        snapshot = self._store.state.snapshot()
        updates = [Update(self._store.incarnation, snapshot.revision, part=part) for part in parts_of(snapshot)]
        self._network.send(lambda: self._receive(stream, updates))
        self._pump(stream, snapshot.revision)

    def _pump(self, stream: int, after: Revision) -> None:
        if stream != self._stream:
            return
        try:
            events = batch_of(self._store.feed.read(after, 64))
        except Compacted:
            self._network.send(lambda: self._refused(stream))
            return
        update = Update(self._store.incarnation, events[-1].revision if events else after, events=events)
        self._network.send(lambda: self._receive(stream, [update]))
        pause_s = 5.0 if self._network.rng.random() < 0.001 else PUMP_S
        self._network.after(pause_s, lambda: self._pump(stream, update.revision))

    # On the watcher's side

    def _receive(self, stream: int, updates: Sequence[Update]) -> None:
        if stream != self._stream:
            return
        self._received_at = self._network.now
        try:
            items = [item for update in updates for item in self._cursor.take(update)]
        except Compacted:
            self._refused(stream)
            return
        for item in items:
            self.checker.take(item)
            self.mirror.take(item)

    def _refused(self, stream: int) -> None:
        if stream == self._stream:
            self.num_gaps += 1
            self._cursor.reset()
            self._open()
