"""Measures whether a replica fetches a prefix entry from another one sooner than it builds it.

One replica runs behind Ray Serve as it does in `palimpsest serve`; this process is the other one. For each prefix
length this process builds the same entry, fetches it (call, Ray's object store or Ray Direct Transport, checks, copy
into pages), and copies it without Ray (export, digest, checks, copy into pages), which shows how much of a fetch is
Ray's. Both replicas have one thread. A run measures one tensor transport, since that of nixl keeps a core busy on
either side.
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
from cluster.config_file import parse_config, resolve_model_directory
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
    """Return a request with a prefix of random tokens and a short question behind it."""
    generator = torch.Generator().manual_seed(num_prefix)
    prompt = tuple(torch.randint(2, 1894, (num_prefix + 8,), generator=generator).tolist())
    [key] = prefix_keys(fingerprint, "", prompt, [num_prefix])
    params = DecodingParams(policy="bicache-dual", reuse_depth=12, num_steps=1)
    return GenerateRequest(f"p{num_prefix}", prompt, 8, (PrefixCandidate(num_prefix, key),), params)


class Receiver:
    """Obtains entries, one at a time, in the engine of this process."""

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
    def pending_entry(self, request: GenerateRequest) -> Iterator[PrefixEntry]:
        """Yield a pending entry for the request, and retire it at the end of the block."""
        self.engine.submit(request)
        self.engine.step()
        [entry] = self.engine.take_changes().pending
        yield entry
        self.engine.abort(request.request_id)
        self.engine.entries.retire(entry.key, successor=None)

    @torch.inference_mode()
    def build(self, request: GenerateRequest) -> float:
        with self.pending_entry(request) as entry:
            return timed(lambda: self.engine.runner.builder.build(entry))

    def fetch(
        self, request: GenerateRequest, fetch_copy: Callable[[CopyRequest], EntryCopy], holder: ReplicaId
    ) -> float:
        with self.pending_entry(request) as entry:
            copy_request = CopyRequest(holder, entry.key, tuple(sorted(entry.depths)))

            def fetch_and_install() -> None:
                copy = fetch_copy(copy_request)
                check_copy(copy, copy_request, self.engine.entries.format, entry.token_ids)
                assert self.engine.entries.install(copy)

            return timed(fetch_and_install)

    def copier_of(self, copy: EntryCopy) -> Callable[[CopyRequest], EntryCopy]:
        """Adopt `copy`, and return a function that exports it from its pages and seals it, without Ray."""
        self.engine.entries.adopt(copy)

        def copy_locally(request: CopyRequest) -> EntryCopy:
            found = self.engine.entries.export(request.key, request.depths)
            assert found is not None
            return found.sealed()

        return copy_locally


def timed(action: Callable[[], object]) -> float:
    started = time.perf_counter()
    action()
    return time.perf_counter() - started


@contextmanager
def holder(directory: Path, transport: TensorTransport) -> Iterator[tuple[Any, ReplicaId]]:
    """Run a replica behind Serve, and yield its handle and its name."""
    with ServiceProcess(directory / "service") as service:
        ray.init(address="local", object_store_memory=OBJECT_STORE_BYTES, include_dashboard=False, log_to_driver=False)
        worker = {"dtype": "float32", "device": "cpu", "num_threads": 1, "coherence": {"tensor_transport": transport}}
        config = resolve_model_directory(
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
        fetch_copy = copier_over_ray(resources.enter_context(asyncio.Runner()), direct=transport == NIXL)
        for length in lengths:
            request = request_of(length, receiver.fingerprint)
            for _ in handle.options(stream=True).generate.remote(request):
                pass
            copy = fetch_copy(CopyRequest(name, request.prefixes[0].key, None))  # connects the replicas, too
            builds = [receiver.build(request) for _ in range(repeats)]
            fetches = [receiver.fetch(request, fetch_copy, name) for _ in range(repeats)]
            local = [hand_over(receiver, copy) for _ in range(repeats)]
            yield row(length, copy, builds, fetches, local)


def copier_over_ray(loop: asyncio.Runner, *, direct: bool) -> Callable[[CopyRequest], EntryCopy]:
    """Return a function that fetches a copy from the replica by one transport."""
    transport = ServeTransport("DiffusionWorker", APPLICATION, direct=direct, timeout_s=TIMEOUT_S)

    def fetch_copy(request: CopyRequest) -> EntryCopy:
        copy = loop.run(transport.fetch(request))
        assert copy is not None
        assert copy.transport == (NIXL if direct else OBJECT_STORE)
        return copy

    return fetch_copy


def hand_over(receiver: Receiver, copy: EntryCopy) -> float:
    """Copy an entry out of pages and into pages again, sealed and checked but without Ray; return the seconds."""
    request = CopyRequest(ME, copy.key, tuple(sorted(copy.depths)))
    copy_locally = receiver.copier_of(copy)

    def copy_and_adopt() -> None:
        found = copy_locally(request)
        check_copy(found, request, receiver.engine.entries.format, copy.token_ids)
        receiver.engine.entries.retire(copy.key, successor=None)
        assert receiver.engine.entries.adopt(found)

    seconds = timed(copy_and_adopt)
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
    quick: Annotated[bool, typer.Option("--quick", help="Measure two lengths, under 45 s on 2 cores.")] = False,
    json: Annotated[Path | None, typer.Option(help="Write the results to this file.")] = None,
    tensor_transport: Annotated[str, typer.Option(help=f"Tensor transport: {OBJECT_STORE} or {NIXL}.")] = OBJECT_STORE,
) -> None:
    """Measure build time over fetch time by prefix length, as a table and JSON."""
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
