"""Run concurrent clients that report what they see to the history checker."""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from collections.abc import Callable
from contextlib import aclosing

from cache_service.client.client import CacheClient
from cache_service.core.mirror import Mirror
from cache_service.core.types import (
    FIRST_EPOCH,
    Build,
    Context,
    ContextId,
    Edit,
    Lease,
    LeaseId,
    Placement,
    PrefixKey,
    ReplicaId,
)
from cache_service.errors import CacheServiceError, FencedToken, LeaseRefused
from cache_service.testing import HistoryChecker, WatchChecker

MEMBER_TTL_S = 10.0
BUILD_TTL_S = 0.5
STRAGGLE_S = 6.0
"""How late a request may be carried out that a paused instance had received."""
KEYS = [PrefixKey(bytes([i]) * 20) for i in range(16)]


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
        actions = [self._look_up, self._look_up, self._announce, self._edit, self._build]
        while go_on():
            try:
                if time.monotonic() > self._safe_until - MEMBER_TTL_S / 2:
                    await self._keep_alive()
                await self._rng.choice(actions)()
            except CacheServiceError as refusal:
                self.refusals[refusal.reason] += 1

    async def leave(self) -> None:
        """Leave, unless the lease has ended already."""
        try:
            await self._client.leave(self._lease)
        except LeaseRefused:
            self.refusals[LeaseRefused.reason] += 1

    async def _keep_alive(self) -> None:
        began = time.monotonic()
        self._checker.begin()
        try:
            await self._client.keep_alive(self._lease)
        except LeaseRefused:
            began = time.monotonic()
            self._strays_until = began + STRAGGLE_S
            self._checker.begin()
            self._lease = await self._client.register(self._replica, MEMBER_TTL_S)
        self._safe_until = began + MEMBER_TTL_S

    async def _announce(self) -> None:
        context = await self._some_context()
        self._checker.begin()
        await self._client.announce(self._lease, [self._entry(self._rng.choice(KEYS), context)])

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
        holders = [placement for placements in found.values() for placement in placements]
        self._checker.end_lookup(began, holders, staleness, time.monotonic())

    async def _some_context(self) -> Context | None:
        if not self._contexts or self._rng.random() < 0.3:
            return None
        began = self._checker.begin()
        context_id = self._rng.choice(self._contexts)
        context = await self._client.get_context(context_id, known=self._known.get(context_id))
        self._checker.end_get(began, context)
        self._known[context_id] = context
        return context

    async def _edit(self) -> None:
        context = await self._some_context()
        self._checker.begin()
        if context is not None:
            edits = [Edit(0, 1, (self._rng.randrange(1000),))]
            version = await self._client.edit_context(context.id, context.epoch, edits, author=self._replica)
            self._checker.end_edit(context.id, version)
        elif len(self._contexts) < 4:
            created = await self._client.create_context("model", self._replica, [1, 2], author=self._replica)
            self._checker.end_create(created)
            self._contexts.append(created.id)

    async def _build(self) -> None:
        context = await self._some_context()
        key, epoch = (context.key, context.epoch) if context else (self._rng.choice(KEYS), FIRST_EPOCH)
        began, moment = time.monotonic(), self._checker.begin()
        build = await self._client.acquire(
            self._lease, key, BUILD_TTL_S, epoch=epoch, context=context.id if context else None
        )
        if build.replica != self._replica:
            return
        self._checker.end_acquire(moment, build, self._guaranteed(began), time.monotonic())
        await asyncio.sleep(self._rng.choice([0.0, 0.0, 0.05, 1.2 * BUILD_TTL_S]))
        await self._complete(build, self._entry(key, context))

    async def _complete(self, build: Build, entry: Placement) -> None:
        self._checker.begin_complete(build)
        try:
            await self._client.complete(self._lease, build, entry)
        except FencedToken:
            self._checker.end_fenced()
        else:
            self._checker.end_complete(build)

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
