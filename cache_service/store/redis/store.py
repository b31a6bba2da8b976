"""Share the log through a Redis-protocol server: this process keeps a copy of the state and follows the log."""

from __future__ import annotations

import asyncio
import logging
import uuid
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any, Self

from redis.exceptions import ConnectionError as ConnectionLost
from redis.exceptions import NoScriptError, RedisClusterException, RedisError

from cache_service.background import run_forever
from cache_service.core.events import Event
from cache_service.core.state import State
from cache_service.core.types import Lease, LeaseId, Revision
from cache_service.errors import CacheServiceError, CacheServiceUnavailable, InvalidRequest
from cache_service.store.base import Decision
from cache_service.store.feed import Feed
from cache_service.store.redis import codec, scripts
from cache_service.store.redis.batching import Proposal, batch_of
from cache_service.store.redis.connect import connect
from cache_service.store.redis.eviction import require_lasting
from cache_service.store.redis.scripts import Script
from cache_service.store.redis.single_flight import SharedFlight

_log = logging.getLogger(__name__)

READ_BATCH = 1000
READ_BLOCK_S = 0.5
"""Seconds that a read of the follower waits for new events; `close` waits as long if redis-py ignores cancellation."""
BURST_WAIT_S = 0.003
"""Seconds that the follower waits before it reads new events: it reads a burst at once, and not its own events."""
RETRY_PAUSE_S = 0.25
"""Seconds that the follower of the log waits after a failure."""
MAX_RENEWALS = 32
"""Maximum number of renewals at once; each takes a connection, and redis-py refuses more than 100."""


class RedisStore:
    """Serves any number of processes.

    A decision is made on the local copy and appended by compare-and-set, together with others if possible. If another
    writer was faster, the copy catches up and the decision is made again. A refusal is raised only from a
    copy that has caught up since the call began.
    """

    def __init__(self, url: str, *, history: int, timeout_s: float, namespace: str, allow_eviction: bool) -> None:
        self._links = [connect(url, timeout_s), connect(url, timeout_s + READ_BLOCK_S)]
        self._redis, self._follower = (link.client for link in self._links)
        self._keys = codec.Keys(namespace)
        self._history = history
        self._writing = asyncio.Lock()
        self._renewing = asyncio.Semaphore(MAX_RENEWALS)
        self._proposals: list[Proposal] = []
        self._catching_up = SharedFlight(self._catch_up)
        self._following: asyncio.Task[None] | None = None
        self._closed = False
        self._allow_eviction = allow_eviction
        self.may_evict = False
        self.incarnation = ""
        self.state = State()
        self.feed = Feed(history)

    @classmethod
    async def open(
        cls,
        url: str,
        *,
        history: int,
        timeout_s: float = 1.0,
        namespace: str = "palimpsest",
        allow_eviction: bool = False,
    ) -> Self:
        """Return a store that is up to date. Raises CacheServiceUnavailable, InvalidRequest."""
        store = cls(url, history=history, timeout_s=timeout_s, namespace=namespace, allow_eviction=allow_eviction)
        try:
            async with _store_errors():
                store.may_evict = await require_lasting(store._redis, store._keys.meta, allow_eviction=allow_eviction)
                await store._reload()
        except BaseException:
            await store.close()
            raise
        store._following = asyncio.create_task(run_forever(store._follow))
        return store

    async def append(self, decide: Decision) -> Sequence[Event]:
        proposal = Proposal(decide)
        self._proposals.append(proposal)
        try:
            async with self._writing:
                while not proposal.is_decided:
                    await self._decide_some()
        finally:
            self._proposals.remove(proposal)
        return proposal.outcome()

    async def _decide_some(self) -> None:
        """Append the decisions that can go together, or catch up; if the store is unreachable, fail all that wait."""
        waiting = [proposal for proposal in self._proposals if not proposal.is_decided]
        try:
            async with _store_errors():
                if not await self._decide_first(waiting):
                    await self._catching_up()
                    for proposal in waiting:
                        proposal.is_up_to_date = True
        except CacheServiceUnavailable as error:
            for proposal in waiting:
                proposal.refuse(error)

    async def _decide_first(self, waiting: Sequence[Proposal]) -> bool:
        """Decide the first proposal and those that go with it; return False if the state must catch up before."""
        first = waiting[0]
        try:
            batch = batch_of(waiting, self.state)
        except CacheServiceError as refusal:
            if first.is_up_to_date:
                first.refuse(refusal)
            return first.is_up_to_date
        events = [event for _, events in batch for event in events]
        if events and not await self._append_events(events):
            return False
        if not events and not first.is_up_to_date:
            return False
        for proposal, own in batch:
            proposal.accept(own)
        return True

    async def _append_events(self, events: Sequence[Event]) -> bool:
        keys, payloads, changes = codec.append_arguments(self._keys, events, self.state)
        incarnation, expected = self.incarnation, self.state.revision
        args = [incarnation, expected, self._history, len(payloads), *payloads, *changes]
        try:
            accepted = await self._run(scripts.APPEND, keys, args)
        except ConnectionLost:
            return False  # if it was accepted after all, the same decision on the state that has it changes nothing
        if not accepted:
            return False
        if self.incarnation != incarnation or not self._advance(events):
            await self._catching_up()
        return True

    async def sync(self) -> None:
        async with _store_errors():
            await self._catching_up()

    async def _catch_up(self) -> None:
        while True:
            known_to = [self.state.revision, READ_BATCH]
            incarnation, head, entries = await self._read(scripts.READ, self._keys.all, known_to)
            known = incarnation is not None and incarnation.decode() == self.incarnation
            events = [codec.event_of(fields[1]) for _, fields in entries]
            if not known or not self._advance(events):
                await self._reload()
                return
            if self.state.revision >= int(head):
                return
            if not entries:  # the log was trimmed before this copy had read it
                await self._reload()
                return

    def _advance(self, events: Iterable[Event]) -> bool:
        """Apply those `events` that are new; return False if they don't follow the known ones."""
        fresh = [event for event in events if event.revision > self.state.revision]
        if fresh and fresh[0].revision != self.state.next_revision:
            return False
        for event in fresh:
            self.state.apply(event)
        if fresh:
            self.feed.append(fresh)
        return True

    async def _reload(self) -> None:
        """Load the whole state again; watchers that can't continue from it get a snapshot."""
        while True:
            incarnation, head, *tables = await self._read(scripts.LOAD, self._keys.all, [])
            if incarnation is None:
                await self._attach()
                continue
            state = codec.state_of(Revision(int(head)), tables)
            changes = codec.prune_changes(tables[codec.TABLES.index(codec.Table.LIMITS)], state)
            if not changes or await self._prune(incarnation, head, changes):
                break
        self.state = state
        self.incarnation = incarnation.decode()
        self.feed.restart(self.state.revision)
        members, contexts = len(self.state.directory.members()), len(self.state.contexts)
        found = f"{members} members and {contexts} contexts"
        _log.info("loaded %s at revision %d of incarnation %s", found, self.state.revision, self.incarnation)

    async def _prune(self, incarnation: bytes, head: bytes, changes: list[Any]) -> bool:
        """Remove facts that an older version left behind; return False if another writer was faster.

        If they stayed, an instance that loads the state later could count them again.
        """
        return bool(await self._run(scripts.APPEND, self._keys.all, [incarnation, head, self._history, 0, *changes]))

    async def _attach(self) -> None:
        """Begin a new incarnation on a server that is new, was restarted or emptied, or has lost a table."""
        try:
            self.may_evict = await require_lasting(self._redis, self._keys.meta, allow_eviction=self._allow_eviction)
        except InvalidRequest as error:
            raise CacheServiceUnavailable(str(error)) from error
        for script in scripts.REMEMBERED:
            await self._redis.script_load(script.source)
        incarnation, jump = uuid.uuid4().hex, scripts.REVISION_JUMP
        keys = self._keys.all
        await self._redis.eval(scripts.ATTACH, len(keys), *keys, incarnation, jump, self._keys.contexts)
        _log.info("a new incarnation begins: %s", incarnation)

    async def _read(self, script: Script, keys: list[str], args: list[Any]) -> Any:
        """Run a read-only script, and repeat it if the connection turns out to be lost."""
        try:
            return await self._run(script, keys, args)
        except ConnectionLost:
            return await self._run(script, keys, args)

    async def _run(self, script: Script, keys: list[str], args: list[Any]) -> Any:
        try:
            return await self._redis.evalsha(script.digest, len(keys), *keys, *args)
        except NoScriptError:
            await self._attach()
            return await self._redis.evalsha(script.digest, len(keys), *keys, *args)

    async def renew(self, lease: Lease) -> bool:
        async with self._renewing, _store_errors():
            return bool(await self._redis.pexpire(self._keys.lease(lease.id), round(lease.ttl_s * 1000)))

    async def lapsed(self) -> frozenset[LeaseId]:
        self._require_follower()
        async with _store_errors():
            await self._catching_up()
            ids = [lease.id for lease in self.state.directory.members()]
            ids += [build.lease.id for build in self.state.builds.all()]
            positions = await self._read(scripts.LAPSED, [self._keys.lease(lease) for lease in ids], [])
            return frozenset(ids[position - 1] for position in positions)

    def _require_follower(self) -> None:
        """Raise CacheServiceUnavailable if the follower has ended: watchers here would get events too late."""
        if self._following is not None and self._following.done():
            raise CacheServiceUnavailable("the task that follows the log of the store has ended: restart this instance")

    async def _follow(self) -> None:
        """Catch up as others append. What XREAD returns may be of another incarnation, so it is only a sign.

        Any failure but the store's begins the task again, with its stack in the log.
        """
        while not self._closed:
            try:
                reply = await self._follower.xread(
                    {self._keys.log: f"{self.state.revision}-0"}, count=1, block=round(READ_BLOCK_S * 1000)
                )
                entry_ids = [entry_id for _, entries in _streams(reply) for entry_id, _ in entries]
                await asyncio.sleep(BURST_WAIT_S)
                # This instance knows what it appended itself by then: an entry's id is its revision.
                if any(_revision(entry_id) > self.state.revision for entry_id in entry_ids):
                    await self._catching_up()
            except (RedisError, RedisClusterException, OSError, CacheServiceError) as error:
                # Calls and the tick meet it too, and report it.
                _log.debug("can't follow the log of the store, trying again: %s", error)
                await asyncio.sleep(RETRY_PAUSE_S)

    async def close(self) -> None:
        self._closed = True
        self.feed.close()
        if self._following is not None:
            self._following.cancel()
            with suppress(asyncio.CancelledError):
                await self._following
        await self._catching_up.close()
        for link in self._links:
            await link.close()

    def __repr__(self) -> str:
        return f"<RedisStore {self.incarnation[:8]} {self.state}>"


def _revision(entry_id: bytes) -> int:
    return int(entry_id.partition(b"-")[0])


def _streams(reply: Any) -> Iterable[tuple[bytes, list[tuple[bytes, dict[bytes, bytes]]]]]:
    return reply.items() if isinstance(reply, dict) else reply or ()


@asynccontextmanager
async def _store_errors() -> AsyncIterator[None]:
    try:
        yield
    except (RedisError, RedisClusterException, OSError) as error:
        raise CacheServiceUnavailable(f"the store can't be reached, check --store: {error}") from error
