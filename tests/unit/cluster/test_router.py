"""The adapter to Serve's request routing, without Ray: which replicas it offers, and what its ledger counts."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from types import SimpleNamespace
from typing import Self

import pytest
from ray import serve

from cache_service.client.contact import WatchContact
from cache_service.core.types import Placement, PrefixKey, ReplicaId, Revision, Snapshot
from cluster import router as module
from cluster.background import BackgroundTasks
from cluster.router import PrefixAffinityRouter
from tests.support.ray_serve import DEPLOYMENT, PendingRequest, Result, RunningReplica, affinity_router
from tests.support.waiting import until
from workers.api import CopyRequest, GenerateRequest, PrefixCandidate

A, B, C = ReplicaId("a"), ReplicaId("b"), ReplicaId("c")
SHORT, LONG = PrefixCandidate(40, PrefixKey(b"short")), PrefixCandidate(100, PrefixKey(b"long"))
REPLICAS = [RunningReplica.named(name) for name in (A, B, C)]
PROMPT_TOKENS, CANVAS = 120, 16


def placements(*held: tuple[PrefixCandidate, ReplicaId]) -> tuple[Placement, ...]:
    return tuple(Placement(prefix.key, replica, prefix.num_tokens, 4, 1) for prefix, replica in held)


def snapshot(*held: tuple[PrefixCandidate, ReplicaId], draining: tuple[ReplicaId, ...] = ()) -> Snapshot:
    return Snapshot(Revision(9), (A, B, C), placements(*held), draining=draining)


def answer_call(request_id: str = "r", *prefixes: PrefixCandidate) -> PendingRequest:
    return PendingRequest([GenerateRequest(request_id, (1,) * PROMPT_TOKENS, CANVAS, prefixes)])


def copy_call(holder: ReplicaId) -> PendingRequest:
    return PendingRequest([CopyRequest(holder, LONG.key, None)])


async def ranks_of(
    router: PrefixAffinityRouter, pending: PendingRequest | None, replicas: list[RunningReplica] = REPLICAS
) -> list[list[str]]:
    ranks = await router.choose_replicas(replicas, pending)
    return [[replica.replica_id.unique_id for replica in rank] for rank in ranks]


def route(router: PrefixAffinityRouter, pending: PendingRequest, name: str) -> Result:
    result = Result()
    router.on_request_routed(pending, RunningReplica.named(name).replica_id, result)
    return result


def sent(router: PrefixAffinityRouter) -> dict[str, int]:
    return {replica: router._ledger.sent_tokens(replica) for replica in router._ledger.replicas}


@pytest.fixture(autouse=True)
def in_a_replica(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make this process one that needs no view: no watch is started, and the tests fill the mirror themselves."""
    monkeypatch.setattr(serve, "get_replica_context", lambda: SimpleNamespace(deployment=DEPLOYMENT))


@pytest.fixture
def router() -> Iterator[PrefixAffinityRouter]:
    with affinity_router() as router:
        yield router


@pytest.mark.parametrize("holder", [A, B, C])
async def test_the_holder_of_the_cut_comes_first(router: PrefixAffinityRouter, holder: ReplicaId) -> None:
    router._mirror.take(snapshot((LONG, holder)))

    ranks = await ranks_of(router, answer_call("r", SHORT, LONG))

    assert ranks[0] == [holder]
    assert sorted(ranks) == [[A], [B], [C]], "each replica is a rank of its own"


@pytest.mark.parametrize(("cut_share", "cut"), [(0.5, LONG), (0.4, SHORT)])
async def test_only_the_boundary_of_the_cut_attracts(cut_share: float, cut: PrefixCandidate) -> None:
    other = SHORT if cut is LONG else LONG
    with affinity_router(cut_share=cut_share) as router:
        router._mirror.take(snapshot((cut, B), (other, C), (other, A)))
        pending = answer_call("r", SHORT, LONG)
        assert (await ranks_of(router, pending))[0] == [B]
        route(router, pending, B)
        assert sent(router) == {B: PROMPT_TOKENS - cut.num_tokens + CANVAS}
        route(router, pending, C)
        assert sent(router) == {C: PROMPT_TOKENS + CANVAS}


async def test_requests_of_one_prefix_meet_before_any_entry_is_known(router: PrefixAffinityRouter) -> None:
    firsts = set()
    for number in range(8):
        pending = answer_call(f"r{number}", SHORT)
        firsts.add((await ranks_of(router, pending))[0][0])
        router._ledger.forget(f"r{number}")
    assert len(firsts) == 1


async def test_work_that_is_queued_on_a_holder_outweighs_its_entry(router: PrefixAffinityRouter) -> None:
    router._mirror.take(snapshot((LONG, A)))
    route(router, answer_call("long"), A)

    ranks = await ranks_of(router, answer_call("next", LONG))

    assert ranks[-1] == [A]


async def test_requests_that_were_only_chosen_for_count_at_once(router: PrefixAffinityRouter) -> None:
    """Several are chosen for before the first is accepted; they must not all go to one replica."""
    firsts = [(await ranks_of(router, answer_call(f"r{number}", SHORT)))[0][0] for number in range(3)]
    assert sorted(firsts) == [A, B, C]


async def test_a_draining_replica_gets_no_new_work(router: PrefixAffinityRouter) -> None:
    router._mirror.take(snapshot((LONG, A), draining=(A,)))

    assert sorted(await ranks_of(router, answer_call("r", LONG))) == [[B], [C]]
    assert sorted((await ranks_of(router, None))[0]) == [B, C]
    assert await ranks_of(router, answer_call("r", LONG), REPLICAS[:1]) == [[A]], "it is the last one"


async def test_a_draining_replica_still_delivers_copies(router: PrefixAffinityRouter) -> None:
    router._mirror.take(snapshot((LONG, A), draining=(A,)))

    assert await ranks_of(router, copy_call(A)) == [[A]]


async def test_a_copy_comes_from_the_named_replica(router: PrefixAffinityRouter) -> None:
    router._mirror.take(snapshot((LONG, A), (LONG, B)))
    route(router, answer_call("busy"), B)

    assert await ranks_of(router, copy_call(B)) == [[B]]


async def test_any_replica_is_asked_for_the_copy_of_one_that_is_gone(router: PrefixAffinityRouter) -> None:
    assert await ranks_of(router, copy_call(ReplicaId("gone"))) == [[A, B, C]]


async def test_a_call_without_work_may_go_anywhere_and_is_not_counted(router: PrefixAffinityRouter) -> None:
    for pending in (None, PendingRequest([]), copy_call(A)):
        await ranks_of(router, pending)
    assert await ranks_of(router, PendingRequest([])) == [[A, B, C]]
    assert route(router, PendingRequest([]), A).callbacks == []
    assert route(router, copy_call(A), A).callbacks == []
    assert sent(router) == {}


async def test_serve_backs_off_between_two_rounds(router: PrefixAffinityRouter) -> None:
    for pending in (answer_call(), copy_call(A)):
        await ranks_of(router, pending)
        assert pending.routing_context.should_backoff is True


async def test_a_retry_is_counted_once_where_it_runs(router: PrefixAffinityRouter) -> None:
    pending = answer_call()
    first = (await ranks_of(router, pending))[0][0]
    lost = route(router, pending, first)

    others = [replica for replica in REPLICAS if replica.replica_id.unique_id != first]
    second = (await ranks_of(router, pending, others))[0][0]
    assert sent(router) == {second: PROMPT_TOKENS + CANVAS}
    route(router, pending, second)
    await lost.complete()

    assert sent(router) == {second: PROMPT_TOKENS + CANVAS}, "the end of the first try closes the first try only"


async def test_an_own_earlier_try_does_not_make_a_replica_look_busy(router: PrefixAffinityRouter) -> None:
    pending = answer_call("r", SHORT)
    first = await ranks_of(router, pending)
    assert await ranks_of(router, pending) == first


async def test_a_request_that_no_replica_accepts_is_dropped_from_the_ledger(
    router: PrefixAffinityRouter, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "ACCEPTANCE_S", 0.0)
    await ranks_of(router, answer_call("never"))
    assert sum(sent(router).values()) == PROMPT_TOKENS + CANVAS
    await ranks_of(router, answer_call("next"))
    assert sum(sent(router).values()) == PROMPT_TOKENS + CANVAS, "only the next one is counted"


async def test_accepted_work_counts_until_its_result_is_complete(
    router: PrefixAffinityRouter, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "ACCEPTANCE_S", 0.0)
    pending = answer_call()
    [first, *_] = await ranks_of(router, pending)
    result = route(router, pending, first[0])
    await ranks_of(router, answer_call("next"))
    assert sent(router)[first[0]] == PROMPT_TOKENS + CANVAS, "it outlives the time in which it had to be accepted"

    await result.complete()
    assert first[0] not in sent(router)


async def test_the_load_that_a_replica_reports_counts_for_it(router: PrefixAffinityRouter) -> None:
    pending = answer_call()
    router._replica_queue_len_cache = {RunningReplica.named(A).replica_id: 3}
    route(router, pending, A)

    assert router._ledger.queued_tokens(A) == 3 * (PROMPT_TOKENS + CANVAS)
    assert (await ranks_of(router, answer_call("next")))[-1] == [A]


async def test_hits_and_misses_are_counted_where_requests_went(router: PrefixAffinityRouter) -> None:
    router._mirror.take(snapshot((LONG, A)))
    for number, name in enumerate((A, A, B)):
        route(router, answer_call(f"r{number}", LONG), name)

    samples = [sample for metric in router._collector.collect() for sample in metric.samples]
    counts = {
        (s.labels["replica"], s.labels["affinity"]): s.value
        for s in samples
        if s.name == "palimpsest_router_requests_total"
    }
    assert counts == {(A, "hit"): 2, (B, "miss"): 1}


class WatchedService:
    """Replaces the client of the cache service: a watch yields one snapshot and stays open."""

    targets: list[str] = []  # noqa: RUF012 (the test reads it)

    def __init__(self, target: str, contact: WatchContact) -> None:
        self.targets.append(target)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None: ...

    async def watch(self, *, with_content: bool = True) -> AsyncIterator[Snapshot]:
        assert not with_content, "a router has no use for the content of contexts"
        yield snapshot((LONG, C))
        await asyncio.Event().wait()


@pytest.mark.parametrize(("deployment", "is_watching"), [(DEPLOYMENT, False), ("Ingress", True)])
async def test_only_the_ingress_watches_the_cache_service(
    deployment: str, is_watching: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    tasks = BackgroundTasks()
    monkeypatch.setattr(module, "CacheClient", WatchedService)
    monkeypatch.setattr(module, "tasks_of_process", lambda: tasks)
    monkeypatch.setattr(serve, "get_replica_context", lambda: SimpleNamespace(deployment=deployment))
    monkeypatch.setattr(WatchedService, "targets", [])
    with affinity_router(cache_service="cache:9100") as router:
        if is_watching:
            await until(lambda: router._view.holders((LONG.key,)) == {LONG.key: {C}})
        assert WatchedService.targets == ["cache:9100"] * is_watching
        for task in tasks._running.copy():
            tasks._running.discard(task)
            task.cancel()


async def test_a_process_that_is_no_replica_watches_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    assert not module.is_replica_of(DEPLOYMENT)
