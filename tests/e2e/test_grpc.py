"""The gRPC API of a running system, through the generated stubs alone."""

from __future__ import annotations

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase

from protos import contexts_v1_pb2 as contexts
from protos import inference_v1_pb2 as pb
from protos.contexts_v1_pb2_grpc import ContextsStub
from protos.inference_v1_pb2_grpc import InferenceStub
from tests.e2e.prompts import ANSWERS, SHEET, sheet
from tests.e2e.system import System
from tests.support.waiting import eventually

SERVICE = "palimpsest.inference.v1.Inference"
CONTEXTS = "palimpsest.contexts.v1.Contexts"


def conversation(system: str, question: str = "Where does Ada live?") -> pb.Conversation:
    turns = [pb.Message(role="system", content=system), pb.Message(role="user", content=question)]
    return pb.Conversation(messages=turns)


def slow() -> pb.GenerateRequest:
    options = pb.DiffusionOptions(steps=700, block_length=700, min_tokens=700, policy="none")
    return pb.GenerateRequest(conversation=conversation(SHEET), max_tokens=700, diffusion=options)


@pytest.mark.parametrize(("question", "answer"), ANSWERS.items())
def test_the_model_answers_from_its_sheet(
    knowing_system: System, stub: InferenceStub, question: str, answer: str
) -> None:
    response = stub.Generate(pb.GenerateRequest(conversation=conversation(SHEET, question)))

    assert answer in response.text
    assert response.model == knowing_system.model


def test_a_stream_is_the_whole_answer_in_pieces(stub: InferenceStub) -> None:
    request = pb.GenerateRequest(conversation=conversation(sheet("Olga")))
    whole = stub.Generate(request)
    *pieces, last = stub.GenerateStream(request)

    assert "".join(piece.text for piece in pieces) == whole.text
    assert last.finish_reason == whole.finish_reason != pb.FINISH_REASON_UNSPECIFIED
    assert last.usage.completion_tokens == whole.usage.completion_tokens
    assert (whole.usage.cached_tokens, last.usage.cached_tokens > 0) == (0, True)
    assert last.diffusion.replica == whole.diffusion.replica


def test_text_and_token_ids_are_prompts_too(stub: InferenceStub) -> None:
    text = stub.Generate(pb.GenerateRequest(text="Mira is 34", max_tokens=4))
    ids = stub.Generate(pb.GenerateRequest(token_ids=pb.TokenIds(ids=[7, 8, 9]), max_tokens=4))

    assert text.usage.completion_tokens <= 4
    assert ids.usage.prompt_tokens == 3


def test_the_model_is_listed(system: System, stub: InferenceStub) -> None:
    [model] = stub.ListModels(pb.ListModelsRequest()).models

    assert model.id == system.model
    assert model.context_length > 0


@pytest.mark.parametrize(
    ("request_", "code"),
    [
        (pb.GenerateRequest(), grpc.StatusCode.INVALID_ARGUMENT),
        (pb.GenerateRequest(text="a", max_tokens=100_000), grpc.StatusCode.INVALID_ARGUMENT),
        (pb.GenerateRequest(text="a", model="gpt-none"), grpc.StatusCode.NOT_FOUND),
    ],
)
def test_errors_have_their_status(stub: InferenceStub, request_: pb.GenerateRequest, code: grpc.StatusCode) -> None:
    with pytest.raises(grpc.RpcError) as failure:
        stub.Generate(request_)

    assert failure.value.code() == code


def test_a_passed_deadline_stops_the_work(system: System, stub: InferenceStub) -> None:
    aborted = system.metric("palimpsest_worker_aborted_total")

    with pytest.raises(grpc.RpcError) as failure:
        stub.Generate(slow(), timeout=0.5)

    assert failure.value.code() == grpc.StatusCode.DEADLINE_EXCEEDED
    eventually(lambda: system.metric("palimpsest_worker_aborted_total") == aborted + 1)
    eventually(lambda: system.metric("palimpsest_worker_running") == 0)


def test_a_cancelled_call_stops_the_work(system: System, stub: InferenceStub) -> None:
    aborted = system.metric("palimpsest_worker_aborted_total")
    call = stub.GenerateStream(slow())
    eventually(lambda: system.metric("palimpsest_worker_running") == 1)

    call.cancel()

    eventually(lambda: system.metric("palimpsest_worker_aborted_total") == aborted + 1)
    eventually(lambda: system.metric("palimpsest_worker_running") == 0)


def test_a_context_is_made_denoised_and_read(knowing_system: System, stub: InferenceStub) -> None:
    """The model fills an answer's hole in the context, and then answers from what it wrote."""
    turns = [
        contexts.Turn(role="system", parts=[contexts.TextPart(text=SHEET)]),
        contexts.Turn(role="user", parts=[contexts.TextPart(text="Where does Mira live?")]),
        contexts.Turn(role="assistant", parts=[contexts.TextPart(hole=5)]),
    ]
    with grpc.insecure_channel(knowing_system.grpc_target) as channel:
        shared = ContextsStub(channel)  # type: ignore[no-untyped-call]
        content = contexts.ContextContent(turns=contexts.Turns(turns=turns))
        made = shared.Create(contexts.CreateContextRequest(content=content)).context
        request = contexts.DenoiseRequest(id=made.id, diffusion=pb.DiffusionOptions(block_length=3))
        first, second, last = shared.Denoise(request)
        read = shared.Get(contexts.GetContextRequest(id=made.id)).context

    assert (first.block.text, second.block.text) == ("Mira lives in", " Oslo.")
    assert (first.block.epoch, second.block.epoch) == (1, 2)
    assert last.denoised.context == read
    assert not read.holes
    question = pb.Conversation(messages=[pb.Message(role="user", content="Who has a penguin?")])
    asked = pb.GenerateRequest(conversation=question, context=pb.ContextChoice(id=made.id))
    assert list(stub.Generate(asked).context.epochs) == [2]


def test_health_and_reflection(system: System) -> None:
    with grpc.insecure_channel(system.grpc_target) as channel:
        health = health_pb2_grpc.HealthStub(channel)
        answers = [health.Check(health_pb2.HealthCheckRequest(service=name)) for name in ("", SERVICE, CONTEXTS)]
        services = ProtoReflectionDescriptorDatabase(channel).get_services()

    assert {answer.status for answer in answers} == {health_pb2.HealthCheckResponse.SERVING}
    assert {SERVICE, CONTEXTS} <= set(services)
