"""Bodies as load generators, evaluation harnesses and client libraries send them, by default or as a replay."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from fastapi.testclient import TestClient
from openai.types.chat import ChatCompletion
from openai.types.chat.completion_create_params import CompletionCreateParamsBase as ChatParams
from openai.types.completion_create_params import CompletionCreateParamsBase as TextParams

from cluster.ingress.http.schema.generation import ChatBody, CompletionBody
from tests.unit.cluster.local import LocalWorkers

CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
ASKED = [{"role": "user", "content": "How old is Mira?"}]
PARTS = [{"role": "user", "content": [{"type": "text", "text": "How old is Mira?"}]}]
CONTINUOUS = {"include_usage": True, "continuous_usage_stats": True}

DEFAULTS: dict[str, tuple[str, dict[str, Any]]] = {
    "guidellm, chat": (
        CHAT,
        {
            "model": "random",
            "messages": PARTS,
            "stream": True,
            "stream_options": CONTINUOUS,
            "max_completion_tokens": 8,
            "stop": None,
            "ignore_eos": True,
        },
    ),
    "guidellm, text": (
        TEXT,
        {
            "model": "random",
            "prompt": "Mira",
            "stream": True,
            "stream_options": CONTINUOUS,
            "max_tokens": 8,
            "stop": None,
            "ignore_eos": True,
        },
    ),
    "vllm bench serve, chat": (
        CHAT,
        {
            "model": "random",
            "messages": PARTS,
            "max_completion_tokens": 8,
            "stream": True,
            "stream_options": {"include_usage": True},
            "top_k": -1,
            "min_p": 0.0,
            "temperature": 0.0,
            "frequency_penalty": 0.0,
            "presence_penalty": 0.0,
            "repetition_penalty": 1.0,
        },
    ),
    "vllm bench serve, text": (
        TEXT,
        {
            "model": "random",
            "prompt": "Mira",
            "repetition_penalty": 1.0,
            "max_tokens": 8,
            "logprobs": None,
            "stream": True,
            "stream_options": {"include_usage": True},
            "ignore_eos": False,
        },
    ),
    "lm-eval, local-chat-completions": (
        CHAT,
        {
            "messages": [{"role": "user", "content": "How old is Mira?", "type": "text"}],
            "model": "random",
            "max_tokens": 8,
            "temperature": 0,
            "stop": ["</s>", "Q:"],
            "seed": 1234,
        },
    ),
    "lm-eval, local-completions": (
        TEXT,
        {"prompt": [[7, 8]], "model": "random", "max_tokens": 8, "temperature": 0, "stop": ["Q:"], "seed": 1234},
    ),
    "evalscope": (
        CHAT,
        {
            "model": "random",
            "messages": ASKED,
            "max_tokens": 8,
            "n": 1,
            "stream": True,
            "stream_options": {"include_usage": True},
            "frequency_penalty": 0,
            "repetition_penalty": 1.0,
            "logprobs": False,
            "stop": [],
            "stop_token_ids": [],
            "min_tokens": 0,
            "top_k": 0,
            "chat_template_kwargs": {"enable_thinking": False},
        },
    ),
    "langchain-openai, text": (
        TEXT,
        {
            "model": "random",
            "prompt": ["Mira"],
            "temperature": 0.7,
            "top_p": 1,
            "frequency_penalty": 0,
            "presence_penalty": 0,
            "n": 1,
            "best_of": 1,
            "max_tokens": 8,
            "logit_bias": {},
            "seed": None,
            "logprobs": None,
        },
    ),
    "litellm": (
        CHAT,
        {
            "model": "random",
            "messages": ASKED,
            "user": "",
            "functions": [],
            "function_call": "",
            "tools": None,
            "tool_choice": None,
            "response_format": {"type": "text"},
            "parallel_tool_calls": None,
            "metadata": {"trace": "a"},
            "store": False,
            "service_tier": "auto",
            "modalities": ["text"],
            "stream_options": None,
            "stop": "",
            "max_tokens": 8,
            "stream": False,
        },
    ),
    "vLLM's own defaults": (
        CHAT,
        {
            "messages": ASKED,
            "max_tokens": 8,
            "echo": False,
            "best_of": 1,
            "use_beam_search": False,
            "length_penalty": 1.0,
            "include_stop_str_in_output": False,
            "skip_special_tokens": True,
            "spaces_between_special_tokens": True,
            "prompt_logprobs": None,
            "bad_words": [],
            "add_generation_prompt": True,
            "continue_final_message": False,
            "add_special_tokens": False,
            "include_reasoning": True,
            "priority": 0,
            "request_id": "chatcmpl-1",
            "return_token_ids": False,
            "structured_outputs": None,
            "a_field_of_the_future": None,
        },
    ),
}


@pytest.mark.parametrize("harness", DEFAULTS)
def test_what_a_harness_sends_by_default_is_answered(client: TestClient, harness: str) -> None:
    path, body = DEFAULTS[harness]
    response = client.post(path, json=body)

    assert response.status_code == 200, response.text
    assert not body.get("stream") or response.text.rstrip().endswith("data: [DONE]")


@pytest.mark.parametrize("path", [CHAT, TEXT])
def test_continuous_usage_is_in_every_chunk_of_a_stream(client: TestClient, path: str) -> None:
    prompt: dict[str, Any] = {"messages": ASKED} if path == CHAT else {"prompt": "Mira"}
    blocks = {"diffusion": {"steps": 16, "block_length": 4}, "ignore_eos": True, "max_tokens": 16}
    body = prompt | blocks | {"stream": True, "stream_options": CONTINUOUS}
    lines = client.post(path, json=body).text.split("\n\n")
    chunks = [json.loads(line.removeprefix("data: ")) for line in lines if line.startswith("data: {")]
    plain = client.post(path, json=body | {"stream_options": {"continuous_usage_stats": True}}).text

    usages = [chunk["usage"] for chunk in chunks]
    counts = [usage["completion_tokens"] for usage in usages]
    assert counts == sorted(counts)
    assert (counts[-1], len(set(counts)) > 3) == (16, True)
    assert path == TEXT or counts[0] == 0
    assert {usage["total_tokens"] - usage["completion_tokens"] for usage in usages} == {usages[-1]["prompt_tokens"]}
    assert chunks[-1]["choices"] == []
    assert '"usage"' not in plain


def test_top_k_and_min_tokens_are_honoured_at_vllms_paths(client: TestClient, workers: LocalWorkers) -> None:
    body: dict[str, Any] = {"prompt": "Mira", "max_tokens": 9}
    for more in (
        {"top_k": 7, "min_tokens": 3},
        {"top_k": 7, "min_tokens": 3, "diffusion": {"top_k": 2, "min_tokens": 4}},
        {"top_k": -1, "min_tokens": 0},
    ):
        assert client.post(TEXT, json=body | more).status_code == 200
    refused = client.post(TEXT, json=body | {"min_tokens": 10}).json()["error"]

    asked = [(request.params.top_k, request.params.min_tokens) for request in workers.requests[:3]]
    assert asked == [(7, 3), (2, 4), (None, 0)]
    assert refused["param"] == "min_tokens"
    assert refused["message"].startswith("min_tokens must")


NOTHING_SAID: dict[str, Any] = {
    "annotations": [],
    "audio": None,
    "function_call": None,
    "refusal": "",
    "tool_calls": None,
    "tool_call_id": None,
    "name": None,
    "a_field_of_the_future": [],
}
ECHOED: dict[str, Any] = {
    "reasoning_content": "She is 34.",
    "annotations": [{"type": "url_citation"}],
    "provider_specific_fields": {"refusal": None},
    "id": "msg-1",
}


@pytest.mark.parametrize("more", [NOTHING_SAID, ECHOED], ids=["empty", "echoed"])
def test_fields_that_say_nothing_are_taken_in_a_replayed_answer(
    client: TestClient, workers: LocalWorkers, more: dict[str, Any]
) -> None:
    answer = {"role": "assistant", "content": "Mira is 34."}
    for turn in (answer, answer | more):
        response = client.post(CHAT, json={"messages": [*ASKED, turn, *ASKED]})
        assert response.status_code == 200, response.text

    plain, same = workers.requests
    assert replace(same, request_id=plain.request_id) == plain


def test_the_message_of_openais_client_can_be_sent_back(client: TestClient) -> None:
    answer = ChatCompletion.model_validate(client.post(CHAT, json={"messages": ASKED}).json())
    [choice] = answer.choices

    messages = [*ASKED, choice.message.model_dump(), *PARTS]
    assert client.post(CHAT, json={"messages": messages}).status_code == 200


def test_an_answer_without_content_is_an_empty_one(client: TestClient, workers: LocalWorkers) -> None:
    for content in ({"content": ""}, {"content": None}, {}):
        turns = [*ASKED, {"role": "assistant"} | content, *ASKED]
        assert client.post(CHAT, json={"messages": turns}).status_code == 200

    assert len({request.token_ids for request in workers.requests}) == 1


def test_hints_on_a_text_part_change_nothing(client: TestClient, workers: LocalWorkers) -> None:
    part = {"type": "text", "text": "How old is Mira?"}
    for hint in ({}, {"cache_control": {"type": "ephemeral"}}, {"annotations": []}):
        assert client.post(CHAT, json={"messages": [{"role": "user", "content": [part | hint]}]}).status_code == 200

    assert len({request.token_ids for request in workers.requests}) == 1


CALL = {"id": "a", "type": "function", "function": {"name": "f", "arguments": "{}"}}


@pytest.mark.parametrize(
    ("more", "param"),
    [
        ({"tool_calls": [CALL], "content": None}, "messages.0.tool_calls"),
        ({"function_call": {"name": "f"}}, "messages.0.function_call"),
        ({"refusal": "I can't."}, "messages.0.refusal"),
        ({"audio": {"id": "a"}}, "messages.0.audio"),
        ({"prefix": True}, "messages.0.prefix"),
        ({"mood": "good"}, "messages.0.mood"),
        ({"content": [{"type": "text", "text": "a", "colour": 1}]}, "messages.0.content.0.colour"),
        ({"role": "user", "content": None}, "messages.0.content"),
    ],
)
def test_a_field_that_says_more_than_can_be_honoured_is_refused_by_its_path(
    client: TestClient, more: dict[str, Any], param: str
) -> None:
    turn = {"role": "assistant", "content": "Mira is 34."} | more
    response = client.post(CHAT, json={"messages": [turn, *ASKED]})

    assert (response.status_code, response.json()["error"]["param"]) == (400, param)


@pytest.mark.parametrize(
    "wrong",
    [
        {"n": 2},
        {"n": True},
        {"best_of": 2},
        {"echo": True},
        {"frequency_penalty": 0.5},
        {"frequency_penalty": False},
        {"repetition_penalty": 1.1},
        {"min_p": 0.1},
        {"stop_token_ids": [5]},
        {"skip_special_tokens": False},
        {"guided_json": {"type": "object"}},
        {"tool_choice": "required"},
        {"chat_template_kwargs": {"enable_thinking": True}},
        {"top_k": -2},
        {"top_k": True},
        {"min_tokens": -1},
    ],
)
def test_a_field_with_another_value_than_its_neutral_one_is_refused(client: TestClient, wrong: dict[str, Any]) -> None:
    response = client.post(CHAT, json={"messages": ASKED} | wrong)

    assert (response.status_code, response.json()["error"]["param"]) == (400, *wrong)


def test_every_default_of_openais_parameters_is_known() -> None:
    """A field of the client library's that isn't declared here would be refused as a spelling mistake."""
    assert set(ChatParams.__annotations__) - set(ChatBody.model_fields) == set()
    assert set(TextParams.__annotations__) - set(CompletionBody.model_fields) == set()
