from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from cluster.errors import ClusterError, ReplicaLostError
from cluster.generation.answer import InferenceService
from cluster.generation.contexts.denoising import ContextDenoiser
from cluster.ingress.grpc.server import serving
from protos import inference_v1_pb2 as pb
from protos.inference_v1_pb2_grpc import InferenceStub
from tests.unit.cluster.local import RIGHT_KEYS, WRONG_KEYS, Fault, LocalWorkers
from workers.errors import OverloadedError

LOCAL = "127.0.0.1:0"
BLOCKS = pb.DiffusionOptions(steps=16, block_length=4)
TALK = pb.Conversation(
    messages=[pb.Message(role="system", content="Mira is 34."), pb.Message(role="user", content="How old is Mira?")]
)


@pytest.fixture
async def channel(service: InferenceService, denoiser: ContextDenoiser) -> AsyncIterator[grpc.aio.Channel]:
    async with (
        serving(service, denoiser, LOCAL, frozenset(), max_message_bytes=100_000) as port,
        grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel,
    ):
        yield channel


@pytest.fixture
def stub(channel: grpc.aio.Channel) -> InferenceStub:
    return InferenceStub(channel)  # type: ignore[no-untyped-call]


async def test_a_stream_is_the_whole_answer_in_pieces(stub: InferenceStub) -> None:
    request = pb.GenerateRequest(conversation=TALK, diffusion=BLOCKS, temperature=1.0, seed=1)
    whole = await stub.Generate(request)
    *pieces, last = [message async for message in stub.GenerateStream(request)]

    assert len(pieces) > 1
    assert "".join(piece.text for piece in pieces) == whole.text
    assert (last.text, last.finish_reason, last.usage.completion_tokens) == ("", pb.FINISH_REASON_LENGTH, 16)
    assert (whole.model, whole.diffusion.steps, whole.diffusion.replica) == ("random", 16, "local")


async def test_an_answer_says_where_its_prefix_ends(stub: InferenceStub) -> None:
    sheet = pb.Message(role="system", content="Mira is 34 and lives in Oslo.")
    talk = pb.Conversation(messages=[sheet, *TALK.messages])
    answer = await stub.Generate(pb.GenerateRequest(conversation=talk, diffusion=pb.DiffusionOptions(reuse_depth=1)))
    report = answer.diffusion
    assert 0 < report.prefix_tokens < answer.usage.prompt_tokens
    assert (report.reuse_depth, report.depth_limited_by) == (1, "")


async def test_every_kind_of_prompt_and_option_arrives(stub: InferenceStub, workers: LocalWorkers) -> None:
    options = pb.DiffusionOptions(
        steps=3, block_length=2, policy="none", refresh_interval=5, reuse_depth=1, deterministic=False
    )
    await stub.Generate(
        pb.GenerateRequest(token_ids=pb.TokenIds(ids=[7, 8]), max_tokens=4, seed=5, temperature=0.5, diffusion=options)
    )
    await stub.Generate(pb.GenerateRequest(text="Mira", model="random", stop=["x"], cache_salt="s"))

    first, second = workers.requests
    params = first.params
    assert (first.token_ids, first.max_tokens) == ((7, 8), 4)
    assert (params.num_steps, params.block_length, params.policy, params.seed) == (3, 2, "none", 5)
    assert (params.refresh_interval, params.reuse_depth, params.temperature) == (5, 1, 0.5)
    assert (params.deterministic, second.params.deterministic) == (False, None)
    assert (second.max_tokens, second.params.num_steps, second.params.seed) == (16, None, None)


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (pb.GenerateRequest(), "prompt"),
        (pb.GenerateRequest(conversation=pb.Conversation()), "prompt"),
        (pb.GenerateRequest(text="a", max_tokens=0), "max_tokens"),
        (pb.GenerateRequest(text="a", temperature=-1), "temperature"),
        (pb.GenerateRequest(text="a", stop=[""]), "stop"),
        (pb.GenerateRequest(text="a", stop=["x"] * 17), "stop"),
        (pb.GenerateRequest(text="a", stop=["x" * 257]), "stop"),
        (pb.GenerateRequest(text=""), "prompt"),
        (pb.GenerateRequest(text="a", context=pb.ContextChoice(id="ctx", mode=7)), "mode"),  # type: ignore[arg-type]
        (pb.GenerateRequest(conversation=pb.Conversation(messages=[pb.Message(role="wizard")])), "wizard"),
        (pb.GenerateRequest(text="a", logit_bias={5: 101}), "logit_bias"),
        (pb.GenerateRequest(text="a", max_tokens=5000), "max_tokens"),
        (pb.GenerateRequest(text="a", diffusion=pb.DiffusionOptions(policy="magic")), "magic"),
    ],
)
async def test_what_cannot_be_honoured_is_refused_by_name(
    stub: InferenceStub, wrong: pb.GenerateRequest, words: str
) -> None:
    for call in (stub.Generate(wrong), stub.GenerateStream(wrong).read()):
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await call
        assert refused.value.code() == grpc.StatusCode.INVALID_ARGUMENT
        assert words in (refused.value.details() or "")


@pytest.mark.parametrize(
    ("wrong", "param"),
    [
        (pb.GenerateRequest(text="a", max_tokens=0), "max_tokens"),
        (pb.GenerateRequest(text="a", max_tokens=5000), "max_tokens"),
        (pb.GenerateRequest(text="a", ignore_eos=True), "ignore_eos"),
        (pb.GenerateRequest(text=""), "text"),
        (pb.GenerateRequest(token_ids=pb.TokenIds(ids=[1_000_000])), "token_ids.ids"),
        (
            pb.GenerateRequest(conversation=pb.Conversation(messages=[pb.Message(role="x")])),
            "conversation.messages.0.role",
        ),
        (pb.GenerateRequest(text="a", diffusion=pb.DiffusionOptions(policy="magic")), "diffusion.policy"),
        (pb.GenerateRequest(text="a", diffusion=pb.DiffusionOptions(threshold=0.5)), "diffusion.threshold"),
        (pb.GenerateRequest(text="a", diffusion=pb.DiffusionOptions(steps=1, block_length=2)), "diffusion.steps"),
        (pb.GenerateRequest(text="a", diffusion=pb.DiffusionOptions(guidance=1, policy="lean")), "diffusion.guidance"),
    ],
)
async def test_a_refusal_names_the_fields_path(stub: InferenceStub, wrong: pb.GenerateRequest, param: str) -> None:
    for call in (stub.Generate(wrong), stub.GenerateStream(wrong).read()):
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await call
        assert dict(refused.value.trailing_metadata() or ()).get("param") == param


async def test_ignore_eos_fills_the_canvas(stub: InferenceStub, workers: LocalWorkers) -> None:
    answer = await stub.Generate(pb.GenerateRequest(text="Mira", max_tokens=9, ignore_eos=True))

    assert (answer.usage.completion_tokens, workers.requests[0].params.min_tokens) == (9, 9)


async def test_a_developer_is_the_system(stub: InferenceStub, workers: LocalWorkers) -> None:
    for role in ("system", "developer"):
        turns = pb.Conversation(messages=[pb.Message(role=role, content="Mira is 34.")])
        await stub.Generate(pb.GenerateRequest(conversation=turns, max_tokens=4))

    one, two = (request.token_ids for request in workers.requests)
    assert one == two


async def test_a_message_that_is_too_long_is_refused(stub: InferenceStub) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await stub.Generate(pb.GenerateRequest(text="a" * 100_001))

    assert refused.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (OverloadedError("full", retry_after_s=2.4), grpc.StatusCode.RESOURCE_EXHAUSTED),
        (KeyError("secret"), grpc.StatusCode.INTERNAL),
    ],
)
async def test_a_workers_error_has_its_status(
    stub: InferenceStub, workers: LocalWorkers, error: Exception, code: grpc.StatusCode
) -> None:
    workers.faults = [Fault(error)]

    with pytest.raises(grpc.aio.AioRpcError) as failure:
        await stub.Generate(pb.GenerateRequest(text="a"))

    assert failure.value.code() == code
    assert "secret" not in (failure.value.details() or "")
    retry_after = dict(failure.value.trailing_metadata() or ()).get("retry-after")
    assert retry_after == ("3" if code == grpc.StatusCode.RESOURCE_EXHAUSTED else None)


async def test_a_worker_lost_in_the_middle_of_a_stream_ends_it(stub: InferenceStub, workers: LocalWorkers) -> None:
    workers.faults = [Fault(ReplicaLostError("gone"), after=3)]
    call = stub.GenerateStream(pb.GenerateRequest(conversation=TALK, diffusion=BLOCKS))

    pieces: list[str] = []

    with pytest.raises(grpc.aio.AioRpcError) as failure:
        await read_into(pieces, call)

    assert len(pieces) == 2
    assert failure.value.code() == grpc.StatusCode.UNAVAILABLE


async def read_into(pieces: list[str], call: grpc.aio.UnaryStreamCall) -> None:
    async for message in call:
        pieces.append(message.text)


async def test_api_keys_are_required_where_they_are_configured(
    service: InferenceService, denoiser: ContextDenoiser
) -> None:
    async with (
        serving(service, denoiser, LOCAL, frozenset({"right"}), max_message_bytes=100_000) as port,
        grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel,
    ):
        stub = InferenceStub(channel)  # type: ignore[no-untyped-call]
        for metadata in ((), *WRONG_KEYS):
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await stub.ListModels(pb.ListModelsRequest(), metadata=metadata)
            assert refused.value.code() == grpc.StatusCode.UNAUTHENTICATED
        for metadata in RIGHT_KEYS:
            listed = await stub.ListModels(pb.ListModelsRequest(), metadata=metadata)
            assert [model.id for model in listed.models] == ["random"]


async def test_health_follows_the_workers(
    service: InferenceService, denoiser: ContextDenoiser, workers: LocalWorkers
) -> None:
    workers.away = True
    async with (
        serving(service, denoiser, LOCAL, frozenset(), max_message_bytes=100_000) as port,
        grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel,
        asyncio.timeout(20),
    ):
        watch = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest())
        statuses = [(await watch.read()).status]
        workers.away = False
        while statuses[-1] != health_pb2.HealthCheckResponse.SERVING:
            statuses.append((await watch.read()).status)

    assert statuses[0] != health_pb2.HealthCheckResponse.SERVING


async def test_an_unusable_address_is_named(service: InferenceService, denoiser: ContextDenoiser) -> None:
    with pytest.raises(ClusterError, match=r"nowhere\.invalid:1.*grpc"):
        async with serving(service, denoiser, "nowhere.invalid:1", frozenset(), max_message_bytes=100_000):
            pass
