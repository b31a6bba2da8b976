from __future__ import annotations

import socket
from pathlib import Path

import pytest

from cache_service.logs import LogsConfig
from cluster.config import CacheServiceConfig, ClusterConfig, GrpcConfig, HttpConfig
from cluster.errors import StartError
from cluster.supervisor.supervisor import check_ports, child_environment, run_directory
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


def test_ray_logs_little_unless_the_operator_wants_more() -> None:
    usual = child_environment(config(), {"RAY_ROTATION_MAX_BYTES": "1000"})
    assert (usual["RAY_COLOR_PREFIX"], usual["RAY_event_stats"], usual["NO_COLOR"]) == ("0", "0", "1")
    assert usual["RAY_ROTATION_MAX_BYTES"] == "1000", "what is set already goes before"

    assert "RAY_event_stats" not in child_environment(config(logs=LogsConfig(level="DEBUG")), {})
