"""Exceptions in the tasks beside the engine: what each strikes, and how it is noticed."""

from __future__ import annotations

import asyncio

import pytest

from cache_service.client.client import CacheClient
from cache_service.core.types import Context
from tests.support.waiting import until
from tests.unit.workers.coherence.replicas import Cluster, answer, ask, count, has, key_of
from workers.api import ContextEpoch, ContextMode, ContextRead
from workers.coherence.supplier import Supplier
from workers.coherence.sync import PrefixSync
from workers.errors import MembershipEndedError
from workers.worker import Worker


@pytest.fixture(autouse=True)
def short_rests(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cache_service.background.RESTART_S", 0.05)


@pytest.fixture
async def worker(cluster: Cluster, client: CacheClient) -> Worker:
    worker = await asyncio.to_thread(cluster.start, "watched")
    await answer(worker, ask(1))
    await until(lambda: has(client, key_of(ask(1)), "watched"))
    return worker


async def test_a_worker_whose_membership_thread_has_ended_is_unhealthy_with_the_reason(
    worker: Worker, client: CacheClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It goes on answering, also questions about contexts, until Serve has replaced it."""
    worker.check_health()

    async def fall(_: PrefixSync) -> None:
        raise SystemExit("the sky has fallen")

    monkeypatch.setattr(PrefixSync, "_reconcile", fall)
    membership = worker._membership
    assert membership is not None
    membership._call(membership._sync.wake)
    await until(lambda: not membership.is_alive)
    with pytest.raises(MembershipEndedError, match=r"membership thread has ended: SystemExit.*the sky has fallen"):
        worker.check_health()
    context = await client.create_context("f", "", [1, 2, 3], author=membership._sync._replica)
    replies: list[Context | None] = []
    membership.ask(ContextRead(ContextEpoch(context.id, 0), 3, ContextMode.FOLLOW, 0), replies.append)
    assert replies == [None]


async def test_a_synchronization_that_fails_begins_again_and_is_counted(
    worker: Worker, client: CacheClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, failures = PrefixSync._reconcile, [LookupError(), ValueError()]

    async def reconcile(sync: PrefixSync) -> None:
        if failures:
            raise failures.pop()
        await whole(sync)

    monkeypatch.setattr(PrefixSync, "_reconcile", reconcile)
    await answer(worker, ask(2))
    await until(lambda: has(client, key_of(ask(2)), "watched"))
    assert await count(worker, "task_errors_total", task="sync") == 2
    worker.check_health()


async def test_a_supply_that_fails_strikes_no_other_entry_and_ends_in_a_build(
    worker: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def obtain(supplier: Supplier, pending: object) -> bool:
        raise LookupError

    with monkeypatch.context() as patch:
        patch.setattr(Supplier, "_obtain_copy", obtain)
        await answer(worker, ask(3))
    await answer(worker, ask(4))
    assert await count(worker, "task_errors_total", task="supply") == 1
    worker.check_health()


async def test_entries_whose_supply_can_not_begin_are_built(worker: Worker, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise LookupError

    with monkeypatch.context() as patch:
        patch.setattr(Supplier, "apply", refuse)
        async with asyncio.timeout(60):
            await answer(worker, ask(5))
    assert await count(worker, "task_errors_total", task="supply") > 0


async def test_an_exception_that_no_task_handles_is_counted(worker: Worker) -> None:
    def fail() -> None:
        raise LookupError

    assert worker._membership is not None
    worker._membership._call(fail)
    await until(lambda: count(worker, "task_errors_total", task="loop"))
    await answer(worker, ask(6))
    worker.check_health()
