"""Shared contexts as whole workers see them: their entries, and the requests that follow them."""

from __future__ import annotations

from dataclasses import replace

import pytest

from cache_service.client import CacheClient
from cache_service.types import ContextId, Edit, PrefixKey, ReplicaId
from tests.unit.workers.coherence.replicas import ALWAYS, PREFIX, Cluster, answer, ask, count, start, until
from workers.api import ContextEpoch, ContextMode, ContextRead, PrefixCandidate

AUTHOR = ReplicaId("author")


@pytest.mark.parametrize("max_staleness", [0, 1])
async def test_a_request_follows_its_context_as_far_as_it_must(
    cluster: Cluster, client: CacheClient, max_staleness: int
) -> None:
    """It comes with epoch 0, while the service is at epoch 1; what one without a budget is told is told at once."""
    worker = await start(cluster, client, f"f-{max_staleness}")
    old = ask(21 + max_staleness)
    context = await client.create_context("model", "", old.token_ids[:PREFIX], author=AUTHOR)
    version = await client.commit(context.id, context.epoch, [Edit(0, 1, (5,))], author=AUTHOR)
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
    version = await client.commit(context.id, context.epoch, [Edit(0, 1, (5,))], author=AUTHOR)
    await until(lambda: gone(client, context.key))
    if refresh == "eager":
        await until(lambda: is_content_of(client, version.key, context.id))
    changed = replace(request, token_ids=(5, *prompt[1:]), prefixes=(PrefixCandidate(PREFIX, version.key),))
    usage = (await answer(worker, changed))[1]
    assert usage.cached_tokens == (PREFIX if refresh == "eager" else 0)
    assert await count(worker, "entries_retired_total") == 1


async def is_content_of(client: CacheClient, key: PrefixKey, context: ContextId) -> bool:
    found = (await client.lookup([key])).get(key, ())
    return [placement.context for placement in found] == [context]


async def gone(client: CacheClient, key: PrefixKey) -> bool:
    return not await client.lookup([key], max_staleness=4)
