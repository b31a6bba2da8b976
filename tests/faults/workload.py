"""Run concurrent clients that report what they see to the history checker."""

from __future__ import annotations

import asyncio
import random
import time
import uuid
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import aclosing
from typing import TypeVar

from cache_service.client.client import CacheClient
from cache_service.core.mirror import Mirror
from cache_service.core.types import (
    FIRST_EPOCH,
    Build,
    Context,
    ContextId,
    EditId,
    Lease,
    LeaseId,
    Placement,
    PrefixKey,
    ReplicaId,
)
from cache_service.errors import CacheServiceError, CacheServiceUnavailable, FencedToken, LeaseRefused
from cache_service.testing import HistoryChecker, WatchChecker
from tests.faults.edits import some_edits

MEMBER_TTL_S = 10.0
BUILD_TTL_S = 0.5
STRAGGLE_S = 6.0
"""How late a request may be carried out that a paused instance had received."""
KEYS = [PrefixKey(bytes([i]) * 20) for i in range(16)]
LEASE_MARGIN_S = 0.1
"""Seconds by which the store's clock may let a lease lapse earlier than this process's clock."""
NUM_TRIES = 3
"""Number of times that a change with an id is sent while no answer comes."""

T = TypeVar("T")


class Worker:
    """Acts as one replica, one request at a time."""

    def __init__(self, name: str, client: CacheClient, checker: HistoryChecker, contexts: list[ContextId]) -> None:
        self._replica = ReplicaId(name)
        self._client = client
        self._checker = checker
        self._contexts = contexts
        self._rng = random.Random(name)
        self._lease = Lease(LeaseId(0), self._replica, MEMBER_TTL_S)
        self._known: dict[ContextId, Context] = {}
        self._safe_until = 0.0
        self._strays_until = 0.0
        self.refusals: Counter[str] = Counter()

    async def live(self, go_on: Callable[[], bool]) -> None:
        actions = [self._look_up, self._look_up, self._announce, self._edit, self._build] * 4
        actions += [self._withdraw, self._list]
        while go_on():
            try:
                if time.monotonic() > self._safe_until - MEMBER_TTL_S / 2:
                    await self._keep_alive()
                await self._rng.choice(actions)()
            except CacheServiceError as refusal:
                self.refusals[refusal.reason] += 1

    async def leave(self) -> None:
        """Leave, unless the lease has ended already."""
        self._checker.begin_register(self._replica)
        try:
            await self._client.leave(self._lease)
        except LeaseRefused:
            self.refusals[LeaseRefused.reason] += 1
        else:
            self._checker.entries.end_leave(self._replica)

    async def _keep_alive(self) -> None:
        began = time.monotonic()
        self._checker.begin()
        try:
            await self._client.keep_alive(self._lease)
        except LeaseRefused:
            await self._register()
            return
        self._safe_until = began + MEMBER_TTL_S - LEASE_MARGIN_S
        self._checker.entries.end_keep_alive(self._lease, self._safe_until)

    async def _register(self) -> None:
        began = time.monotonic()
        self._strays_until = began + STRAGGLE_S
        self._checker.begin_register(self._replica)
        self._lease = await self._client.register(self._replica, MEMBER_TTL_S)
        self._safe_until = began + MEMBER_TTL_S - LEASE_MARGIN_S
        self._checker.end_register(self._lease, self._safe_until)

    async def _announce(self) -> None:
        context = await self._some_context()
        entries = [self._entry(self._rng.choice(KEYS), context)]
        self._checker.entries.begin_announce(entries)
        await self._client.announce(self._lease, entries)
        self._checker.entries.end_announce(entries)

    async def _withdraw(self) -> None:
        keys = [self._rng.choice(KEYS)]
        self._checker.entries.begin_withdraw(self._replica, keys)
        await self._client.withdraw(self._lease, keys)
        self._checker.entries.end_withdraw(self._replica, keys)

    def _entry(self, key: PrefixKey, context: Context | None) -> Placement:
        if context is None:
            return Placement(key, self._replica, 64, self._rng.randrange(4), 4096)
        return Placement(context.key, self._replica, 64, 2, 4096, context.epoch, context.id)

    async def _look_up(self) -> None:
        context = await self._some_context()
        keys = [context.key if context else self._rng.choice(KEYS)]
        staleness = self._rng.choice([0, 0, 2])
        began = self._checker.begin()
        found = await self._client.lookup(keys, max_staleness=staleness)
        self._checker.entries.end_lookup(began, keys, found, staleness)

    async def _list(self) -> None:
        began = self._checker.begin()
        page = await self._client.list_contexts(self._replica)
        self._checker.contexts.end_list(began, self._replica, page.contexts)

    async def _some_context(self) -> Context | None:
        if not self._contexts or self._rng.random() < 0.3:
            return None
        began = self._checker.begin()
        context_id = self._rng.choice(self._contexts)
        context = await self._client.get_context(context_id, known=self._known.get(context_id))
        self._checker.contexts.end_get(began, context)
        self._known[context_id] = context
        return context

    async def _edit(self) -> None:
        context = await self._some_context()
        edit_id = EditId(uuid.UUID(int=self._rng.getrandbits(128)).hex)
        if context is not None:
            await self._try_repeatedly(lambda: self._edit_context(context, edit_id))
        elif len(self._contexts) < 4:
            await self._try_repeatedly(lambda: self._create_context(edit_id))

    async def _edit_context(self, context: Context, edit_id: EditId) -> None:
        edits = some_edits(random.Random(edit_id), len(context.token_ids))
        self._checker.contexts.begin_edit(context.id, context.epoch, edits, edit_id)
        version = await self._client.edit_context(
            context.id, context.epoch, edits, author=self._replica, edit_id=edit_id
        )
        self._checker.contexts.end_edit(context.id, edit_id, version)

    async def _create_context(self, edit_id: EditId) -> None:
        self._checker.contexts.begin_create(edit_id, [1, 2])
        created = await self._client.create_context(
            "model", self._replica, [1, 2], author=self._replica, edit_id=edit_id
        )
        self._checker.contexts.end_create(edit_id, created)
        self._contexts.append(created.id)

    async def _try_repeatedly(self, change: Callable[[], Awaitable[T]]) -> T:
        """Send a change again, under the same id, while no answer comes."""
        for _ in range(NUM_TRIES - 1):
            try:
                return await change()
            except CacheServiceUnavailable as error:
                self.refusals[error.reason] += 1
        return await change()

    async def _build(self) -> None:
        context = await self._some_context()
        key, epoch = (context.key, context.epoch) if context else (self._rng.choice(KEYS), FIRST_EPOCH)
        began, moment = time.monotonic(), self._checker.begin()
        build = await self._client.acquire(
            self._lease, key, BUILD_TTL_S, epoch=epoch, context=context.id if context else None
        )
        if build.replica != self._replica:
            self._checker.builds.see(moment, build)
            return
        self._checker.builds.end_acquire(moment, build, self._guaranteed(began))
        await asyncio.sleep(self._rng.choice([0.0, 0.0, 0.05, 1.2 * BUILD_TTL_S]))
        await self._complete(build, self._entry(key, context))

    async def _complete(self, build: Build, entry: Placement) -> None:
        self._checker.entries.begin_announce([entry])
        self._checker.builds.begin_complete(build)
        try:
            await self._client.complete(self._lease, build, entry)
        except FencedToken:
            self._checker.builds.end_fenced()
        else:
            self._checker.builds.end_complete(build)
            self._checker.entries.end_announce([entry])

    def _guaranteed(self, began: float) -> float:
        """Return until when a build can't end by itself that a request sent at `began` has acquired."""
        if began < self._strays_until:
            return 0.0
        return min(began + BUILD_TTL_S, self._safe_until)


class Follower:
    """Keeps a mirror by a watch of its own."""

    def __init__(self, client: CacheClient) -> None:
        self._client = client
        self.checker = WatchChecker()
        self.mirror = Mirror()

    async def follow(self) -> None:
        async with aclosing(self._client.watch()) as watch:
            async for item in watch:
                self.checker.take(item)
                self.mirror.take(item)
