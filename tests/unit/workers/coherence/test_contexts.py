"""Shared contexts as whole workers see them: their entries, and the requests that follow them."""

from __future__ import annotations

import asyncio
import time
from contextlib import aclosing
from dataclasses import replace
from pathlib import Path

import pytest

from cache_service.client.client import CacheClient
from cache_service.config import ServerConfig
from cache_service.core.contexts import MAX_STALENESS
from cache_service.core.types import ContextId, Edit, Epoch, PrefixKey, ReplicaId, Snapshot
from cache_service.rpc.server import CacheServer
from cache_service.store.memory import MemoryStore
from tests.unit.workers.coherence.replicas import ALWAYS, LONG_S, PREFIX, Cluster, answer, ask, count, start, until
from workers.api import ContextEpoch, ContextMode, ContextRead, PrefixCandidate

AUTHOR = ReplicaId("author")


@pytest.mark.parametrize("max_staleness", [0, 1])
async def test_a_request_follows_its_context_beyond_its_staleness_budget_only(
    cluster: Cluster, client: CacheClient, max_staleness: int
) -> None:
    """The request names epoch 0, while the service is at epoch 1. Without a staleness budget it follows at once."""
    worker = await start(cluster, client, f"f-{max_staleness}")
    old = ask(21 + max_staleness)
    context = await client.create_context("model", "", old.token_ids[:PREFIX], author=AUTHOR)
    version = await client.edit_context(context.id, context.epoch, [Edit(0, 1, (5,))], author=AUTHOR)
    read = ContextRead(ContextEpoch(context.id, context.epoch), PREFIX, ContextMode.FOLLOW, max_staleness)
    token_ids, usage = await answer(worker, replace(old, context=read))

    new = replace(old, token_ids=(5, *old.token_ids[1:]), prefixes=(PrefixCandidate(PREFIX, version.key),))
    expected, _ = await answer(worker, old if max_staleness else new)
    assert usage.epochs == ((0,) if max_staleness else (1,))
    assert token_ids == expected


@pytest.mark.parametrize("refresh", ["lazy", "eager"])
async def test_a_commit_retires_the_old_epochs_entry_and_eager_builds_the_new_one(
    cluster: Cluster, client: CacheClient, refresh: str
) -> None:
    name = f"a-{refresh}"
    worker = await start(cluster, client, name, replace(ALWAYS, refresh=refresh))  # type: ignore[arg-type]
    prompt = ask(11).token_ids
    context = await client.create_context("model", refresh, prompt[:PREFIX], author=AUTHOR)
    request = replace(ask(11, "one"), prefixes=(PrefixCandidate(PREFIX, context.key),))
    await answer(worker, request)
    await until(lambda: is_content_of(client, context.key, context.id))
    version = await client.edit_context(context.id, context.epoch, [Edit(0, 1, (5,))], author=AUTHOR)
    await until(lambda: gone(client, context.key))
    if refresh == "eager":
        await until(lambda: is_content_of(client, version.key, context.id))
    changed = replace(request, token_ids=(5, *prompt[1:]), prefixes=(PrefixCandidate(PREFIX, version.key),))
    usage = (await answer(worker, changed))[1]
    assert usage.cached_tokens == (PREFIX if refresh == "eager" else 0)
    assert await count(worker, "entries_retired_total") == 1


@pytest.mark.parametrize("refresh", ["lazy", "eager"])
async def test_an_entry_whose_epoch_ends_before_it_is_live_serves_its_requests_and_leaves(
    cluster: Cluster, client: CacheClient, refresh: str
) -> None:
    """Another member holds its build until the context has a new epoch."""
    worker = await start(cluster, client, f"late-{refresh}", replace(ALWAYS, refresh=refresh))  # type: ignore[arg-type]
    prompt = ask(12).token_ids
    context = await client.create_context("model", f"late {refresh}", prompt[:PREFIX], author=AUTHOR)
    lease = await client.register(ReplicaId(f"other-{refresh}"), LONG_S)
    await client.acquire(lease, context.key, LONG_S, context=context.id)
    request = replace(ask(12), prefixes=(PrefixCandidate(PREFIX, context.key),))
    answering = asyncio.create_task(answer(worker, request))
    await until(lambda: count(worker, "waiting"))
    version = await client.edit_context(context.id, context.epoch, [Edit(0, 1, (5,))], author=AUTHOR)

    assert (await answering)[1].reuse_depth > 0
    await until(lambda: count(worker, "entries_retired_total"))
    if refresh == "eager":
        await until(lambda: is_content_of(client, version.key, context.id))
    again = (await answer(worker, request))[1]
    assert again.cached_tokens == 0
    await client.leave(lease)


async def test_the_build_of_an_entry_that_will_not_be_announced_is_not_claimed(
    cluster: Cluster, client: CacheClient
) -> None:
    """The entry is that of a context's old content, which a request names as an ordinary prefix."""
    worker = await start(cluster, client, "plain")
    request = ask(18)
    context = await client.create_context("model", "plain", request.token_ids[:PREFIX], author=AUTHOR)
    request = replace(request, prefixes=(PrefixCandidate(PREFIX, context.key),))
    await answer(worker, request)
    await until(lambda: is_content_of(client, context.key, context.id))
    await client.edit_context(context.id, context.epoch, [Edit(0, 1, (5,))], author=AUTHOR)
    await until(lambda: gone(client, context.key))

    assert (await answer(worker, request))[1].reuse_depth > 0
    async with aclosing(client.watch()) as watch:
        snapshot = await anext(watch)
    assert isinstance(snapshot, Snapshot)
    assert context.key not in {build.key for build in snapshot.builds}


async def test_an_old_epochs_entry_serves_the_request_that_needs_it_and_leaves(
    cluster: Cluster, client: CacheClient
) -> None:
    """The request was held up for more epochs than a context's past goes back."""
    worker = await start(cluster, client, "held-up")
    request = ask(14)
    context = await client.create_context("model", "held up", request.token_ids[:PREFIX], author=AUTHOR)
    for epoch in range(MAX_STALENESS + 2):
        await client.edit_context(context.id, Epoch(epoch), [Edit(0, 1, (epoch,))], author=AUTHOR)
    read = ContextRead(ContextEpoch(context.id, context.epoch), PREFIX)
    pinned = replace(request, prefixes=(PrefixCandidate(PREFIX, context.key),), context=read)
    assert (await answer(worker, pinned))[1].reuse_depth > 0
    await until(lambda: count(worker, "entries_retired_total"))
    assert (await answer(worker, pinned))[1].cached_tokens == 0


async def test_commits_to_contexts_without_an_entry_here_cost_no_calls(tmp_path: Path) -> None:
    store = MemoryStore(clock=time.monotonic)
    async with CacheServer(ServerConfig(port=0), store) as server, CacheClient(f"127.0.0.1:{server.port}") as client:
        cluster = Cluster(tmp_path, f"127.0.0.1:{server.port}")
        await start(cluster, client, "elsewhere")
        context = await client.create_context("model", "", [1, 2, 3], author=AUTHOR)

        def renewals() -> float:
            labels = {"method": "KeepAlive", "code": "OK"}
            return server.service.metrics.registry.get_sample_value("palimpsest_cache_calls_total", labels) or 0.0

        before = renewals()
        for epoch in range(100):
            await client.edit_context(context.id, Epoch(epoch), [Edit(0, 1, (epoch,))], author=AUTHOR)
        assert renewals() - before < 30
        await asyncio.to_thread(cluster.__exit__)


async def test_a_worker_holds_the_content_of_those_contexts_that_its_requests_follow(
    cluster: Cluster, client: CacheClient
) -> None:
    worker = await start(cluster, client, "reader")
    request = ask(19)
    followed = await client.create_context("model", "read", request.token_ids[:PREFIX], author=AUTHOR)
    others = [await client.create_context("model", "other", [number, 2, 3], author=AUTHOR) for number in range(5)]
    read = ContextRead(ContextEpoch(followed.id, followed.epoch), PREFIX, ContextMode.FOLLOW)
    await answer(worker, replace(request, context=read))
    assert worker._membership is not None
    mirror, contents = worker._membership._mirror, worker._membership._reader._contents
    await until(lambda: all(mirror.state.contexts.find(context.id) for context in others))
    assert not any(context.token_ids for context in mirror.state.contexts.all())
    assert contents.find(followed.id) == followed
    assert [contents.find(context.id) for context in others] == [None] * 5


async def test_former_content_of_a_context_is_cached_like_any_prefix(cluster: Cluster, client: CacheClient) -> None:
    worker = await start(cluster, client, "others")
    request = ask(13)
    [prefix] = request.prefixes
    context = await client.create_context("model", "", request.token_ids[:PREFIX], author=AUTHOR)
    assert context.key == prefix.key
    await answer(worker, request)
    await client.edit_context(context.id, context.epoch, [Edit(0, 1, (5,))], author=AUTHOR)
    await until(lambda: count(worker, "entries_retired_total"))
    assert [(await answer(worker, request))[1].cached_tokens for _ in range(3)] == [0, PREFIX, PREFIX]


async def is_content_of(client: CacheClient, key: PrefixKey, context: ContextId) -> bool:
    found = (await client.lookup([key])).get(key, ())
    return [placement.context for placement in found] == [context]


async def gone(client: CacheClient, key: PrefixKey) -> bool:
    return not await client.lookup([key], max_staleness=4)
