"""Quotas of shared contexts, as clients of both transports meet them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from fastapi.testclient import TestClient

from cache_service.client.client import CacheClient
from cache_service.testing.processes import ServiceProcess
from cluster.generation.answer import InferenceService
from cluster.generation.contexts.denoising import ContextDenoiser
from cluster.ingress.grpc.server import serving
from cluster.ingress.keys import check_keys, tenant_of
from protos import contexts_v1_pb2 as pb
from protos.contexts_v1_pb2_grpc import ContextsStub
from tests.unit.cluster.context_calls import URL, change
from tests.unit.cluster.context_messages import refusal, tokens
from tests.unit.cluster.local import Connect

KEYS = frozenset({"red", "blue"})
QUOTAS = "contexts: {max_per_tenant: 2, max_tokens_per_tenant: 20, max_total: 3, max_total_tokens: 30}"


def bearer(key: str) -> dict[str, str]:
    return {"authorization": f"Bearer {key}"}


@pytest.fixture
def cache_target(tmp_path: Path) -> Iterator[str]:
    """Run a service of the test's own, which starts empty and has small quotas."""
    file = tmp_path / "cache.yaml"
    file.write_text(QUOTAS)
    with ServiceProcess(tmp_path / "service", "--config", str(file)) as process:
        yield process.target


@pytest.fixture
def client(connect: Connect) -> Iterator[TestClient]:
    with connect(KEYS) as client:
        yield client


@pytest.fixture
async def stub(service: InferenceService, denoiser: ContextDenoiser, cache: CacheClient) -> AsyncIterator[ContextsStub]:
    async with (
        cache,
        serving(service, denoiser, "127.0.0.1:0", KEYS, max_message_bytes=1 << 20) as port,
        grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel,
    ):
        yield ContextsStub(channel)  # type: ignore[no-untyped-call]


def created(client: TestClient, key: str, *token_ids: int, **more: Any) -> dict[str, Any]:
    response = create(client, key, *token_ids, **more)
    assert response.status_code == 201, response.text
    made: dict[str, Any] = response.json()
    return made


def create(client: TestClient, key: str, *token_ids: int, **more: Any) -> Any:
    return client.post(URL, json={"token_ids": token_ids or [50]} | more, headers=bearer(key))


def test_a_tenant_beyond_its_quota_is_refused_until_it_deletes_a_context(client: TestClient) -> None:
    first = created(client, "red")
    created(client, "red", cache_salt="another")
    refused = create(client, "red", cache_salt="a third")
    error = refused.json()["error"]
    assert (refused.status_code, error["type"], error["code"]) == (429, "quota_error", "context_quota_exceeded")
    assert "contexts.max_per_tenant" in error["message"]
    assert "delete a context" in error["message"]
    assert "retry-after" not in refused.headers
    created(client, "blue")
    client.delete(f"{URL}/{first['id']}", headers=bearer("red"))
    created(client, "red")


def test_what_exceeds_the_total_quota_is_refused_as_full_storage(client: TestClient) -> None:
    for key in ("red", "red", "blue"):
        created(client, key)
    refused = create(client, "blue")
    error = refused.json()["error"]
    assert (refused.status_code, error["type"], error["code"]) == (507, "storage_error", "contexts_full")
    assert "contexts.max_total" in error["message"]
    assert "retry-after" not in refused.headers


def test_an_edit_beyond_the_quota_is_refused_and_changes_nothing(client: TestClient) -> None:
    client.headers.update(bearer("red"))
    made = created(client, "red", *[50] * 18)
    grown = {"start": 0, "end": 0, "token_ids": [51, 52, 53]}
    refused = change(client, made, edits=[grown])
    assert (refused.status_code, refused.json()["error"]["code"]) == (429, "context_quota_exceeded")
    assert "contexts.max_tokens_per_tenant" in refused.json()["error"]["message"]
    assert client.get(f"{URL}/{made['id']}").json() == made
    assert change(client, made, edits=[grown | {"end": 1}]).status_code == 200


async def test_refusals_over_grpc_name_the_quota_too(stub: ContextsStub) -> None:
    request = pb.CreateContextRequest(content=pb.ContextContent(tokens=tokens([50])))

    def call(key: str) -> Any:
        return stub.Create(request, metadata=tuple(bearer(key).items()))

    for key in ("red", "red", "blue"):
        await call(key)
    for key, quota in (("red", "contexts.max_per_tenant"), ("blue", "contexts.max_total")):
        error = await refusal(call(key))
        assert error.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
        assert quota in (error.details() or "")
        assert "retry-after" not in dict(error.trailing_metadata() or ())


def test_a_key_names_its_tenant_without_showing_itself() -> None:
    assert check_keys(["red"], KEYS) == tenant_of("red") != check_keys(["blue"], KEYS)
    assert "red" not in tenant_of("red")


def test_of_several_keys_the_first_that_is_configured_names_the_tenant() -> None:
    assert check_keys(["unknown", "blue", "red"], KEYS) == tenant_of("blue")


def test_without_configured_keys_all_callers_are_one_tenant() -> None:
    assert check_keys([], frozenset()) == check_keys(["red"], frozenset()) == ""
