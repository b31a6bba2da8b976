"""Two instances of the cache service over one store: a running system goes on with either."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import httpx2 as httpx
import pytest
import yaml

from cache_service.testing.processes import RedisProcess, ServiceProcess
from tests.e2e.prompts import chat, sheet
from tests.e2e.system import System, running
from tests.support.requirements import require_redis
from tests.support.waiting import PATIENCE_S, eventually

pytestmark = pytest.mark.system


@pytest.fixture(scope="module")
def instances(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[ServiceProcess]]:
    require_redis()
    directory = tmp_path_factory.mktemp("instances")
    with RedisProcess(directory / "redis") as redis:
        options = ("--store", redis.url)
        with (
            ServiceProcess(directory / "a", *options) as one,
            ServiceProcess(directory / "b", *options) as other,
        ):
            yield [one, other]


@pytest.fixture(scope="module")
def system(
    instances: list[ServiceProcess], random_model: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[System]:
    first, *others = instances
    directory = tmp_path_factory.mktemp("system")
    service = {"spawn": False, "others": [other.target for other in others]}
    (directory / "palimpsest.yaml").write_text(yaml.safe_dump({"replicas": 1, "cache_service": service}))
    options = ("--config", str(directory / "palimpsest.yaml"), "--cache-port", str(first.port))
    with running(str(random_model), directory / "serve.log", *options) as system:
        yield system


def test_contexts_and_placements_outlive_either_instance(system: System, instances: list[ServiceProcess]) -> None:
    made = system.post("/v1/contexts", {"messages": chat(sheet("Olga"))[:1]}).json()
    body = {"messages": chat("")[1:], "context": {"id": made["id"]}, "max_tokens": 8}
    first, other = instances

    first.kill()
    assert system.post("/v1/chat/completions", body).status_code == 200
    eventually(lambda: system.metric("palimpsest_router_placements") > 0)
    edit = {"expected_epoch": 0, "edits": [{"find": "Lima", "text": "Rome"}]}
    changed = httpx.patch(f"{system.url}/v1/contexts/{made['id']}", json=edit, timeout=PATIENCE_S)
    assert (changed.status_code, changed.json()["epoch"]) == (200, 1)

    first.start()
    other.kill()
    answer = system.post("/v1/chat/completions", body).json()
    assert answer["context"]["epochs"] == [1]
    revision = system.metric("palimpsest_router_revision")
    system.post("/v1/chat/completions", {"messages": chat(sheet("Paul")), "max_tokens": 8})
    eventually(lambda: system.metric("palimpsest_router_revision") > revision)
