"""Whole workers and a real cache service: which one builds, which ones copy, and what happens when either fails."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from cache_service.client.client import CacheClient
from cache_service.core.events import Draining, Event, Left
from cache_service.core.types import DepthLimit, DepthTable, Placement, PrefixKey, ReplicaId, Snapshot
from cache_service.testing.processes import ServiceProcess
from tests.support.requirements import require_bundled_model
from tests.unit.workers.coherence.replicas import (
    ALWAYS,
    LONG_S,
    PREFIX,
    Cluster,
    answer,
    ask,
    count,
    has,
    key_of,
    start,
    until,
)
from workers.api import DepthLimiter
from workers.bicache.copies import EntryCopy
from workers.config import CoherenceConfig
from workers.models.bundle import model_directory
from workers.worker import Worker

GHOST = ReplicaId("ghost")


async def test_an_entry_is_built_once_and_copied_and_all_answers_are_equal(
    cluster: Cluster, client: CacheClient
) -> None:
    a, b = await start(cluster, client, "a1"), await start(cluster, client, "b1")
    alone = await start(cluster, client, "c1", CoherenceConfig(transfer="never"))
    first = await answer(a, ask(1))
    await until(lambda: has(client, key_of(ask(1)), "a1"))
    second = await answer(b, ask(1))
    third = await answer(alone, ask(1))
    assert first[0] == second[0] == third[0]
    assert (await count(b, "entries_built_total"), await count(b, "entries_fetched_total")) == (1, 1)
    assert (await count(a, "entries_sent_total"), await count(alone, "entries_fetched_total")) == (1, 0)
    assert await count(a, "sent_bytes_total") == await count(b, "fetched_bytes_total") > 0
    await until(lambda: has(client, key_of(ask(1)), "a1", "b1", "c1"))


async def test_the_bundled_model_answers_the_same_from_a_copy_which_needs_no_probe(
    cluster: Cluster, client: CacheClient
) -> None:
    require_bundled_model()
    model = model_directory("factbook")
    first, second, alone = [
        await asyncio.to_thread(cluster.start, name, coherence, model=model, probe_positions=8, probe_similarity=0.0)
        for name, coherence in (("a3", ALWAYS), ("b3", ALWAYS), ("c3", CoherenceConfig(transfer="never")))
    ]
    request = ask(3, policy="lean")
    built = await answer(first, request)
    await until(lambda: has(client, key_of(request), "a3"))
    await answer(second, ask(30, policy="lean"))
    await until(lambda: has(client, key_of(ask(30)), "b3"))
    before = (await second.stats()).num_forwards
    copied, own = await answer(second, request), await answer(alone, request)
    assert built[0] == copied[0] == own[0]
    assert built[1].reuse_depth == copied[1].reuse_depth == own[1].reuse_depth > 0
    assert await count(second, "entries_fetched_total") == 1
    assert (await second.stats()).num_forwards - before == copied[1].num_forwards == own[1].num_forwards - 1


async def test_one_of_two_workers_that_need_an_entry_at_once_builds_it(cluster: Cluster, client: CacheClient) -> None:
    a, b = await start(cluster, client, "a2"), await start(cluster, client, "b2")
    built = await count(a, "entries_built_total") + await count(b, "entries_built_total")
    for seed in range(2, 10):
        first, second = await asyncio.gather(answer(a, ask(seed)), answer(b, ask(seed)))
        assert first[0] == second[0]
    assert await count(a, "entries_built_total") + await count(b, "entries_built_total") == built + 8


def flipped(copy: EntryCopy) -> EntryCopy:
    body = copy.body.clone()
    body[len(body) // 2] ^= 1
    return replace(copy, body=body)


def of_other_tokens(copy: EntryCopy) -> EntryCopy:
    return replace(copy, token_ids=copy.token_ids[::-1]).sealed()


def of_another_key(copy: EntryCopy) -> EntryCopy:
    return replace(copy, key=PrefixKey(bytes(20))).sealed()


def of_another_model(copy: EntryCopy) -> EntryCopy:
    return replace(copy, format=replace(copy.format, fingerprint="other")).sealed()


def of_another_dtype(copy: EntryCopy) -> EntryCopy:
    return replace(copy, format=replace(copy.format, dtype="torch.bfloat16")).sealed()


def shallower(copy: EntryCopy) -> EntryCopy:
    return replace(copy, kv_depth=1, state_depths=(1,)).sealed()


def cut_short(copy: EntryCopy) -> EntryCopy:
    return replace(copy, body=copy.body[:-4]).sealed()


@pytest.mark.parametrize(
    ("tamper", "reason"),
    [
        (flipped, "checksum"),
        (of_other_tokens, "tokens"),
        (of_another_key, "key"),
        (of_another_model, "format"),
        (of_another_dtype, "format"),
        (shallower, "layout"),
        (cut_short, "layout"),
    ],
)
async def test_a_wrong_copy_is_refused_and_the_entry_built(
    cluster: Cluster, client: CacheClient, tamper: Callable[[EntryCopy], EntryCopy], reason: str
) -> None:
    a, b = await start(cluster, client, f"a-{tamper.__name__}"), await start(cluster, client, f"b-{tamper.__name__}")
    request = ask(sum(tamper.__name__.encode()))
    first = await answer(a, request)
    await until(lambda: has(client, key_of(request), f"a-{tamper.__name__}"))
    built = await count(b, "entries_built_total")
    cluster.neighbours.tamper = tamper
    assert (await answer(b, request))[0] == first[0]
    assert await count(b, "fetches_refused_total", reason=reason) == 1
    assert await count(b, "entries_built_total") == built + 1


async def test_a_request_is_answered_although_the_holder_of_its_entry_is_gone(
    cluster: Cluster, client: CacheClient
) -> None:
    a, b = await start(cluster, client, "a4"), await start(cluster, client, "b4")
    await answer(a, ask(4))
    await until(lambda: has(client, key_of(ask(4)), "a4"))
    del cluster.neighbours.workers[ReplicaId("a4")]
    assert (await answer(b, ask(4)))[1].replica == "b4"
    assert await count(b, "fetches_refused_total", reason="lost") == 1


async def test_a_build_is_taken_over_when_its_lease_lapses(cluster: Cluster, client: CacheClient) -> None:
    worker = await start(cluster, client, "a5")
    member = await client.register(GHOST, LONG_S)
    await client.acquire(member, key_of(ask(5)), ttl_s=1.0)
    await answer(worker, ask(5))
    assert await count(worker, "build_waits_total", outcome="ended") == 1
    await until(lambda: has(client, key_of(ask(5)), "a5"))
    [placement] = (await client.lookup([key_of(ask(5))]))[key_of(ask(5))]
    assert placement.token is not None


async def test_a_worker_that_has_waited_long_enough_builds_for_itself(cluster: Cluster, client: CacheClient) -> None:
    worker = await start(cluster, client, "a6", replace(ALWAYS, max_wait_s=0.2))
    member = await client.register(GHOST, LONG_S)
    await client.acquire(member, key_of(ask(6)), ttl_s=LONG_S)
    await answer(worker, ask(6))
    assert await count(worker, "build_waits_total", outcome="given_up") == 1
    await until(lambda: has(client, key_of(ask(6)), "a6"))


async def test_a_request_that_waits_for_a_build_lets_others_pass_and_may_leave(
    cluster: Cluster, client: CacheClient
) -> None:
    worker = await start(cluster, client, "a7")
    member = await client.register(GHOST, LONG_S)
    build = await client.acquire(member, key_of(ask(7)), ttl_s=LONG_S)
    waiting = asyncio.create_task(answer(worker, ask(7)))
    other = asyncio.create_task(answer(worker, ask(8, "other")))
    await other  # passes by
    assert not waiting.done()
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)
    await client.release(member, build)
    assert (await answer(worker, ask(7)))[1].replica == "a7"


async def test_drift_that_one_worker_finds_binds_requests_to_others_unless_they_are_deterministic(
    cluster: Cluster, client: CacheClient
) -> None:
    b = await start(cluster, client, "b9", CoherenceConfig(transfer="never"))
    newer = await start(cluster, client, "c9", CoherenceConfig(transfer="never", profile=1))
    before = await answer(b, ask(9))
    assert (before[1].reuse_depth, before[1].depth_limited_by) == (2, None)
    strict = await asyncio.to_thread(
        cluster.start, "a9", CoherenceConfig(transfer="never"), probe_positions=8, probe_similarity=1.0
    )
    found = (await answer(strict, ask(9)))[1]
    assert (found.reuse_depth, found.depth_limited_by) == (0, DepthLimiter.PROBE)
    await until(lambda: limited(b))
    assert await count(strict, "drift_reports_total") == 1
    limited_answer = (await answer(b, ask(9, deterministic=False)))[1]
    assert (limited_answer.reuse_depth, limited_answer.depth_limited_by) == (0, DepthLimiter.REPORT)
    after = await answer(b, ask(9))
    assert (after[0], after[1].reuse_depth) == (before[0], 2)
    assert (await answer(newer, ask(9, deterministic=False)))[1].reuse_depth == 2


async def limited(worker: Worker) -> bool:
    return (await answer(worker, ask(9, deterministic=False)))[1].reuse_depth == 0


async def test_a_reported_limit_ends_in_every_worker_with_the_last_placement(
    cluster: Cluster, client: CacheClient
) -> None:
    worker, key = await start(cluster, client, "a19"), key_of(ask(1900))

    def known_limit() -> int | None:
        return worker._engine.call(lambda entries: entries._limits.depth(key, 60)).result(LONG_S)

    async def knows(depth: int | None) -> bool:
        return await asyncio.to_thread(known_limit) == depth

    lease = await client.register(ReplicaId("b19"), LONG_S, depth_table=DepthTable(0, 2))
    await client.announce(lease, [Placement(key, lease.replica, PREFIX, 2, 100)])
    await client.report_drift(lease, [DepthLimit(key, 60, 1, 0)])
    await until(lambda: knows(1))
    await client.leave(lease)
    await until(lambda: knows(None))


async def test_a_new_replica_begins_with_the_hottest_prefixes(cluster: Cluster, client: CacheClient) -> None:
    a = await start(cluster, client, "a10")
    first = await answer(a, ask(10))
    await until(lambda: has(client, key_of(ask(10)), "a10"))
    late = await asyncio.to_thread(cluster.start, "b10", CoherenceConfig(transfer="always", prewarm=1000))
    await until(lambda: has(client, key_of(ask(10)), "b10"))
    assert await count(late, "entries_prewarmed_total") >= 1
    second = await answer(late, ask(10))
    assert second[0] == first[0]
    assert second[1].cached_tokens == PREFIX
    assert await count(late, "entries_built_total") == 0


async def test_a_replica_drains_before_it_leaves(cluster: Cluster, client: CacheClient) -> None:
    worker = await start(cluster, client, "a12")
    seen: list[type[Event]] = []
    updates = client.watch()
    assert isinstance(await anext(updates), Snapshot)

    async def watch() -> None:
        async for update in updates:
            if isinstance(update, Draining | Left) and update.replica == "a12":
                seen.append(type(update))

    watching = asyncio.create_task(watch())
    await asyncio.to_thread(worker.__del__)
    await until(lambda: Left in seen)
    watching.cancel()
    assert seen == [Draining, Left]


async def test_all_requests_are_served_while_the_service_is_away(tmp_path: Path) -> None:
    service = ServiceProcess(tmp_path / "service")
    with Cluster(tmp_path, service.target) as cluster:
        a = await asyncio.to_thread(cluster.start, "a13", ALWAYS)
        before = await answer(a, ask(13))
        with service:
            b = await asyncio.to_thread(cluster.start, "b13", ALWAYS)
            async with CacheClient(service.target) as client:
                await until(lambda: has(client, key_of(ask(13)), "a13"))
                await until(lambda: asked_and_listed(client, b, "b13"))
        after = [await answer(worker, ask(seed)) for worker in (a, b) for seed in (13, 14)]
        assert after[0][0] == before[0]
        assert [usage.replica for _, usage in after] == ["a13", "a13", "b13", "b13"]


async def asked_and_listed(client: CacheClient, worker: Worker, name: str) -> bool:
    await answer(worker, ask(15))
    return await has(client, key_of(ask(15)), name)
