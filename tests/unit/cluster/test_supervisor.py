from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from cache_service.client.client import CacheClient
from cache_service.core.quotas import ContextQuotas
from cache_service.core.types import ReplicaId
from cache_service.errors import CacheServiceUnavailable, TenantQuotaExceeded
from cache_service.logs import LogsConfig
from cache_service.testing import free_port
from cluster.config import CacheServiceConfig, ClusterConfig, GrpcConfig, HttpConfig
from cluster.errors import StartError
from cluster.supervisor.supervisor import (
    MAX_FAILED_STARTS,
    Loss,
    Machine,
    check_ports,
    child_environment,
    run_directory,
)
from tests.support.waiting import PATIENCE_S, until
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
    machine = Machine(wanted, tmp_path, child_environment(wanted, os.environ))
    running = asyncio.create_task(machine._keep_cache_service())
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


def test_ray_logs_little_unless_the_operator_wants_more() -> None:
    usual = child_environment(config(), {"RAY_ROTATION_MAX_BYTES": "1000"})
    assert (usual["RAY_COLOR_PREFIX"], usual["RAY_event_stats"], usual["NO_COLOR"]) == ("0", "0", "1")
    assert usual["RAY_ROTATION_MAX_BYTES"] == "1000", "what is set already goes before"

    assert "RAY_event_stats" not in child_environment(config(logs=LogsConfig(level="DEBUG")), {})


class ScriptedMachine(Machine):
    """Loses its clusters as a test says."""

    def __init__(self, *losses: bool) -> None:
        super().__init__(config(), Path("unused"), {})
        self.losses = [Loss("a reason", was_ready) for was_ready in losses]

    async def _run_cluster(self) -> Loss:
        return self.losses.pop(0)

    async def keep_cluster(self) -> None:
        await self._keep_cluster()


@pytest.mark.parametrize(
    "losses",
    [
        (False,),
        (True, *[False] * MAX_FAILED_STARTS),
        (True, False, True, False, False, True, *[False] * MAX_FAILED_STARTS),
    ],
    ids=["it never was ready", "its restarts fail", "it was ready between failures"],
)
async def test_a_cluster_is_restarted_until_that_fails_too_often(
    losses: tuple[bool, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cluster.supervisor.supervisor.RESTART_DELAY_S", 0.0)
    machine = ScriptedMachine(*losses, True)

    await machine.keep_cluster()

    assert machine.losses == [Loss("a reason", True)], "neither fewer nor more starts"


KILLING = """
import subprocess, psutil
from cluster.supervisor.processes import PR_SET_CHILD_SUBREAPER, kill_descendants, prctl
prctl(PR_SET_CHILD_SUBREAPER, 1)
quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
kept = subprocess.Popen(["sleep", "60"], **quiet)
lost = [subprocess.Popen(["sh", "-c", "trap : INT TERM; sleep 60 & sleep 60 & wait"], **quiet) for _ in range(5)]
kill_descendants(kept.pid)
print([child.pid for child in psutil.Process().children(recursive=True)] == [kept.pid])
kept.kill()
"""


def test_a_lost_clusters_processes_are_killed_but_not_the_cache_service() -> None:
    done = subprocess.run(
        [sys.executable, "-c", KILLING], capture_output=True, text=True, check=True, timeout=PATIENCE_S
    )
    assert done.stdout == "True\n"
