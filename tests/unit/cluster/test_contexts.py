"""Shared contexts over HTTP, with a real cache service and a real worker."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import permutations
from typing import Any

import pytest
from fastapi.testclient import TestClient

from cache_service.testing.processes import ServiceProcess
from tests.unit.cluster.context_calls import (
    ASK,
    CHAT,
    HOLE,
    LIVES_IN,
    QUESTION,
    SHEET,
    URL,
    change,
    created,
    failed,
    of_turns,
)
from tests.unit.cluster.local import Connect, LocalWorkers
from workers.api import ContextMode


@pytest.fixture
def cache_target(cache_process: ServiceProcess) -> str:
    return cache_process.target


@pytest.fixture
def client(connect: Connect) -> Iterator[TestClient]:
    with connect(max_body_bytes=100_000) as client:
        yield client


def test_a_context_comes_back_as_it_was_made(client: TestClient) -> None:
    made = of_turns(client, [LIVES_IN, HOLE, {"type": "text", "text": "."}])

    assert client.get(f"{URL}/{made['id']}").json() == made
    assert (made["object"], made["epoch"]) == ("context", 0)
    [hole] = made["holes"]
    assert hole["end"] - hole["start"] == 8
    assert made["text"].count("<|mask|>") == 8
    assert made["text"].startswith("<|startoftext|>")
    assert [version["epoch"] for version in made["versions"]] == [0]


def test_a_question_behind_a_context_is_the_whole_conversation(client: TestClient, workers: LocalWorkers) -> None:
    context = of_turns(client)
    asked = client.post(CHAT, json=ASK | {"context": {"id": context["id"]}}).json()
    client.post(CHAT, json=ASK | {"messages": [{"role": "system", "content": SHEET}, QUESTION]})

    behind, whole = workers.requests
    assert behind.token_ids == whole.token_ids
    assert behind.prefixes[0].key == whole.prefixes[0].key
    assert behind.prefixes[0].key.hex() == context["versions"][0]["key"]
    assert asked["context"] == {"id": context["id"], "mode": "pin", "epochs": [0]}
    assert asked["usage"]["prompt_tokens"] == len(whole.token_ids)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("mode", ["pin", "follow"])
def test_an_answer_says_which_epochs_it_read(client: TestClient, mode: str, stream: bool) -> None:
    context = change(client, of_turns(client), edits=[{"find": "Oslo", "text": "Lima"}]).json()
    choice = {"id": context["id"], "mode": mode, "max_staleness": 1}
    answer = client.post("/v1/completions", json={"prompt": "", "context": choice, "max_tokens": 4, "stream": stream})

    last = answer.json() if not stream else json.loads(answer.text.split("data: ")[-2])
    assert last["context"] == {"id": context["id"], "mode": mode, "epochs": [1]}


def test_the_modes_reach_the_worker(client: TestClient, workers: LocalWorkers) -> None:
    context = of_turns(client)
    client.post(CHAT, json=ASK | {"context": {"id": context["id"], "mode": "follow", "max_staleness": 3}})
    [request] = workers.requests
    assert request.context is not None
    assert (request.context.mode, request.context.max_staleness) == (ContextMode.FOLLOW, 3)
    assert request.context.num_tokens == len(context["token_ids"])


def test_an_edit_is_a_new_epoch_that_the_next_question_reads(client: TestClient, workers: LocalWorkers) -> None:
    context = of_turns(client)
    for number in range(40):
        found = "Oslo" if number == 0 else f"town {number - 1}"
        context = change(client, context, edits=[{"find": found, "text": f"town {number}"}]).json()
        client.post(CHAT, json=ASK | {"max_tokens": 1, "context": {"id": context["id"]}})
        request = workers.requests[-1]
        assert request.token_ids[: len(context["token_ids"])] == tuple(context["token_ids"])
        assert context["epoch"] == number + 1 == request.context.at.epoch  # type: ignore[union-attr]
    assert len(context["versions"]) == 5


def test_edits_name_a_text_or_positions(client: TestClient) -> None:
    context = of_turns(client)
    edited = change(client, context, edits=[{"find": "Mira", "text": "Tobin"}, {"find": "Oslo", "text": "Lima"}]).json()
    assert edited["token_ids"] == of_turns(client, "Tobin is 34, lives in Lima and has a fox.")["token_ids"]

    end = len(edited["token_ids"])
    longer = change(client, edited, edits=[{"start": end, "end": end, "token_ids": [7, {"type": "mask", "length": 2}]}])
    assert longer.json()["token_ids"][:-2] == [*edited["token_ids"], 7]
    assert longer.json()["holes"] == [{"start": end + 1, "end": end + 3}]

    rewritten = change(client, longer.json(), text="All new.").json()
    assert rewritten["text"] == "All new."
    assert rewritten["epoch"] == 3


@pytest.mark.parametrize(
    ("wrong", "param"),
    [
        ({"find": "Bergen", "text": "Lima"}, "edits.1.find"),
        ({"find": "Mira", "token_ids": [1_000_000]}, "edits.1.token_ids"),
        ({"start": 0, "end": 1, "text": [{"type": "mask", "length": 0}]}, "edits.1.text.0.length"),
        ({"start": 0, "text": "Lima"}, "edits.1"),
    ],
)
def test_a_refused_edit_is_named_by_its_path(client: TestClient, wrong: dict[str, Any], param: str) -> None:
    refused = change(client, of_turns(client), edits=[{"find": "Oslo", "text": "Lima"}, wrong])

    assert (refused.status_code, refused.json()["error"]["param"]) == (400, param)


def test_a_replayed_answer_can_be_a_turn_of_a_context(client: TestClient) -> None:
    answer = {"role": "assistant", "content": "Mira is 34."}
    replayed = answer | {"refusal": None, "annotations": [], "tool_calls": None, "reasoning_content": "She is."}
    made = [client.post(URL, json={"messages": [turn]}).json() for turn in (answer, replayed)]
    refused = client.post(URL, json={"messages": [answer | {"tool_calls": [{"id": "a"}]}]})

    assert made[0]["token_ids"] == made[1]["token_ids"]
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "messages.0.tool_calls")


def test_text_that_names_a_special_token_is_found_and_edited_exactly(client: TestClient) -> None:
    made = of_turns(client, "It says a<|eot_id|>b\n and c.")
    edited = change(client, made, edits=[{"find": "a<|eot_id|>", "text": "<|mask|>"}, {"find": "\n", "text": "0"}])

    start, end = "<|startoftext|><|start_header_id|>system<|end_header_id|>\n\n", "<|eot_id|>"
    assert made["text"] == f"{start}It says a<|eot_id|>b\n and c.{end}"
    assert edited.status_code == 400  # the line break stands twice more, in the template
    again = change(client, made, edits=[{"find": "a<|eot_id|>", "text": "<|mask|>"}, {"find": "b\n", "text": "0"}])
    assert again.json()["text"] == f"{start}It says <|mask|>0 and c.{end}"
    assert again.json()["holes"] == []


def test_a_long_text_is_found(client: TestClient) -> None:
    long = " ".join(["Tobin is 29 and lives in Lima."] * 9)
    edited = change(client, of_turns(client, f"{SHEET} {long}"), edits=[{"find": long, "text": "Who else?"}]).json()
    assert edited["token_ids"] == of_turns(client, f"{SHEET} Who else?")["token_ids"]


def test_the_order_of_edits_does_not_matter(client: TestClient) -> None:
    """Two neighbours are replaced, one by text with a hole, and text is inserted between them."""
    token_ids = list(range(50, 60))
    edits = [
        {"start": 0, "end": 3, "token_ids": [20, {"type": "mask", "length": 2}, 21]},
        {"start": 3, "end": 3, "token_ids": [22]},
        {"start": 3, "end": 5, "token_ids": [23]},
    ]
    for order in permutations(edits):
        edited = change(client, created(client, token_ids=token_ids), edits=list(order)).json()
        assert edited["token_ids"][:1] + edited["token_ids"][3:] == [20, 21, 22, 23, *token_ids[5:]]
        assert edited["holes"] == [{"start": 1, "end": 3}]


def test_a_lost_race_reports_the_newest_epoch(client: TestClient) -> None:
    context = of_turns(client)
    assert change(client, context, edits=[{"find": "Oslo", "text": "Lima"}]).status_code == 200
    late = change(client, context, edits=[{"find": "Oslo", "text": "Bern"}])
    assert failed(late) == (409, "epoch_conflict", "expected_epoch")
    assert late.json()["error"]["current_epoch"] == 1


def test_a_change_of_too_many_edits_is_refused_unread(client: TestClient) -> None:
    refused = change(client, of_turns(client), edits=[{"find": "Oslo", "text": "Lima"}] * 65)
    assert refused.status_code == 400
    assert (refused.json()["error"]["param"], "64" in refused.json()["error"]["message"]) == ("edits", True)


def test_concurrent_edits_to_one_epoch_are_accepted_once(client: TestClient) -> None:
    context = of_turns(client)
    with ThreadPoolExecutor(4) as pool:
        edits = [[{"find": "Oslo", "text": town}] for town in ("Lima", "Bern", "Rome", "Cairo")]
        codes = list(pool.map(lambda edit: change(client, context, edits=edit).status_code, edits))
    assert sorted(codes) == [200, 409, 409, 409]


def test_an_absent_salt_may_be_null_everywhere(client: TestClient) -> None:
    context = of_turns(client, cache_salt=None)
    assert change(client, context, text="Mira lives in Rome.", cache_salt=None).status_code == 200
    answer = client.post(CHAT, json=ASK | {"context": {"id": context["id"]}, "cache_salt": None})
    assert answer.status_code == 200


@pytest.mark.parametrize("number", [5, 6])
def test_contexts_are_listed_by_pages(client: TestClient, number: int) -> None:
    salt = f"pages of {number}"
    made = [of_turns(client, cache_salt=salt)["id"] for _ in range(number)]
    seen, after, pages = [], None, 0
    while after is not None or not pages:
        query = {"limit": 2, "cache_salt": salt} | ({} if after is None else {"after": after})
        page = client.get(URL, params=query).json()
        seen += [context["id"] for context in page["data"]]
        after, pages = page["next"], pages + 1
    assert seen == made
    assert pages == 3
    assert failed(client.get(URL, params={"limit": 0}))[0] == 400
    for token in ("nonsense", "9" * 5000):
        assert client.get(URL, params={"after": token}).status_code == 400


def test_a_deleted_context_is_gone(client: TestClient) -> None:
    context = of_turns(client)
    assert client.delete(f"{URL}/{context['id']}").json()["deleted"] is True
    gone = (404, "context_not_found", "context")
    assert failed(client.get(f"{URL}/{context['id']}")) == gone
    assert failed(client.delete(f"{URL}/{context['id']}")) == gone
    assert failed(client.post(CHAT, json=ASK | {"context": {"id": context["id"]}})) == gone
    assert failed(change(client, context, text="x")) == gone
    assert failed(client.post(f"{URL}/{context['id']}/denoise", json={})) == gone


def test_an_unknown_id_of_any_length_is_not_found(client: TestClient) -> None:
    assert failed(client.get(f"{URL}/{'x' * 20_000}")) == (404, "context_not_found", "context")


def test_another_tenants_context_is_as_if_it_were_not_there(client: TestClient) -> None:
    context = of_turns(client, cache_salt="mine")
    assert failed(client.get(f"{URL}/{context['id']}"))[0] == 404
    assert failed(change(client, context, text="x"))[0] == 404
    assert failed(client.post(CHAT, json=ASK | {"context": {"id": context["id"]}}))[0] == 404
    assert client.get(f"{URL}/{context['id']}", params={"cache_salt": "mine"}).json() == context
    mine = client.post(CHAT, json=ASK | {"context": {"id": context["id"]}, "cache_salt": "mine"})
    assert mine.status_code == 200


@pytest.mark.parametrize(
    ("body", "problem"),
    [
        ({}, "give one of text, token_ids, messages; got none"),
        ({"text": "a", "token_ids": [1]}, "got text and token_ids"),
        ({"text": [{"type": "mask", "length": 0}]}, "greater than or equal to 1"),
        ({"text": ""}, "1 to"),
        ({"token_ids": [1_000_000]}, "beyond the vocabulary"),
        ({"token_ids": [5] * 4000}, "no room for an answer"),
        ({"token_ids": [{"type": "mask", "length": 4096}] * 2000}, "8192000 tokens leaves no room"),
        ({"text": [{"type": "mask", "length": 4096}] * 2000}, "8192000 tokens leaves no room"),
        ({"text": "a", "colour": "red"}, "colour"),
    ],
)
def test_impossible_content_is_refused(client: TestClient, body: dict[str, Any], problem: str) -> None:
    response = client.post(URL, json=body)
    assert response.status_code == 400
    assert problem in response.json()["error"]["message"]


@pytest.mark.parametrize(
    ("edit", "problem"),
    [
        ({"find": "Oslo"}, "give one of text, token_ids"),
        ({"text": "x"}, "either find, or start and end"),
        ({"start": 3, "text": "x"}, "either find, or start and end"),
        ({"start": 3, "end": 999, "text": "x"}, "must come after"),
        ({"find": "Cairo", "text": "x"}, "0 times"),
        ({"find": "Osl", "token_ids": [7]}, "a part of a token"),
    ],
)
def test_an_impossible_edit_is_refused(client: TestClient, edit: dict[str, Any], problem: str) -> None:
    context = of_turns(client)
    response = change(client, context, edits=[edit])
    assert response.status_code == 400
    assert problem in response.json()["error"]["message"]
    assert client.get(f"{URL}/{context['id']}").json()["epoch"] == 0
