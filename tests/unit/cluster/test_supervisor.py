from __future__ import annotations

import asyncio
import os
import socket
from pathlib import Path

import pytest

from cache_service.client.client import CacheClient
from cache_service.core.quotas import ContextQuotas
from cache_service.core.types import ReplicaId
from cache_service.errors import CacheServiceUnavailable, TenantQuotaExceeded
from cache_service.testing import free_port
from cluster.config import CacheServiceConfig, ClusterConfig, GrpcConfig, HttpConfig
from cluster.errors import StartError
from cluster.supervisor.supervisor import Machine, check_ports, child_environment, run_directory
from tests.support.waiting import until
from workers.config import WorkerConfig

ANY_PORTS = {"http": HttpConfig(port=0), "grpc": GrpcConfig(port=0), "cache_service": CacheServiceConfig(port=0)}


def config(**parts: object) -> ClusterConfig:
    return ClusterConfig(worker=WorkerConfig(model=Path("model")), **(ANY_PORTS | parts))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("part", "kind", "option"),
    [
        ("http", HttpConfig, "--http-port"),
        ("grpc", GrpcConfig, "--grpc-port"),
        ("cache_service", CacheServiceConfig, "--cache-port"),
    ],
)
def test_a_taken_port_is_reported_with_its_option(part: str, kind: type, option: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        wanted = kind(port=taken.getsockname()[1])
        with pytest.raises(StartError, match=option):
            check_ports(config(**{part: wanted}))


def test_one_port_for_two_servers_is_reported() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        free = listener.getsockname()[1]

    with pytest.raises(StartError, match="--grpc-port"):
        check_ports(config(http=HttpConfig(port=free), grpc=GrpcConfig(port=free)))


def test_free_ports_are_fine_and_a_foreign_cache_service_needs_none() -> None:
    check_ports(config())
    with socket.create_server(("127.0.0.1", 0)) as taken:
        check_ports(config(cache_service=CacheServiceConfig(port=taken.getsockname()[1], spawn=False)))


def test_a_run_has_a_directory_of_its_own_while_it_lasts(tmp_path_factory: pytest.TempPathFactory) -> None:
    with run_directory({}) as one, run_directory({}) as two:
        assert one != two
        assert one.is_dir()
        (one / "file").touch()
    assert not one.exists()


def test_a_directory_too_deep_for_sockets_is_reported(tmp_path: Path) -> None:
    deep = tmp_path / ("deep" * 20)
    deep.mkdir()

    with pytest.raises(StartError, match="RAY_TMPDIR"), run_directory({"RAY_TMPDIR": str(deep)}):
        pass
    with pytest.raises(StartError, match="RAY_TMPDIR"), run_directory({"RAY_TMPDIR": "/nowhere"}):
        pass


def test_children_join_no_other_ray_and_use_no_proxy() -> None:
    outer = {"RAY_ADDRESS": "elsewhere:1", "no_proxy": "intranet", "http_proxy": "http://proxy", "HOME": "/home"}

    inner = child_environment(config(), outer)

    assert "RAY_ADDRESS" not in inner
    assert inner["no_proxy"] == inner["NO_PROXY"]
    assert {"127.0.0.1", "localhost", "intranet"} <= set(inner["no_proxy"].split(","))
    assert (inner["HOME"], inner["http_proxy"]) == ("/home", "http://proxy")
    assert inner["RAY_AUTH_TOKEN"] != child_environment(config(), outer)["RAY_AUTH_TOKEN"]


async def test_the_cache_service_of_this_machine_has_the_configured_quotas(tmp_path: Path) -> None:
    where = CacheServiceConfig(port=free_port(), contexts=ContextQuotas(max_per_tenant=1))
    wanted = config(cache_service=where)
    running = asyncio.create_task(
        Machine(wanted, tmp_path, child_environment(wanted, os.environ), "INFO")._keep_cache_service()
    )
    author = ReplicaId("author")
    async with CacheClient(where.target, timeout_s=5.0) as client:

        async def is_first_created() -> bool:
            try:
                await client.create_context("m", "s", [1], author=author)
            except CacheServiceUnavailable:
                return False
            return True

        try:
            await until(is_first_created)
            with pytest.raises(TenantQuotaExceeded, match=r"contexts\.max_per_tenant"):
                await client.create_context("m", "s", [2], author=author)
        finally:
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)
