"""The HTTP API of a running system, through OpenAI's own client."""

from __future__ import annotations

import itertools

import httpx2 as httpx
import openai
import pytest
from openai import OpenAI

from tests.e2e.prompts import ANSWERS, ENDLESS, SHEET, chat, sheet
from tests.e2e.system import System
from tests.support.waiting import PATIENCE_S, eventually


@pytest.mark.parametrize(("question", "answer"), ANSWERS.items())
def test_the_model_answers_from_its_sheet(knowing_system: System, client: OpenAI, question: str, answer: str) -> None:
    completion = client.chat.completions.create(model=knowing_system.model, messages=chat(SHEET, question))

    assert answer in (completion.choices[0].message.content or "")


def test_a_second_question_finds_the_sheet_cached_on_the_same_replica(system: System) -> None:
    first = system.post("/v1/chat/completions", {"messages": chat(sheet("Nora"))}).json()
    second = system.post("/v1/chat/completions", {"messages": chat(sheet("Nora"), "How old is Ada?")}).json()

    assert first["usage"]["prompt_tokens_details"]["cached_tokens"] == 0
    cached = second["usage"]["prompt_tokens_details"]["cached_tokens"]
    assert 40 < cached < second["usage"]["prompt_tokens"]
    assert second["diffusion"]["replica"] == first["diffusion"]["replica"]


def test_another_salt_shares_nothing(system: System) -> None:
    mine = {"messages": chat(sheet("Petra")), "cache_salt": "mine"}
    system.post("/v1/chat/completions", mine)

    theirs = system.post("/v1/chat/completions", {**mine, "cache_salt": "theirs"}).json()
    again = system.post("/v1/chat/completions", mine).json()

    assert theirs["usage"]["prompt_tokens_details"]["cached_tokens"] == 0
    assert again["usage"]["prompt_tokens_details"]["cached_tokens"] > 0


def test_different_sheets_use_both_replicas(system: System) -> None:
    """Try more than once: for a moment a replica may count as busy with a request that has just ended."""
    names, used = itertools.count(), set()

    def are_both_used() -> bool:
        body = {"messages": chat(sheet(f"Number {next(names)}")), "max_tokens": 4}
        used.add(system.post("/v1/chat/completions", body).json()["diffusion"]["replica"])
        return len(used) == 2

    eventually(are_both_used)


def test_a_stream_is_the_whole_answer_in_pieces(system: System, client: OpenAI) -> None:
    messages = chat(sheet("Ines"))
    whole = client.chat.completions.create(model=system.model, messages=messages)
    stream = client.chat.completions.create(
        model=system.model, messages=messages, stream=True, stream_options={"include_usage": True}
    )
    chunks = list(stream)

    *pieces, usage = chunks
    assert "".join(chunk.choices[0].delta.content or "" for chunk in pieces) == whole.choices[0].message.content
    assert pieces[0].choices[0].delta.role == "assistant"
    assert pieces[-1].choices[0].finish_reason == whole.choices[0].finish_reason
    assert usage.choices == []
    assert usage.usage is not None
    assert whole.usage is not None
    assert usage.usage.completion_tokens == whole.usage.completion_tokens
    assert whole.usage.prompt_tokens_details is not None


def test_a_plain_completion_of_text_and_of_the_same_tokens(system: System, client: OpenAI) -> None:
    text = client.completions.create(model=system.model, prompt="Mira is 34", max_tokens=8)
    ids = client.completions.create(model=system.model, prompt=[7, 8, 9], max_tokens=8)

    assert text.object == "text_completion"
    assert text.usage is not None
    assert ids.usage is not None
    assert (ids.usage.prompt_tokens, ids.usage.completion_tokens <= 8) == (3, True)


def test_a_seed_repeats_an_answer(system: System, client: OpenAI) -> None:
    def ask(seed: int) -> str:
        completion = client.completions.create(
            model=system.model, prompt="Anything", temperature=2, seed=seed, max_tokens=24
        )
        return completion.choices[0].text

    answers = [ask(1), ask(1), ask(2)]

    assert answers[0] == answers[1] != answers[2]


def test_the_diffusion_options_are_used_and_reported(system: System) -> None:
    options = {"steps": 5, "block_length": 8, "policy": "none", "seed": 3}
    answer = system.post(
        "/v1/chat/completions", {"messages": chat(SHEET), "max_tokens": 8, "diffusion": options}
    ).json()

    assert answer["diffusion"]["policy"] == "none"
    assert answer["diffusion"]["steps"] <= 5


def test_the_model_is_listed(system: System, client: OpenAI) -> None:
    assert [model.id for model in client.models.list()] == [system.model]
    assert client.models.retrieve(system.model).id == system.model


def test_errors_are_openai_errors(system: System, client: OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as unknown:
        client.chat.completions.create(model="gpt-none", messages=chat(SHEET))
    with pytest.raises(openai.BadRequestError) as refused:
        client.chat.completions.create(model=system.model, messages=chat(SHEET), n=2)
    with pytest.raises(openai.BadRequestError) as too_long:
        client.chat.completions.create(model=system.model, messages=chat(SHEET), max_tokens=100_000)
    with pytest.raises(openai.BadRequestError) as worker:
        client.chat.completions.create(
            model=system.model, messages=chat(SHEET), extra_body={"diffusion": {"policy": "magic"}}
        )

    assert unknown.value.code == "model_not_found"
    assert refused.value.param == "n"
    assert (too_long.value.code, too_long.value.param) == ("context_length_exceeded", "max_tokens")
    assert "magic" in worker.value.message


def test_a_request_id_comes_back(system: System) -> None:
    response = httpx.get(f"{system.url}/health", headers={"x-request-id": "mine"})

    assert response.headers.get_list("x-request-id") == ["mine"]


def test_the_exposition_holds_ingress_router_and_workers(system: System) -> None:
    system.post("/v1/chat/completions", {"messages": chat(SHEET), "max_tokens": 4})

    text = system.get("/metrics").text

    assert system.metric("palimpsest_requests_total") >= 1
    assert system.metric("palimpsest_router_requests_total") >= 1
    assert system.metric("palimpsest_worker_requests_total") >= 1
    assert text.count("# TYPE palimpsest_worker_forwards_total counter") == 1


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_goes_away_stops_its_work(system: System, stream: bool) -> None:
    aborted = system.metric("palimpsest_worker_aborted_total")
    body = {"messages": chat(SHEET), "stream": stream, **ENDLESS}

    with pytest.raises(httpx.TimeoutException):
        httpx.post(f"{system.url}/v1/chat/completions", json=body, timeout=0.7)

    eventually(lambda: system.metric("palimpsest_worker_aborted_total") == aborted + 1)
    eventually(lambda: system.metric("palimpsest_worker_running") == 0)


def test_clients_that_leave_or_ask_for_the_impossible_leave_no_stack_in_the_log(system: System) -> None:
    body = {"messages": chat(SHEET), "stream": True, "max_tokens": 700, "ignore_eos": True}
    counted = system.metric("palimpsest_requests_total")
    for _ in range(3):
        with httpx.stream("POST", f"{system.url}/v1/chat/completions", json=body, timeout=PATIENCE_S) as response:
            next(response.iter_bytes())
    refused = {"messages": chat(SHEET), "diffusion": {"policy": "magic"}}
    statuses = [system.post("/v1/chat/completions", refused).status_code for _ in range(3)]
    eventually(lambda: system.metric("palimpsest_worker_running") == 0)
    eventually(lambda: system.metric("palimpsest_requests_total") == counted + 6)

    assert statuses == [400] * 3
    assert "Traceback" not in system.logged()
