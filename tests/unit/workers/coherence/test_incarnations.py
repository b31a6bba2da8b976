"""What a worker learned from one incarnation of the cache service ends with it."""

from __future__ import annotations

import asyncio
from pathlib import Path

from cache_service.client.client import CacheClient
from cache_service.core.types import DepthLimit, DepthTable, Placement, ReplicaId
from cache_service.testing.processes import ServiceProcess
from tests.unit.workers.coherence.replicas import LONG_S, PREFIX, Cluster, ask, has, key_of, start, until


async def test_depth_limits_end_with_the_service_that_knew_them(tmp_path: Path) -> None:
    with ServiceProcess(tmp_path / "service") as service, Cluster(tmp_path, service.target) as cluster:
        async with CacheClient(service.target, timeout_s=LONG_S) as client:
            worker, own = await start(cluster, client, "a20"), key_of(ask(sum(b"a20")))
            others, missed = key_of(ask(2000)), key_of(ask(2001))  # one whose end an earlier watch failed to report

            def known_limits() -> list[int | None]:
                keys = (own, others, missed)
                return worker._engine.call(lambda entries: [entries._limits.depth(key, 60) for key in keys]).result(60)

            async def knows(*depths: int | None) -> bool:
                return await asyncio.to_thread(known_limits) == list(depths)

            lease = await client.register(ReplicaId("b20"), LONG_S, depth_table=DepthTable(0, 2))
            await client.announce(lease, [Placement(key, lease.replica, PREFIX, 2, 100) for key in (own, others)])
            await client.report_drift(lease, [DepthLimit(key, 60, 1, 0) for key in (own, others)])
            await until(lambda: knows(1, 1, None))
            await asyncio.to_thread(service.kill)
            worker._engine.call(lambda entries: entries.record_limits([DepthLimit(missed, 60, 1, 0)]))
            assert await knows(1, 1, 1)
            await asyncio.to_thread(service.start)
            await until(lambda: knows(None, None, None))
            await until(lambda: has(client, own, "a20"))
            assert await client.depth_limits([own, others]) == ()
