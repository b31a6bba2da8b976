"""Shared contexts with a time to live, over both transports."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Iterator
from typing import Any

import grpc
import pytest
from fastapi.testclient import TestClient

from cache_service.client.client import CacheClient
from cache_service.testing.processes import ServiceProcess
from cluster.generation.answer import InferenceService
from cluster.generation.contexts.denoising import ContextDenoiser
from cluster.ingress.grpc.server import serving
from protos import contexts_v1_pb2 as pb
from protos.contexts_v1_pb2_grpc import ContextsStub
from tests.support.waiting import eventually
from tests.unit.cluster.context_calls import URL, change, created, failed
from tests.unit.cluster.context_messages import refusal, tokens
from tests.unit.cluster.local import Connect

CONTENT = pb.ContextContent(tokens=tokens([50, 51]))


@pytest.fixture
def cache_target(cache_process: ServiceProcess) -> str:
    return cache_process.target


@pytest.fixture
def client(connect: Connect) -> Iterator[TestClient]:
    with connect() as client:
        yield client


@pytest.fixture
async def stub(service: InferenceService, denoiser: ContextDenoiser, cache: CacheClient) -> AsyncIterator[ContextsStub]:
    async with (
        cache,
        serving(service, denoiser, "127.0.0.1:0", frozenset(), max_message_bytes=1 << 20) as port,
        grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel,
    ):
        yield ContextsStub(channel)  # type: ignore[no-untyped-call]


def renew(client: TestClient, context: dict[str, Any], **body: Any) -> Any:
    return client.patch(f"{URL}/{context['id']}", json=body)


def remaining_s(context: dict[str, Any]) -> float:
    return float(context["expires_at"]) - time.time()


def test_a_context_shows_when_it_expires_and_is_deleted_then(client: TestClient) -> None:
    lasting, brief = created(client, text="a b c"), created(client, text="a b c", ttl_s=1)
    assert lasting["expires_at"] is None
    assert 0 < remaining_s(brief) <= 1
    assert client.get(f"{URL}/{brief['id']}").json() == brief
    listed = {context["id"]: context for context in client.get(URL, params={"limit": 100}).json()["data"]}
    assert listed[brief["id"]]["expires_at"] == brief["expires_at"]
    eventually(lambda: client.get(f"{URL}/{brief['id']}").status_code == 404)
    assert failed(change(client, brief, text="x")) == (404, "context_not_found", "context")
    assert client.get(f"{URL}/{lasting['id']}").status_code == 200


def test_an_edit_begins_the_time_to_live_again(client: TestClient) -> None:
    made = created(client, text="a b c", ttl_s=1000)
    edited = change(client, made, text="a b").json()
    assert edited["expires_at"] > made["expires_at"]
    shortened = change(client, edited, text="a", ttl_s=500).json()
    assert 0 < remaining_s(shortened) <= 500
    assert shortened == client.get(f"{URL}/{made['id']}").json()


def test_a_change_of_nothing_but_the_time_to_live_makes_no_epoch(client: TestClient) -> None:
    made = created(client, text="a b c")
    renewed = renew(client, made, ttl_s=1000).json()
    assert 990 < remaining_s(renewed) <= 1000
    assert renewed | {"expires_at": None} == made
    assert renewed == client.get(f"{URL}/{made['id']}").json()
    assert failed(renew(client, made, ttl_s=10, expected_epoch=1)) == (409, "epoch_conflict", "expected_epoch")
    assert failed(renew(client, {"id": "ctx-none"}, ttl_s=10))[0] == 404
    assert failed(renew(client, made, ttl_s=10, cache_salt="another"))[0] == 404


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"ttl_s": 0.5}, "ttl_s"),
        ({"ttl_s": 1e9}, "ttl_s"),
        ({"ttl_s": "60"}, "ttl_s"),
        ({}, "expected_epoch"),
        ({"text": "x"}, "expected_epoch"),
        ({"text": "x", "ttl_s": 60}, "expected_epoch"),
        ({"text": "x", "expected_epoch": None}, "expected_epoch"),
        ({"expected_epoch": 0}, None),
    ],
)
def test_an_incomplete_change_is_refused(client: TestClient, body: dict[str, Any], param: str | None) -> None:
    error = renew(client, created(client, text="a"), **body)
    assert (error.status_code, error.json()["error"]["param"]) == (400, param)


def test_a_time_to_live_out_of_bounds_is_refused_at_creation(client: TestClient) -> None:
    refused = client.post(URL, json={"text": "a", "ttl_s": 0})
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "ttl_s")


async def test_the_same_holds_over_grpc(stub: ContextsStub) -> None:
    made = (await stub.Create(pb.CreateContextRequest(content=CONTENT, ttl_s=1000))).context
    assert 990 < made.expires_at - time.time() <= 1000
    assert (await stub.Get(pb.GetContextRequest(id=made.id))).context == made
    renewed = (await stub.Change(pb.ChangeContextRequest(id=made.id, ttl_s=500))).context
    assert (renewed.epoch, renewed.expires_at < made.expires_at) == (0, True)
    edited = (
        await stub.Change(pb.ChangeContextRequest(id=made.id, expected_epoch=0, content=CONTENT, ttl_s=2000))
    ).context
    assert (edited.epoch, edited.expires_at > made.expires_at) == (1, True)
    lasting = (await stub.Create(pb.CreateContextRequest(content=CONTENT))).context
    assert not lasting.HasField("expires_at")


async def test_times_out_of_bounds_and_changes_of_nothing_are_refused_over_grpc(stub: ContextsStub) -> None:
    made = (await stub.Create(pb.CreateContextRequest(content=CONTENT))).context
    for call, named in (
        (stub.Create(pb.CreateContextRequest(content=CONTENT, ttl_s=0.5)), "ttl_s must lie within 1 and"),
        (stub.Create(pb.CreateContextRequest(content=CONTENT, ttl_s=float("nan"))), "ttl_s must lie within 1 and"),
        (stub.Change(pb.ChangeContextRequest(id=made.id, ttl_s=0)), "ttl_s must lie within 1 and"),
        (stub.Change(pb.ChangeContextRequest(id=made.id)), "expected_epoch is missing"),
        (stub.Change(pb.ChangeContextRequest(id=made.id, content=CONTENT, ttl_s=9)), "expected_epoch is missing"),
    ):
        error = await refusal(call)
        assert error.code() == grpc.StatusCode.INVALID_ARGUMENT
        assert named in (error.details() or "")
