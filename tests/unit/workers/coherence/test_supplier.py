"""The supplier of a replica whose watch lags far behind."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import TypeVar

import pytest
import torch

from cache_service.client.client import CacheClient
from cache_service.client.waits import BuildWaits
from cache_service.core.mirror import Mirror
from cache_service.core.types import FIRST_EPOCH, Build, DepthTable, FencingToken, PrefixKey, ReplicaId
from cache_service.testing.processes import ServiceProcess
from tests.unit.workers.coherence.replicas import Cluster, answer, ask, until
from workers.bicache.copies import EntryFormat, UnreachableTransport
from workers.bicache.entry import Changes
from workers.bicache.entry_report import EntryReport, PendingEntry
from workers.bicache.entry_table import EngineThread, EntryCommands
from workers.coherence.estimate import CostModel, Prior
from workers.coherence.faults import TaskFaults
from workers.coherence.inventory import Inventory
from workers.coherence.supplier import Supplier
from workers.coherence.sync import PrefixSync
from workers.coherence.tally import Tally
from workers.coherence.view import ClusterView
from workers.config import BiCacheConfig, CoherenceConfig, EngineConfig, KVConfig
from workers.engine.async_engine import AsyncEngine, NullObserver
from workers.engine.engine import Engine
from workers.engine.factory import create_engine
from workers.models.loader import load_model
from workers.worker import cost_model

T = TypeVar("T")
CPU = torch.device("cpu")
US = ReplicaId("us")
TABLE = DepthTable(0, 2)
KEY = PrefixKey(b"k" * 20)
CONFIG = CoherenceConfig(transfer="always", max_wait_s=60.0)


def engine_for(model: Path) -> Engine:
    return create_engine(
        load_model(model, device=CPU, dtype=torch.float32),
        engine=EngineConfig(),
        kv=KVConfig(pool_bytes=1 << 24, entry_bytes=1 << 23),
        bicache=BiCacheConfig(probe_positions=0),
        replica=US,
        device=CPU,
        dtype=torch.float32,
        shares_builds=True,
    )


async def test_a_granted_build_is_not_begun_where_another_has_just_ended(tmp_path: Path) -> None:
    """The view does not know that a neighbour holds the entry; the service is asked once the build is ours."""
    tally, loop = Tally(), asyncio.get_running_loop()
    with ServiceProcess(tmp_path / "service") as service, Cluster(tmp_path, service.target) as cluster:
        neighbour = await asyncio.to_thread(cluster.start, "neighbour")
        engine = engine_for(tmp_path)
        async with CacheClient(service.target, timeout_s=30.0) as client:
            expected, _ = await answer(neighbour, ask(1))
            await until(lambda: is_held(client))
            view, front = ClusterView(Mirror()), AsyncEngine(engine)
            inventory = Inventory()
            sync = PrefixSync(client, US, 30.0, view, inventory, TABLE, tally)
            supplier = Supplier(
                US,
                CONFIG,
                client=client,
                sync=sync,
                inventory=inventory,
                view=view,
                waits=BuildWaits(Mirror()),
                engine=front,
                transport=cluster.neighbours,
                entry_format=engine.entries.format,
                costs=cost_model(load_model(tmp_path, device=CPU, dtype=torch.float32).config, CPU),
                tally=tally,
                faults=TaskFaults(tally),
            )

            class Observer(NullObserver):
                def apply(self, changes: Changes) -> None:
                    report = EntryReport.of(changes)
                    loop.call_soon_threadsafe(lambda: (supplier.apply(report), sync.apply(report)))

            front.connect(Observer())
            syncing = asyncio.create_task(sync.run())
            await sync.joined.wait()
            with front:
                chunks = [chunk async for chunk in front.generate(ask(1))]
                await until(lambda: has_two_holders(client))
            syncing.cancel()
            await asyncio.gather(syncing, return_exceptions=True)
            await supplier.close()
    assert tuple(token for chunk in chunks for token in chunk.token_ids) == expected
    assert (tally.built, tally.fetched) == (0, 1)


async def is_held(client: CacheClient) -> bool:
    return bool(await client.lookup([ask(1).prefixes[0].key]))


async def has_two_holders(client: CacheClient) -> bool:
    [placements] = (await client.lookup([ask(1).prefixes[0].key])).values()
    return len(placements) == 2


async def test_an_entry_is_supplied_again_right_after_its_predecessor_was_abandoned() -> None:
    """One report has both: an abort, and a commit's eager build of the entry that the request waited for."""
    supplier, _, commands = unconnected()
    supplier.apply(EntryReport(awaited=(PendingEntry(KEY, (1, 2, 3), (1,), 1),), abandoned=(KEY,)))
    await until(lambda: commands.num)
    await supplier.close()


@pytest.mark.parametrize("report", [EntryReport(abandoned=(KEY,)), EntryReport(gone=(KEY,))])
async def test_a_build_ends_with_its_entry(report: EntryReport) -> None:
    """That holds also for an entry that was live for too short a time to be announced."""
    supplier, inventory, _ = unconnected()
    inventory.add_build(Build(KEY, FIRST_EPOCH, US, FencingToken(1), 10.0))
    supplier.apply(report)
    assert inventory.remove_build(KEY) is None
    await supplier.close()


def unconnected() -> tuple[Supplier, Inventory, Commands]:
    """Return a supplier of a replica that the service doesn't know, its inventory, and its commands to the engine."""
    tally, view, commands, client = Tally(), ClusterView(Mirror()), Commands(), CacheClient("127.0.0.1:1")
    inventory = Inventory()
    sync = PrefixSync(client, US, 30.0, view, inventory, TABLE, tally)
    supplier = Supplier(
        US,
        CONFIG,
        client=client,
        sync=sync,
        inventory=inventory,
        view=view,
        waits=BuildWaits(Mirror()),
        engine=commands,
        transport=UnreachableTransport(),
        entry_format=EntryFormat(
            "f", "e", "torch.float32", num_layers=2, num_kv_heads=1, head_dim=8, hidden_size=8, itemsize=4
        ),
        costs=CostModel(Prior(0.0, 1e-6, 100.0), Prior(0.0, 1e-9, 1e6)),
        tally=tally,
        faults=TaskFaults(tally),
    )
    return supplier, inventory, commands


class Commands(EngineThread):
    """Counts the commands to the engine's thread, and runs none."""

    def __init__(self) -> None:
        self.num = 0

    def call(self, command: Callable[[EntryCommands], T]) -> Future[T]:
        self.num += 1
        return Future()
