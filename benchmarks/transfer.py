"""Is a prefix entry fetched from another replica sooner than it is built anew?

One replica runs behind Ray Serve as it does in `palimpsest serve`; this process is the other one. For each prefix
length the same entry is built here, fetched here (call, Ray's object store or Ray Direct Transport, checks, copy into
pages), and handed over without Ray (export, digest, checks, copy into pages), which tells how much of a fetch is Ray's.
Both have one thread. One tensor transport a run: that of nixl keeps a core busy on either side.
"""

from __future__ import annotations

import asyncio
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import ray
import torch
import typer
from ray import serve

from benchmarks.report import Bar, Report, Row, cpu_name
from cache_service.core.hashing import prefix_keys
from cache_service.core.types import ReplicaId
from cache_service.testing.processes import ServiceProcess
from cluster.app import worker_deployment
from cluster.config import located, parse_config
from workers.api import CopyRequest, DecodingParams, GenerateRequest, PrefixCandidate
from workers.bicache.copies import EntryCopy, check_copy
from workers.bicache.entry import PrefixEntry
from workers.config import BiCacheConfig, EngineConfig, KVConfig, TensorTransport
from workers.deployment import NIXL, OBJECT_STORE, ServeTransport
from workers.engine.factory import create_engine
from workers.models.bundle import model_directory
from workers.models.loader import load_model

MODEL, APPLICATION = "factbook", "transfer"
LENGTHS, QUICK_LENGTHS = (64, 256, 512, 1024, 1536), (64, 1024)
REPEATS, QUICK_REPEATS = 15, 5
BAR_LENGTH = 1024
POOL_BYTES = 1 << 30
OBJECT_STORE_BYTES = 256 << 20
TIMEOUT_S = 60.0
ME = ReplicaId("benchmark")


def request_of(num_prefix: int, fingerprint: str) -> GenerateRequest:
    """A prefix of random words, and a short question behind it."""
    generator = torch.Generator().manual_seed(num_prefix)
    prompt = tuple(torch.randint(2, 1894, (num_prefix + 8,), generator=generator).tolist())
    [key] = prefix_keys(fingerprint, "", prompt, [num_prefix])
    params = DecodingParams(policy="bicache-dual", reuse_depth=12, num_steps=1)
    return GenerateRequest(f"p{num_prefix}", prompt, 8, (PrefixCandidate(num_prefix, key),), params)


class Receiver:
    """The engine of this process, and one entry at a time that is wanted in it."""

    def __init__(self) -> None:
        self._loaded = load_model(model_directory(MODEL), device=torch.device("cpu"), dtype=torch.float32)
        self.fingerprint = self._loaded.fingerprint
        self.engine = create_engine(
            self._loaded,
            engine=EngineConfig(),
            kv=KVConfig(pool_bytes=POOL_BYTES, entry_bytes=POOL_BYTES // 2),
            bicache=BiCacheConfig(),
            replica=ME,
            device=torch.device("cpu"),
            dtype=torch.float32,
            shares_builds=True,
        )

    @contextmanager
    def wanting(self, request: GenerateRequest) -> Iterator[PrefixEntry]:
        """A pending entry for the request, until the end of the block."""
        self.engine.submit(request)
        self.engine.step()
        [entry] = self.engine.take_changes().wanted
        yield entry
        self.engine.abort(request.request_id)
        self.engine.entries.retire(entry.key, successor=None)

    @torch.inference_mode()
    def build(self, request: GenerateRequest) -> float:
        with self.wanting(request) as entry:
            return timed(lambda: self.engine.runner.builder.build(entry))

    def fetch(self, request: GenerateRequest, copied: Callable[[CopyRequest], EntryCopy], holder: ReplicaId) -> float:
        with self.wanting(request) as entry:
            asked = CopyRequest(holder, entry.key, tuple(sorted(entry.depths)))

            def whole() -> None:
                copy = copied(asked)
                check_copy(copy, asked, self.engine.entries.format, entry.token_ids)
                assert self.engine.entries.install(copy)

            return timed(whole)

    def hand_over(self, copy: EntryCopy) -> Callable[[CopyRequest], EntryCopy]:
        """The way of a copy without Ray: out of pages that hold it, and sealed."""
        self.engine.entries.adopt(copy)

        def again(asked: CopyRequest) -> EntryCopy:
            found = self.engine.entries.export(asked.key, asked.depths)
            assert found is not None
            return found.sealed()

        return again


def timed(action: Callable[[], object]) -> float:
    started = time.perf_counter()
    action()
    return time.perf_counter() - started


@contextmanager
def holder(directory: Path, transport: TensorTransport) -> Iterator[tuple[Any, ReplicaId]]:
    """A replica behind Serve: its handle and its name."""
    with ServiceProcess(directory / "service") as service:
        ray.init(address="local", object_store_memory=OBJECT_STORE_BYTES, include_dashboard=False, log_to_driver=False)
        worker = {"dtype": "float32", "device": "cpu", "num_threads": 1, "coherence": {"tensor_transport": transport}}
        config = located(
            parse_config({"replicas": 1, "worker": worker, "cache_service": {"port": service.port, "spawn": False}})
        )
        try:
            handle = serve.run(worker_deployment(config, num_gpus=0), name=APPLICATION, route_prefix=None)
            yield handle, handle.stats.remote().result().replica
        finally:
            serve.shutdown()
            ray.shutdown()


def measure(transport: TensorTransport, lengths: Sequence[int], repeats: int) -> Iterator[Row]:
    receiver = Receiver()
    with TemporaryDirectory() as directory, ExitStack() as resources:
        handle, name = resources.enter_context(holder(Path(directory), transport))
        copied = over_ray(resources.enter_context(asyncio.Runner()), direct=transport == NIXL)
        for length in lengths:
            request = request_of(length, receiver.fingerprint)
            for _ in handle.options(stream=True).generate.remote(request):
                pass
            copy = copied(CopyRequest(name, request.prefixes[0].key, None))  # the first one finds the way
            builds = [receiver.build(request) for _ in range(repeats)]
            fetches = [receiver.fetch(request, copied, name) for _ in range(repeats)]
            local = [receiver_alone(receiver, copy) for _ in range(repeats)]
            yield row(length, copy, builds, fetches, local)


def over_ray(loop: asyncio.Runner, *, direct: bool) -> Callable[[CopyRequest], EntryCopy]:
    """One way from the replica to this process."""
    transport = ServeTransport("DiffusionWorker", APPLICATION, direct=direct, timeout_s=TIMEOUT_S)

    def copied(asked: CopyRequest) -> EntryCopy:
        copy = loop.run(transport.fetch(asked))
        assert copy is not None
        assert copy.transport == (NIXL if direct else OBJECT_STORE)
        return copy

    return copied


def receiver_alone(receiver: Receiver, copy: EntryCopy) -> float:
    """Seconds of a hand-over without Ray: out of pages, sealed, checked, and into pages again."""
    asked = CopyRequest(ME, copy.key, tuple(sorted(copy.depths)))
    again = receiver.hand_over(copy)

    def whole() -> None:
        found = again(asked)
        check_copy(found, asked, receiver.engine.entries.format, copy.token_ids)
        receiver.engine.entries.retire(copy.key, successor=None)
        assert receiver.engine.entries.adopt(found)

    seconds = timed(whole)
    receiver.engine.entries.retire(copy.key, successor=None)
    receiver.engine.take_changes()
    return seconds


def row(length: int, copy: EntryCopy, builds: list[float], fetches: list[float], local: list[float]) -> Row:
    build, fetch, alone = (statistics.median(times) for times in (builds, fetches, local))
    return {
        "transport": copy.transport,
        "prefix_tokens": length,
        "entry_mib": copy.num_bytes / (1 << 20),
        "build_ms": 1000 * build,
        "fetch_ms": 1000 * fetch,
        "without_ray_ms": 1000 * alone,
        "build_over_fetch": build / fetch,
    }


def bars(rows: Sequence[Row]) -> list[Bar]:
    name = f"build time over fetch time at {BAR_LENGTH} prefix tokens"
    return [Bar(name, found["build_over_fetch"], ">=", 1.0) for found in rows if found["prefix_tokens"] == BAR_LENGTH]


def main(
    quick: Annotated[bool, typer.Option("--quick", help="Two lengths: under 45 s on 2 cores.")] = False,
    json: Annotated[Path | None, typer.Option(help="Write the results to this file.")] = None,
    tensor_transport: Annotated[str, typer.Option(help=f"{OBJECT_STORE}, or {NIXL}.")] = OBJECT_STORE,
) -> None:
    """Build time over fetch time by prefix length, as a table and JSON."""
    if tensor_transport not in (OBJECT_STORE, NIXL):
        raise typer.BadParameter(f"must be {OBJECT_STORE} or {NIXL}", param_hint="--tensor-transport")
    torch.set_num_threads(1)
    transport: TensorTransport = NIXL if tensor_transport == NIXL else OBJECT_STORE
    rows = list(measure(transport, QUICK_LENGTHS if quick else LENGTHS, QUICK_REPEATS if quick else REPEATS))
    report = Report("transfer", rows, bars(rows), cpu_name())
    report.print()
    if json:
        report.write(json)


if __name__ == "__main__":
    typer.run(main)
