"""A stream begins when a replica accepts the request, and says that it is alive while there is no text."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, cast

import grpc
import pytest
from starlette.types import ASGIApp, Message

from cache_service.client.client import CacheClient
from cache_service.testing.processes import ServiceProcess
from cluster.errors import ReplicaLostError, RequestError
from cluster.generation.answer import InferenceService
from cluster.generation.contexts.denoising import ContextDenoiser
from cluster.generation.contexts.drafting import Hole, TokenContent
from cluster.generation.events import Event
from cluster.generation.prompts import GenerationCall
from cluster.ingress.grpc.server import serving
from protos import contexts_v1_pb2 as contexts
from protos import inference_v1_pb2 as pb
from protos.contexts_v1_pb2_grpc import ContextsStub
from protos.inference_v1_pb2_grpc import InferenceStub
from tests.support.waiting import until
from tests.unit.cluster.local import Connect, Fault, LocalWorkers

CHAT = "/v1/chat/completions"
TALK = {"messages": [{"role": "user", "content": "How old is Mira?"}], "stream": True}
PATIENCE_S = 10.0
KEEPALIVE_S = 0.05
NEVER_S = 1000.0


@dataclass
class Exchange:
    """Is one request to an ASGI application whose messages are read one by one."""

    sent: asyncio.Queue[Message] = field(default_factory=asyncio.Queue)
    leaves: asyncio.Event = field(default_factory=asyncio.Event)

    async def next(self) -> Message:
        return await asyncio.wait_for(self.sent.get(), PATIENCE_S)

    async def rest(self) -> str:
        """Return the text of the body up to its end."""
        text = ""
        while True:
            message = await self.next()
            text += message["body"].decode()
            if not message.get("more_body"):
                return text


@asynccontextmanager
async def posted(app: ASGIApp, path: str, body: dict[str, Any]) -> AsyncIterator[Exchange]:
    exchange, content = Exchange(), [json.dumps(body).encode()]

    async def receive() -> Message:
        if content:
            return {"type": "http.request", "body": content.pop()}
        await exchange.leaves.wait()
        return {"type": "http.disconnect"}

    scope = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": "POST",
        "scheme": "http",
        "path": path,
        "raw_path": path.encode(),
        "query_string": b"",
        "headers": [(b"content-type", b"application/json")],
    }
    running = asyncio.create_task(cast(Any, app(scope, receive, exchange.sent.put)))
    try:
        yield exchange
    finally:
        exchange.leaves.set()
        await asyncio.wait_for(running, PATIENCE_S)


async def test_a_stream_has_its_status_once_the_request_is_accepted_and_comments_until_there_is_text(
    connect: Connect, workers: LocalWorkers
) -> None:
    workers.faults = [Fault(after=1)]
    async with posted(connect(keepalive_s=KEEPALIVE_S).app, CHAT, TALK) as exchange:
        assert (await exchange.next())["status"] == 200
        comments = [(await exchange.next())["body"] for _ in range(3)]

    assert comments == [b": keep-alive\n\n"] * 3
    await until(lambda: workers.worker._engine.stats().num_running == 0)


async def test_no_status_comes_before_the_request_is_accepted(connect: Connect, workers: LocalWorkers) -> None:
    workers.faults = [Fault()]
    app = connect(keepalive_s=NEVER_S).app
    running = asyncio.ensure_future(read_status(app))
    await until(lambda: bool(workers.requests))
    done, _ = await asyncio.wait({running}, timeout=0.2)
    running.cancel()
    assert not done


async def read_status(app: ASGIApp) -> int:
    async with posted(app, CHAT, TALK) as exchange:
        return int((await exchange.next())["status"])


async def test_a_request_that_waits_long_for_a_replica_gets_signs_of_life_too(
    connect: Connect, workers: LocalWorkers
) -> None:
    workers.faults = [Fault()]
    async with posted(connect(keepalive_s=KEEPALIVE_S).app, CHAT, TALK) as exchange:
        assert (await exchange.next())["status"] == 200
        assert (await exchange.next())["body"].startswith(b":")


async def test_an_error_after_the_status_names_the_clients_own_field_too(
    connect: Connect, service: InferenceService, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def refuse_late(_call: GenerationCall) -> AsyncIterator[Event]:
        await asyncio.sleep(3 * KEEPALIVE_S)
        raise RequestError("max_tokens must be lower", param="max_tokens")
        yield  # makes this a generator

    monkeypatch.setattr(service, "generate", refuse_late)
    async with posted(connect(keepalive_s=KEEPALIVE_S).app, CHAT, TALK | {"max_completion_tokens": 9}) as exchange:
        assert (await exchange.next())["status"] == 200
        [event] = [line for line in (await exchange.rest()).splitlines() if line.startswith("data: ")]

    error = json.loads(event.removeprefix("data: "))["error"]
    assert (error["param"], error["message"]) == ("max_completion_tokens", "max_completion_tokens must be lower")


async def test_an_error_after_the_acceptance_is_the_streams_last_event(connect: Connect, workers: LocalWorkers) -> None:
    workers.faults = [Fault(KeyError("secret"), after=1)]
    async with posted(connect().app, CHAT, TALK) as exchange:
        assert (await exchange.next())["status"] == 200
        text = await exchange.rest()

    [event] = text.removesuffix("\n\n").split("\n\n")
    assert json.loads(event.removeprefix("data: "))["error"]["code"] == "internal_error"


async def test_a_client_does_not_notice_that_the_replica_that_accepted_its_request_is_lost(
    connect: Connect, workers: LocalWorkers
) -> None:
    app = connect().app
    texts: list[list[str]] = []
    for faults in ([], [Fault(ReplicaLostError("gone"), after=1)]):
        workers.faults = faults
        async with posted(app, CHAT, TALK | {"seed": 1}) as exchange:
            assert (await exchange.next())["status"] == 200
            chunks = [
                json.loads(line[6:]) for line in (await exchange.rest()).split("\n\n") if line.startswith("data: {")
            ]
        texts.append([chunk["choices"][0]["delta"].get("content", "") for chunk in chunks])

    assert len(workers.requests) == 3
    assert texts[0] == texts[1]


@asynccontextmanager
async def channel_to(service: InferenceService, denoiser: ContextDenoiser) -> AsyncIterator[grpc.aio.Channel]:
    async with (
        serving(service, denoiser, "127.0.0.1:0", frozenset(), max_message_bytes=100_000) as port,
        grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel,
    ):
        yield channel


async def test_a_grpc_stream_has_its_initial_metadata_once_the_request_is_accepted(
    service: InferenceService, denoiser: ContextDenoiser, workers: LocalWorkers
) -> None:
    workers.faults = [Fault(after=1)]
    async with channel_to(service, denoiser) as channel:
        call = InferenceStub(channel).GenerateStream(pb.GenerateRequest(text="a"))  # type: ignore[no-untyped-call]
        await asyncio.wait_for(call.initial_metadata(), PATIENCE_S)
        assert not call.done()
        call.cancel()


@pytest.fixture
def cache_target(cache_process: ServiceProcess) -> str:
    return cache_process.target


async def test_a_denoising_gives_the_same_signs_over_http_and_grpc(
    connect: Connect, service: InferenceService, denoiser: ContextDenoiser, cache: CacheClient, workers: LocalWorkers
) -> None:
    async with cache, channel_to(service, denoiser) as channel:
        made = await service.contexts.create(TokenContent((50, Hole(8), 51)), "")
        workers.faults = [Fault(after=1), Fault(after=1)]
        path = f"/v1/contexts/{made.id}/denoise"
        async with posted(connect(keepalive_s=KEEPALIVE_S).app, path, {"stream": True}) as exchange:
            assert (await exchange.next())["status"] == 200
            assert (await exchange.next())["body"].startswith(b":")
        call = ContextsStub(channel).Denoise(contexts.DenoiseRequest(id=made.id))  # type: ignore[no-untyped-call]
        await asyncio.wait_for(call.initial_metadata(), PATIENCE_S)
        call.cancel()


async def test_a_denoising_of_several_blocks_is_accepted_once(
    service: InferenceService, denoiser: ContextDenoiser, cache: CacheClient
) -> None:
    async with cache, channel_to(service, denoiser) as channel:
        made = await service.contexts.create(TokenContent((50, Hole(8), 51)), "")
        stub = ContextsStub(channel)  # type: ignore[no-untyped-call]
        assert len([message async for message in stub.Denoise(contexts.DenoiseRequest(id=made.id))]) == 3
