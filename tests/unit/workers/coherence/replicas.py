"""Run the workers of a cluster in this process, where they hand each other copies: what Serve deploys, less Serve."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path

from prometheus_client.parser import text_string_to_metric_families

from cache_service.client.client import CacheClient
from cache_service.core.hashing import prefix_keys
from cache_service.core.types import PrefixKey, ReplicaId
from cache_service.errors import CacheServiceUnavailable
from tests.support.waiting import until
from tests.unit.workers.test_worker import write_llada
from workers.api import CopyRequest, DecodingParams, GenerateRequest, PrefixCandidate, Usage
from workers.bicache.copies import EntryCopy, TransferError
from workers.config import BiCacheConfig, CoherenceConfig, KVConfig, WorkerConfig
from workers.worker import Worker

PREFIX, CANVAS = 40, 8
LONG_S = 60.0
ALWAYS = CoherenceConfig(transfer="always", max_wait_s=LONG_S, prewarm=0)


@dataclass
class Neighbours:
    """Carries copies between workers of one process."""

    workers: dict[ReplicaId, Worker] = field(default_factory=dict)
    tamper: Callable[[EntryCopy], EntryCopy] | None = None
    """What happens to copies on the way."""
    num_fetches: int = 0

    async def fetch(self, request: CopyRequest) -> EntryCopy | None:
        self.num_fetches += 1
        holder = self.workers.get(request.holder)
        if holder is None:
            raise TransferError("no replica has this name")
        copy = await holder.send_copy(request)
        return self.tamper(copy) if self.tamper and copy else copy


class Cluster:
    """Starts workers with a model of random weights, and closes at the end those that are still running."""

    def __init__(self, directory: Path, target: str) -> None:
        self.neighbours = Neighbours()
        self._model, self._target = directory, target
        self._resources = ExitStack()
        write_llada(directory)
        (directory / "depth_table.json").write_text(json.dumps({"table": {"0": 2}}))

    def __enter__(self) -> Cluster:
        return self

    def __exit__(self, *_: object) -> None:
        self._resources.close()

    def start(
        self, name: str, coherence: CoherenceConfig | None = None, *, model: Path | None = None, **bicache: object
    ) -> Worker:
        """Start a worker that fetches wherever it can, unless `coherence` says otherwise."""
        config = WorkerConfig(
            model=model or self._model,
            device="cpu",
            num_threads=1,
            cache_service=self._target,
            lease_ttl_s=2.0,
            kv=KVConfig(pool_bytes=1 << 26, entry_bytes=1 << 25),
            bicache=replace(BiCacheConfig(probe_positions=0), **bicache),
            coherence=coherence or CoherenceConfig(transfer="always"),
        )
        worker = Worker(config, ReplicaId(name), 2, self.neighbours)
        self.neighbours.workers[ReplicaId(name)] = worker
        self._resources.callback(worker.__del__)
        return worker


def ask(seed: int = 0, name: str = "r", **params: object) -> GenerateRequest:
    """Return a request. Those of one `seed` share their prefix."""
    prompt = tuple((seed * 31 + position * 7) % 90 for position in range(PREFIX + 3))
    [key] = prefix_keys("model", "", prompt, [PREFIX])
    return GenerateRequest(name, prompt, CANVAS, (PrefixCandidate(PREFIX, key),), DecodingParams(**params))  # type: ignore[arg-type]


async def answer(worker: Worker, request: GenerateRequest) -> tuple[tuple[int, ...], Usage]:
    token_ids: tuple[int, ...] = ()
    async for chunk in worker.generate(request):
        token_ids, usage = token_ids + chunk.token_ids, chunk.usage
    assert usage is not None
    return token_ids, usage


async def count(worker: Worker, name: str, **labels: str) -> float:
    """Return one of the worker's metrics, summed over the samples with these labels."""
    families = text_string_to_metric_families(await worker.metrics())
    found = (sample for family in families for sample in family.samples)
    return sum(
        one.value for one in found if one.name == f"palimpsest_worker_{name}" and labels.items() <= one.labels.items()
    )


def key_of(request: GenerateRequest) -> PrefixKey:
    return request.prefixes[0].key


async def listed(client: CacheClient, key: PrefixKey) -> set[str]:
    try:
        return {placement.replica for placement in (await client.lookup([key])).get(key, ())}
    except CacheServiceUnavailable:  # the test's own connection is still finding the server
        return set()


async def start(cluster: Cluster, client: CacheClient, name: str, coherence: CoherenceConfig = ALWAYS) -> Worker:
    """Start a worker, and wait until it is a member: its first answer's entry is announced."""
    worker = await asyncio.to_thread(cluster.start, name, coherence)
    first = ask(seed=sum(name.encode()))
    await answer(worker, first)
    await until(lambda: has(client, key_of(first), name))
    return worker


async def has(client: CacheClient, key: PrefixKey, *names: str) -> bool:
    return await listed(client, key) >= set(names)
