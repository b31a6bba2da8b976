"""A replica's life among the others: everything that talks to the cache service or to replicas, in one thread."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from functools import partial

from cache_service.client.client import CacheClient
from cache_service.client.waits import BuildWaits
from cache_service.client.watch import persistently
from cache_service.core.types import Context, PrefixKey, ReplicaId, Snapshot
from workers.api import ContextRead, ContextReply
from workers.bicache.copies import EntryFormat, Transport
from workers.bicache.entry import Changes, Report
from workers.bicache.entry_table import EngineThread, EntryCommands
from workers.coherence.context_reader import ContextReader
from workers.coherence.estimate import CostModel
from workers.coherence.loop_thread import LoopThread
from workers.coherence.supplier import Supplier
from workers.coherence.sync import FAREWELL_TIMEOUT_S, PrefixSync
from workers.coherence.tally import Tally
from workers.coherence.view import ClusterView, Moved, News
from workers.config import CoherenceConfig
from workers.errors import WorkerError


class Membership(LoopThread):
    """Member of the cluster between entering and leaving the `with` block.

    Neither the engine nor requests ever wait for it: it hears of changes by `apply`, and acts on the entries by
    commands to the engine's thread.
    """

    def __init__(
        self,
        target: str,
        replica: ReplicaId,
        ttl_s: float,
        config: CoherenceConfig,
        *,
        follow_timeout_s: float,
        entries: EngineThread,
        transport: Transport,
        layout: EntryFormat,
        costs: CostModel,
        tally: Tally,
    ) -> None:
        """After `follow_timeout_s` a question about a context is answered with None."""
        super().__init__("membership")
        self._client, self._follow_client = CacheClient(target), CacheClient(target, timeout_s=follow_timeout_s)
        self._config, self._entries, self._tally = config, entries, tally
        self._view, self._waits = ClusterView(), BuildWaits()
        self._here: set[PrefixKey] = set()
        """Keys of entries that are live or pending, so that commits to others' contexts don't disturb the engine."""
        self._sync = PrefixSync(self._client, replica, ttl_s, self._view, config.profile, tally)
        self._reader = ContextReader(self._follow_client, self._view)
        self._supplier = Supplier(
            replica,
            config,
            client=self._client,
            sync=self._sync,
            view=self._view,
            waits=self._waits,
            entries=entries,
            transport=transport,
            layout=layout,
            costs=costs,
            tally=tally,
        )

    def apply(self, changes: Changes) -> None:
        """On the engine's thread; returns at once."""
        self._call(partial(self._take, Report.of(changes)))

    def ask(self, read: ContextRead, reply: ContextReply) -> None:
        """On the engine's thread; returns at once. `reply` is called on this object's, with the newest content."""
        self._call(partial(self._reader.ask, read, reply))

    def drain(self) -> None:
        """Tell the others to send no new work here. From another thread; waits until they were told, if they can be."""
        draining = asyncio.run_coroutine_threadsafe(self._sync.drain(), self._loop)
        with suppress(TimeoutError):
            draining.result(FAREWELL_TIMEOUT_S)

    def _call(self, function: Callable[[], None]) -> None:
        with suppress(RuntimeError):  # the loop is closed: the replica is leaving
            self._loop.call_soon_threadsafe(function)

    # Below: this object's thread only.

    def _take(self, report: Report) -> None:
        self._supplier.apply(report)
        self._sync.apply(report)
        self._here.difference_update(report.gone, report.abandoned)
        self._here.update(report.pending, (live.key for live in report.live))
        over = [live.key for live in report.live if live.content_of and self._view.is_over(live.content_of, live.key)]
        self._act(News(moved=tuple(Moved(key, None) for key in over)))

    async def _watch(self) -> None:
        async for update in self._client.watch():
            news = self._view.apply(update)
            self._waits.apply(update)
            self._act(news)
            if isinstance(update, Snapshot) or any(self._sync.held(key) for key in news.renamed):
                self._sync.wake()

    def _act(self, news: News) -> None:
        """Others' drift binds here too; a context's entry of an old epoch goes, and with `eager` the next is built."""
        with suppress(WorkerError):  # the engine has ended
            if news.limits:
                self._entries.call(lambda entries: entries.record_limits(news.limits))
            for moved in news.moved:
                if moved.old in self._here:
                    self._retire(moved.old, moved.context if self._config.refresh == "eager" else None)

    def _retire(self, key: PrefixKey, successor: Context | None) -> None:
        """The successor counts as here from now on: the next commit may come before the engine has begun with it."""

        def command(entries: EntryCommands) -> None:
            self._tally.retired += entries.retire(key, successor=successor)

        self._entries.call(command)
        self._here.discard(key)
        if successor is not None:
            self._here.add(successor.key)

    async def _prewarm(self) -> None:
        await self._sync.joined.wait()
        if self._config.prewarm and self._config.transfer != "never":
            with suppress(WorkerError):
                await self._supplier.prewarm()

    async def _main(self) -> None:
        async with self._client, self._follow_client:
            lasting = (persistently(self._watch), persistently(self._sync.run), self._prewarm())
            tasks = [asyncio.create_task(task) for task in lasting]
            await self._stop.wait()
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await self._reader.close()
            await self._supplier.close()
            await self._sync.leave()
