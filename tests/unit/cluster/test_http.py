from __future__ import annotations

import json
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient
from tokenizers import Tokenizer

from cluster.errors import ReplicaLostError
from tests.unit.cluster.local import RIGHT_KEYS, WRONG_KEYS, Connect, Fault, LocalWorkers
from workers.errors import InvalidRequestError, NonFiniteLogitsError, OverloadedError

CHAT = "/v1/chat/completions"
TALK: dict[str, Any] = {"messages": [{"role": "user", "content": "How old is Mira?"}]}
BLOCKS = {"diffusion": {"steps": 16, "block_length": 4}}


def data_of(body: str) -> list[Any]:
    lines = [line.removeprefix("data: ") for line in body.splitlines() if line.startswith("data: ")]
    return [line if line == "[DONE]" else json.loads(line) for line in lines]


def test_a_whole_answer_says_what_it_took(client: TestClient) -> None:
    body = client.post(CHAT, json=TALK | {"seed": 1, "diffusion": {"steps": 4, "policy": "none"}}).json()

    [choice] = body["choices"]
    assert body["object"] == "chat.completion"
    assert choice["message"]["role"] == "assistant"
    assert choice["message"]["content"]
    assert body["usage"]["total_tokens"] == body["usage"]["prompt_tokens"] + body["usage"]["completion_tokens"]
    assert body["usage"]["prompt_tokens_details"] == {"cached_tokens": 0}
    assert {"policy": "none", "steps": 4, "replica": "local"}.items() <= body["diffusion"].items()


def test_an_answer_says_where_its_prefix_ends_and_how_deep_it_is_reused(
    client: TestClient, workers: LocalWorkers
) -> None:
    sheet = {"role": "system", "content": "Mira is 34 and lives in Oslo."}
    asked = {"messages": [sheet, *TALK["messages"]], "diffusion": {"reuse_depth": 1, "deterministic": False}}
    body = client.post(CHAT, json=asked).json()

    [prefix] = workers.requests[0].prefixes
    assert workers.requests[0].params.deterministic is False
    report = {"prefix_tokens": prefix.num_tokens, "reuse_depth": 1, "depth_limited_by": None}
    assert report.items() <= body["diffusion"].items()


@pytest.mark.parametrize("include_usage", [False, True])
def test_a_stream_ends_with_reason_usage_and_done(client: TestClient, include_usage: bool) -> None:
    asked = TALK | BLOCKS | {"stream": True, "stream_options": {"include_usage": include_usage}}
    whole = client.post(CHAT, json=TALK | BLOCKS).json()

    response = client.post(CHAT, json=asked)

    *chunks, done = data_of(response.text)
    usage = chunks.pop() if include_usage else None
    assert response.headers["content-type"].startswith("text/event-stream")
    assert done == "[DONE]"
    assert chunks[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    texts = [chunk["choices"][0]["delta"].get("content", "") for chunk in chunks]
    assert "".join(texts) == whole["choices"][0]["message"]["content"]
    assert [chunk["choices"][0]["finish_reason"] for chunk in chunks] == [None] * (len(chunks) - 1) + ["length"]
    assert chunks[-1]["diffusion"]["replica"] == "local"
    assert len({chunk["id"] for chunk in chunks}) == 1
    assert all(("usage" in chunk, chunk.get("usage")) == (include_usage, None) for chunk in chunks)
    assert usage is None or (usage["choices"], usage["usage"]["completion_tokens"]) == ([], 16)


def test_completions_take_text_and_token_ids(client: TestClient, workers: LocalWorkers, random_model: Path) -> None:
    for prompt in ("Mira", ["Mira"], [7, 8], [[7, 8]]):
        body = client.post("/v1/completions", json={"prompt": prompt, "max_tokens": 4}).json()
        assert body["object"] == "text_completion"
        assert isinstance(body["choices"][0]["text"], str)

    one, same, ids, same_ids = (request.token_ids for request in workers.requests)
    assert list(one) == list(same) == Tokenizer.from_file(str(random_model / "tokenizer.json")).encode("Mira").ids
    assert ids == same_ids == (7, 8)


def test_parts_of_a_message_are_joined_and_a_developer_is_the_system(client: TestClient, workers: LocalWorkers) -> None:
    parts = [{"type": "text", "text": "How old "}, {"type": "text", "text": "is Mira?"}]
    for role, content in (("system", "How old is Mira?"), ("developer", parts)):
        client.post(CHAT, json={"messages": [{"role": role, "content": content}]})

    one, two = (request.token_ids for request in workers.requests)
    assert one == two


@pytest.mark.parametrize(
    "harmless",
    [
        {"user": "u", "metadata": {"a": "b"}, "store": True, "service_tier": "auto", "parallel_tool_calls": True},
        {"n": 1, "top_p": 1.0, "logprobs": False, "response_format": {"type": "text"}, "tools": [], "stop": None},
        {"frequency_penalty": 0, "presence_penalty": 0.0, "logit_bias": {}, "tool_choice": "none"},
    ],
)
def test_what_changes_nothing_is_accepted_and_changes_nothing(
    client: TestClient, workers: LocalWorkers, harmless: dict[str, Any]
) -> None:
    for body in (TALK, TALK | harmless):
        assert client.post(CHAT, json=body).status_code == 200

    plain, same = workers.requests
    assert replace(same, request_id=plain.request_id) == plain


@pytest.mark.parametrize(
    ("wrong", "param"),
    [
        ({"n": 2}, "n"),
        ({"tools": [{"type": "function"}]}, "tools"),
        ({"logprobs": True}, "logprobs"),
        ({"response_format": {"type": "json_object"}}, "response_format"),
        ({"max_token": 4}, "max_token"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_completion_tokens": 2000}, "max_completion_tokens"),
        ({"max_tokens": 2000}, "max_tokens"),
        ({"temperature": 3}, "temperature"),
        ({"top_p": 0}, "top_p"),
        ({"logit_bias": {"9": 101}}, "logit_bias.9"),
        ({"stop": [""]}, "stop.0"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "user"}]}, "messages.0.content"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages.0.role"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages.0.content.0.type"),
        ({"max_tokens": "4"}, "max_tokens"),
        ({"max_tokens": 4.0}, "max_tokens"),
        ({"max_tokens": True}, "max_tokens"),
        ({"temperature": "0.5"}, "temperature"),
        ({"stream": "yes"}, "stream"),
        ({"cache_salt": "\ud800"}, "cache_salt"),
        ({"stop": ["a", "\ud800"]}, "stop.1"),
        ({"model": "\ud800"}, "model"),
        ({"messages": [{"role": "user", "content": "Mira \ud83e"}]}, "messages.0.content"),
        (
            {"messages": [{"role": "user", "content": [{"type": "text", "text": "\udd8a"}]}]},
            "messages.0.content.0.text",
        ),
        ({"diffusion": {"steps": 1, "block_length": 2}}, "diffusion.steps"),
        ({"diffusion": {"stepz": 4}}, "diffusion.stepz"),
        ({"diffusion": {"policy": "magic"}}, "diffusion.policy"),
    ],
)
def test_what_cannot_be_honoured_is_refused_by_name(client: TestClient, wrong: dict[str, Any], param: str) -> None:
    response = client.post(CHAT, content=json.dumps(TALK | wrong), headers={"content-type": "application/json"})

    error = response.json()["error"]
    assert (response.status_code, error["type"], error["param"]) == (400, "invalid_request_error", param)
    assert set(error) == {"message", "type", "param", "code"}


@pytest.mark.parametrize(
    ("body", "content_type", "status", "words"),
    [
        (b"", "application/json", 400, "JSON object"),
        (b"[]", "application/json", 400, "JSON object"),
        (json.dumps(TALK).encode(), "text/plain", 400, "Content-Type"),
        (json.dumps(TALK | {"stop": ["x"] * 17}).encode(), "application/json", 400, "at most 16"),
        (json.dumps(TALK | {"model": "gpt"}).encode(), "application/json", 404, "gpt"),
        (b'{"messages": "' + b"x" * 20_000 + b'"}', "application/json", 413, "max_body_bytes"),
    ],
)
def test_a_refusal_says_what_to_do(client: TestClient, body: bytes, content_type: str, status: int, words: str) -> None:
    response = client.post(CHAT, content=body, headers={"content-type": content_type})

    assert response.status_code == status
    assert words in response.json()["error"]["message"]


def test_an_empty_prompt_is_refused_by_its_name(client: TestClient) -> None:
    for prompt in ("", [], [[]]):
        response = client.post("/v1/completions", json={"prompt": prompt})
        assert (response.status_code, response.json()["error"]["param"]) == (400, "prompt")


@pytest.mark.parametrize(
    ("method", "path", "content", "status"),
    [
        ("POST", CHAT, b"{", 400),
        ("POST", CHAT, b"[]", 400),
        ("POST", CHAT, b"x" * 20_000, 413),
        ("GET", CHAT, b"", 405),
        ("GET", "/v1/nothing", b"", 404),
        ("GET", "/v1/models/gpt", b"", 404),
    ],
)
def test_every_refusal_is_an_error_object(
    client: TestClient, method: str, path: str, content: bytes, status: int
) -> None:
    response = client.request(method, path, content=content, headers={"content-type": "application/json"})

    assert response.status_code == status
    assert set(response.json()["error"]) == {"message", "type", "param", "code"}


def test_a_long_body_of_unknown_length_is_refused_too(client: TestClient) -> None:
    response = client.post(CHAT, content=iter([b"x" * 6_000] * 2), headers={"content-type": "application/json"})

    assert (response.status_code, response.json()["error"]["type"]) == (413, "invalid_request_error")


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("fault", "status", "code"),
    [
        (OverloadedError("full", retry_after_s=2.4), 429, "overloaded"),
        (InvalidRequestError("no", param="seed"), 400, None),
        (NonFiniteLogitsError("nan"), 500, "worker_error"),
        (KeyError("secret"), 500, "internal_error"),
    ],
)
def test_a_workers_error_has_its_status_in_a_stream_too(
    client: TestClient, workers: LocalWorkers, stream: bool, fault: Exception, status: int, code: str | None
) -> None:
    workers.faults = [Fault(fault)]

    response = client.post(CHAT, json=TALK | {"stream": stream})

    assert (response.status_code, response.json()["error"]["code"]) == (status, code)
    assert "secret" not in response.text
    assert response.headers.get("retry-after") == ("3" if status == 429 else None)


def test_an_error_in_the_middle_of_a_stream_is_its_last_event(client: TestClient, workers: LocalWorkers) -> None:
    workers.faults = [Fault(ReplicaLostError("gone"), after=3)]

    response = client.post(CHAT, json=TALK | BLOCKS | {"stream": True})

    *chunks, last = data_of(response.text)
    assert response.status_code == 200
    assert chunks[1]["choices"][0]["delta"]["content"]
    assert last["error"]["code"] == "replica_lost"


def test_api_keys_are_required_where_they_are_configured(connect: Connect) -> None:
    client = connect(frozenset({"right", "also"}))
    responses = [client.get("/v1/models", headers=dict(header)) for header in ((), *WRONG_KEYS)]

    assert {response.status_code for response in responses} == {401}
    for header in RIGHT_KEYS:
        assert client.get("/v1/models", headers=dict(header)).status_code == 200
    assert responses[0].json()["error"]["code"] == "invalid_api_key"
    assert responses[0].headers["www-authenticate"] == "Bearer"
    assert client.post(CHAT, json=TALK).status_code == 401
    assert client.get("/health").status_code == client.get("/metrics").status_code == 200


def test_health_is_bad_until_a_worker_answers(client: TestClient, workers: LocalWorkers) -> None:
    workers.away = True
    assert client.get("/health").status_code == client.post(CHAT, json=TALK).status_code == 503

    workers.away = False
    assert client.get("/health").status_code == 200


def test_the_model_is_listed(client: TestClient) -> None:
    [model] = client.get("/v1/models").json()["data"]

    assert model == client.get("/v1/models/random").json()
    assert (model["id"], model["object"], model["context_length"]) == ("random", "model", 1024)


def test_the_exposition_counts_requests(client: TestClient) -> None:
    client.post(CHAT, json=TALK)
    client.post(CHAT, json=TALK | {"model": "gpt"})

    text = client.get("/metrics").text

    assert 'palimpsest_requests_total{outcome="length"} 1.0' in text
    assert 'palimpsest_requests_total{outcome="not_found"} 1.0' in text
    assert 'palimpsest_tokens_total{kind="completion"} 16.0' in text


def test_a_clients_request_id_names_its_request_but_never_two(client: TestClient, workers: LocalWorkers) -> None:
    for _ in range(2):
        client.post(CHAT, json=TALK, headers={"x-request-id": "mine"})

    one, two = (request.request_id for request in workers.requests)
    assert one.startswith("mine-")
    assert two.startswith("mine-")
    assert one != two


def test_the_root_says_what_is_served(client: TestClient) -> None:
    body = client.get("/").json()

    assert (body["name"], body["version"]) == ("palimpsest", version("palimpsest"))
    assert all(client.get(body[link]).status_code == 200 for link in ("models", "health", "metrics", "docs"))
