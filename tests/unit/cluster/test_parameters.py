"""Each decoding parameter is declared once: both transports and the worker keep to its declaration."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from cluster.errors import RequestError
from cluster.ingress.grpc.calls import params_from_pb
from cluster.ingress.http.schema.contexts import DenoiseBody
from cluster.ingress.http.schema.generation import ChatBody, CompletionBody, ContextBody, DiffusionBody
from cluster.ingress.http.schema.neutral import NeutralChatFields, NeutralCompletionFields
from protos import contexts_v1_pb2, inference_v1_pb2
from workers.api import PARAMETERS, DecodingParams
from workers.decoding.parameters import check_bounds
from workers.errors import InvalidRequestError
from workers.parameter import Parameter

DOCS = Path(__file__).parents[3] / "docs" / "decoding.md"
REQUESTS = inference_v1_pb2.GenerateRequest, contexts_v1_pb2.DenoiseRequest
BOUNDED = [parameter for parameter in PARAMETERS if parameter.bounds]
by_name = pytest.mark.parametrize("parameter", BOUNDED, ids=lambda parameter: parameter.name)


def numbers_beyond(parameter: Parameter) -> Iterator[float]:
    assert parameter.bounds
    yield parameter.bounds.least - (0 if parameter.bounds.excludes_least else 1)
    if parameter.bounds.most < math.inf:
        yield parameter.bounds.most + 1


def nested(parameter: Parameter, value: Any) -> dict[str, Any]:
    inner = {parameter.client_name: {"5": value} if parameter.name == "logit_bias" else value}
    return inner if parameter.is_openai else {"diffusion": inner}


@by_name
def test_a_number_beyond_its_bounds_is_refused_over_http_by_its_path(client: TestClient, parameter: Parameter) -> None:
    for number in numbers_beyond(parameter):
        response = client.post("/v1/completions", json={"prompt": "Mira"} | nested(parameter, number))

        path = f"{parameter.path}.5" if parameter.name == "logit_bias" else parameter.path
        assert (response.status_code, response.json()["error"]["param"]) == (400, path)


@by_name
def test_a_number_beyond_its_bounds_is_refused_over_grpc_by_its_path(parameter: Parameter) -> None:
    for request_type in REQUESTS:
        for number in numbers_beyond(parameter):
            request: Any = request_type()
            message = request if parameter.is_openai else request.diffusion
            try:
                if parameter.name == "logit_bias":
                    message.logit_bias[5] = number
                else:
                    setattr(message, parameter.client_name, number)
            except ValueError:
                continue  # the field's own type excludes it
            with pytest.raises(RequestError, match=parameter.path) as refused:
                params_from_pb(request)
            assert refused.value.param == parameter.path


@by_name
def test_a_number_beyond_its_bounds_is_refused_by_the_worker(parameter: Parameter) -> None:
    for number in (*numbers_beyond(parameter), math.nan):
        value: Any = ((5, number),) if parameter.name == "logit_bias" else number
        with pytest.raises(InvalidRequestError, match=parameter.client_name) as refused:
            check_bounds(replace(DecodingParams(), **{parameter.name: value}))
        assert refused.value.param == parameter.client_name


def test_what_is_left_out_has_its_declared_default() -> None:
    assert CompletionBody(prompt="Mira").params() == DecodingParams()
    for request_type in REQUESTS:
        assert params_from_pb(request_type()) == DecodingParams()
    check_bounds(DecodingParams())


def test_every_parameter_is_a_field_of_both_transports() -> None:
    schema = CompletionBody.model_json_schema()
    for parameter in PARAMETERS:
        body = schema if parameter.is_openai else schema["$defs"]["DiffusionBody"]
        assert body["properties"][parameter.client_name]["description"] == parameter.help
        for request_type in REQUESTS:
            message = request_type.DESCRIPTOR if parameter.is_openai else inference_v1_pb2.DiffusionOptions.DESCRIPTOR
            assert parameter.client_name in message.fields_by_name


OTHER_NAMES = {
    "messages": "conversation",
    "prompt": "text",
    "max_completion_tokens": "max_tokens",
    "top_k": "diffusion",
    "min_tokens": "diffusion",
}
"""Fields of HTTP bodies that gRPC has by another name, or where it has them."""
OF_STREAMS = {"stream", "stream_options"}
"""Fields for which gRPC has a call of its own, whose last message holds the usage."""
OF_PROTOBUF = {"token_ids", "text", "conversation"}
"""The kinds of prompt over gRPC."""


def test_every_field_with_an_effect_exists_on_both_transports() -> None:
    effective = {
        name
        for body in (ChatBody, CompletionBody)
        for name in body.model_fields
        if name not in {*NeutralChatFields.model_fields, *NeutralCompletionFields.model_fields}
    } - OF_STREAMS
    fields = set(inference_v1_pb2.GenerateRequest.DESCRIPTOR.fields_by_name)

    assert {OTHER_NAMES.get(name, name) for name in effective} == fields - OF_PROTOBUF | {"text", "conversation"}
    assert set(DiffusionBody.model_fields) - {"seed"} == set(
        inference_v1_pb2.DiffusionOptions.DESCRIPTOR.fields_by_name
    )
    assert set(ContextBody.model_fields) == set(inference_v1_pb2.ContextChoice.DESCRIPTOR.fields_by_name)
    assert set(DenoiseBody.model_fields) - OF_STREAMS == set(
        contexts_v1_pb2.DenoiseRequest.DESCRIPTOR.fields_by_name
    ) - {"id"}


def test_the_docs_name_every_parameter() -> None:
    text = DOCS.read_text()
    assert [parameter.client_name for parameter in PARAMETERS if f"`{parameter.client_name}`" not in text] == []
