"""Decoding options and infilling, from both transports to the worker's request."""

from __future__ import annotations

from typing import Any

import grpc
import pytest
from fastapi.testclient import TestClient

from cluster.generation.answer import InferenceService
from cluster.generation.contexts.denoising import ContextDenoiser
from cluster.generation.tokenization import Tokenizer
from cluster.ingress.grpc.server import serving
from protos import inference_v1_pb2 as pb
from protos.inference_v1_pb2_grpc import InferenceStub
from tests.unit.cluster.local import LocalWorkers
from workers.api import DecodingParams

OPTIONS: dict[str, Any] = {
    "unmasking": "threshold",
    "timetable": "dream",
    "threshold": 0.5,
    "top_k": 7,
    "min_tokens": 3,
    "anchors": 0.5,
    "skip_refresh": True,
}
PARAMS = DecodingParams(
    unmasking="threshold",
    timetable="dream",
    threshold=0.5,
    top_k=7,
    min_tokens=3,
    anchors=0.5,
    skip_refresh=True,
    top_p=0.9,
    logit_bias=((5, -100.0), (9, 2.5)),
    temperature=0.7,
    seed=4,
)
OTHERS: dict[str, Any] = {"unmasking": "entropy", "remask": 2, "guidance": 1.5}


def test_every_option_arrives_over_http(client: TestClient, workers: LocalWorkers) -> None:
    body = {"prompt": "Mira", "temperature": 0.7, "seed": 4, "top_p": 0.9, "logit_bias": {"5": -100, "9": 2.5}}
    assert client.post("/v1/completions", json=body | {"diffusion": OPTIONS}).status_code == 200
    assert client.post("/v1/completions", json={"prompt": "Mira", "diffusion": OTHERS}).status_code == 200
    factor = {"prompt": "Mira", "diffusion": {"unmasking": "factor", "factor": 1.5}}
    assert client.post("/v1/completions", json=factor).status_code == 200

    params = [request.params for request in workers.requests]
    assert params == [PARAMS, DecodingParams(**OTHERS), DecodingParams(unmasking="factor", factor=1.5)]


def test_ignore_eos_fills_the_canvas(client: TestClient, workers: LocalWorkers) -> None:
    body = {"prompt": "Mira", "max_tokens": 9, "stream": None, "diffusion": None}
    assert client.post("/v1/completions", json=body | {"ignore_eos": True}).json()["usage"]["completion_tokens"] == 9
    assert workers.requests[0].params.min_tokens == 9

    refused = client.post("/v1/completions", json={"prompt": "Mira", "ignore_eos": True})
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "ignore_eos")


async def test_every_option_arrives_over_grpc(
    service: InferenceService, denoiser: ContextDenoiser, workers: LocalWorkers
) -> None:
    async with (
        serving(service, denoiser, "127.0.0.1:0", frozenset(), max_message_bytes=100_000) as port,
        grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel,
    ):
        stub = InferenceStub(channel)  # type: ignore[no-untyped-call]
        first = pb.GenerateRequest(text="Mira", temperature=0.7, seed=4, top_p=0.9, logit_bias={5: -100, 9: 2.5})
        first.diffusion.CopyFrom(pb.DiffusionOptions(**OPTIONS))
        await stub.Generate(first)
        await stub.Generate(pb.GenerateRequest(text="Mira", diffusion=pb.DiffusionOptions(**OTHERS)))
        factor = pb.DiffusionOptions(unmasking="factor", factor=1.5)
        await stub.Generate(pb.GenerateRequest(text="Mira", suffix="has a fox.", diffusion=factor))
        talk = pb.Conversation(messages=[pb.Message(role="user", content="Hello")])
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await stub.Generate(pb.GenerateRequest(conversation=talk, suffix="has a fox."))

    *_, last = workers.requests
    assert "suffix" in (refused.value.details() or "")
    assert [sorted(request.params.logit_bias) for request in workers.requests] == [[(5, -100.0), (9, 2.5)], [], []]
    assert [request.params.unmasking for request in workers.requests] == ["threshold", "entropy", "factor"]
    assert last.suffix
    assert workers.requests[0].params.top_p == 0.9
    assert (workers.requests[1].params.remask, workers.requests[1].params.guidance) == (2, 1.5)


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/fim/completions"])
def test_infilling_puts_the_canvas_between_prompt_and_suffix(
    client: TestClient, workers: LocalWorkers, random_model: Any, path: str
) -> None:
    prompt, suffix = "Mira is 34, lives in", " and has a fox."
    body = client.post(path, json={"prompt": prompt, "suffix": suffix, "max_tokens": 3}).json()

    [request] = workers.requests
    tokenizer = Tokenizer(random_model)
    whole = tokenizer.detokenizer().push((*request.token_ids, *request.suffix))
    assert whole == prompt + suffix
    assert request.max_tokens == 3
    assert body["object"] == "text_completion"
    assert body["usage"]["prompt_tokens"] == len(request.token_ids) + len(request.suffix)


def test_prompt_answer_and_suffix_are_one_text(client: TestClient, workers: LocalWorkers, random_model: Any) -> None:
    """Bias makes the middle one word: its leading space is part of the answer."""
    tokenizer = Tokenizer(random_model)
    [oslo] = tokenizer.encode_suffix(" Oslo")
    bias = {"logit_bias": {str(oslo): 100}, "max_tokens": 1}
    plain = client.post("/v1/completions", json={"prompt": "Mira lives in", **bias}).json()
    between = client.post("/v1/completions", json={"prompt": "Mira lives in", "suffix": ".", **bias}).json()
    chat = client.post("/v1/chat/completions", json={"messages": [{"role": "user", "content": "Where?"}], **bias})

    assert plain["choices"][0]["text"] == between["choices"][0]["text"] == " Oslo"
    assert chat.json()["choices"][0]["message"]["content"] == "Oslo"


def test_a_prompt_may_be_empty_before_a_suffix(client: TestClient) -> None:
    alone = client.post("/v1/fim/completions", json={"prompt": "", "suffix": "lives in Oslo.", "max_tokens": 2})
    neither = client.post("/v1/fim/completions", json={"prompt": "", "suffix": "", "max_tokens": 2})

    assert alone.status_code == 200
    assert (neither.status_code, neither.json()["error"]["type"]) == (400, "invalid_request_error")


def test_the_suffix_takes_room_in_the_context(client: TestClient) -> None:
    body = {"prompt": "Mira", "suffix": "has a fox. " * 100, "max_tokens": 900}
    error = client.post("/v1/completions", json=body).json()["error"]

    assert (error["code"], error["param"]) == ("context_length_exceeded", "max_tokens")


@pytest.mark.parametrize(
    ("wrong", "param"),
    [
        ({"top_p": 0}, "top_p"),
        ({"top_p": 1.1}, "top_p"),
        ({"logit_bias": {"x": 1}}, "logit_bias.x"),
        ({"logit_bias": {"5": 101}}, "logit_bias.5"),
        ({"logit_bias": {"999999": 1}}, "logit_bias"),
        ({"diffusion": {"unmasking": "hope"}}, "diffusion.unmasking"),
        ({"diffusion": {"timetable": "never"}}, "diffusion.timetable"),
        ({"diffusion": {"threshold": 2}}, "diffusion.threshold"),
        ({"diffusion": {"threshold": 0.5}}, "diffusion.threshold"),
        ({"diffusion": {"guidance": 1, "policy": "lean"}}, "diffusion.guidance"),
        ({"diffusion": {"remask": 1, "unmasking": "factor"}}, "diffusion.remask"),
        ({"diffusion": {"min_tokens": 17}}, "diffusion.min_tokens"),
        ({"diffusion": {"top_k": 0}}, "diffusion.top_k"),
    ],
)
def test_a_wrong_option_is_refused_by_name(client: TestClient, wrong: dict[str, Any], param: str) -> None:
    response = client.post("/v1/completions", json={"prompt": "Mira"} | wrong)

    assert (response.status_code, response.json()["error"]["param"]) == (400, param)
