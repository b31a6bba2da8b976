"""A server that drains lets running requests end, and refuses new ones."""

from __future__ import annotations

import asyncio
from contextlib import aclosing, nullcontext

import grpc
import pytest
from fastapi.testclient import TestClient

from cache_service.client.client import CacheClient
from cache_service.testing.processes import ServiceProcess
from cluster.errors import DrainingError
from cluster.generation.admission import Admission
from cluster.generation.answer import InferenceService
from cluster.generation.contexts.denoising import ContextDenoiser, DenoiseCall, Denoised
from cluster.generation.contexts.drafting import Hole, TokenContent
from cluster.ingress.grpc.server import serving
from protos import inference_v1_pb2, inference_v1_pb2_grpc
from tests.support.waiting import PATIENCE_S, until
from workers.api import DecodingParams

CHAT = {"model": "random", "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 4}


async def test_an_idle_server_drains_at_once() -> None:
    await asyncio.wait_for(Admission().drain(), PATIENCE_S)


async def test_draining_waits_for_running_requests_and_refuses_new_ones() -> None:
    admission = Admission()
    with admission.admit(nullcontext("one")) as observed:
        assert observed == "one"
        draining = asyncio.create_task(admission.drain())
        with admission.admit(nullcontext()):
            await until(lambda: is_refusing(admission))
            with pytest.raises(DrainingError, match="shutting down"), admission.admit(nullcontext()):
                pytest.fail("a new request was admitted")
        assert not draining.done()
    await asyncio.wait_for(draining, PATIENCE_S)


async def test_a_request_that_fails_has_ended_too() -> None:
    admission = Admission()
    with pytest.raises(ValueError, match="broken"), admission.admit(nullcontext()):
        raise ValueError("broken")

    await asyncio.wait_for(admission.drain(), PATIENCE_S)


async def test_an_admission_counts_from_its_begin() -> None:
    """A generator that is made and never begun holds no drain up."""
    admission = Admission()
    admission.admit(nullcontext())

    await asyncio.wait_for(admission.drain(), PATIENCE_S)


def is_refusing(admission: Admission) -> bool:
    try:
        admission.check()
    except DrainingError:
        return True
    return False


async def test_requests_and_health_are_refused_over_http(client: TestClient, service: InferenceService) -> None:
    assert client.post("/v1/chat/completions", json=CHAT).status_code == 200
    await service.admission.drain()

    for body in (CHAT, CHAT | {"stream": True}):
        refused = client.post("/v1/chat/completions", json=body)
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "shutting_down")
        assert refused.headers["retry-after"] == "1"
    assert client.get("/health").status_code == 503


async def test_requests_are_refused_over_grpc(service: InferenceService, denoiser: ContextDenoiser) -> None:
    await service.admission.drain()
    request = inference_v1_pb2.GenerateRequest(token_ids=inference_v1_pb2.TokenIds(ids=[7, 8]))
    async with (
        serving(service, denoiser, "127.0.0.1:0", frozenset(), max_message_bytes=100_000) as port,
        grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel,
    ):
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await inference_v1_pb2_grpc.InferenceStub(channel).Generate(request)

    assert refused.value.code() is grpc.StatusCode.UNAVAILABLE
    assert ("retry-after", "1") in tuple(refused.value.trailing_metadata())


class TestDenoising:
    @pytest.fixture
    def cache_target(self, cache_process: ServiceProcess) -> str:
        return cache_process.target

    async def test_a_denoised_context_counts_until_its_last_block(
        self, service: InferenceService, denoiser: ContextDenoiser, cache: CacheClient
    ) -> None:
        async with cache:
            context = await service.contexts.create(TokenContent((50, Hole(8), 51)), "")
            call = DenoiseCall("d", context.id, "", DecodingParams(policy="none"))
            async with aclosing(denoiser.run(call)) as running:
                await anext(running)
                draining = asyncio.create_task(service.admission.drain())
                await until(lambda: is_refusing(service.admission))
                rest = [event async for event in running]
                assert isinstance(rest[-1], Denoised)
            await asyncio.wait_for(draining, PATIENCE_S)

            with pytest.raises(DrainingError):
                await anext(denoiser.run(call))
