"""Shared contexts of a running system: HTTP, gRPC, two replicas, one cache service."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import grpc
import httpx2 as httpx
import pytest
from openai import OpenAI

from protos import inference_v1_pb2 as pb
from protos.inference_v1_pb2_grpc import InferenceStub
from tests.e2e.prompts import SHEET, sheet
from tests.e2e.system import System
from tests.support.waiting import PATIENCE_S

CHAT, URL = "/v1/chat/completions", "/v1/contexts"
CITIES = ["Oslo", "Lima", "London", "Helsinki"]
NUM_EDITS = 36
SLOW = {"max_tokens": 80, "diffusion": {"steps": 80, "block_length": 8, "min_tokens": 80, "policy": "none"}}
"""Ten blocks of eight passes over everything."""


def create(system: System, text: str, **more: Any) -> dict[str, Any]:
    content: Any = [{"type": "text", "text": text}, *more.pop("holes", [])]
    body = {"messages": [{"role": "system", "content": content}]} | more
    made: dict[str, Any] = system.post(URL, body).json()
    return made


def edit(system: System, context: dict[str, Any], found: str, text: str) -> dict[str, Any]:
    body = {"expected_epoch": context["epoch"], "edits": [{"find": found, "text": text}]}
    response = httpx.patch(f"{system.url}{URL}/{context['id']}", json=body, timeout=PATIENCE_S)
    assert response.status_code == 200, response.text
    edited: dict[str, Any] = response.json()
    return edited


def asking(context: dict[str, Any], question: str, **choice: Any) -> dict[str, Any]:
    return {
        "messages": [{"role": "user", "content": question}],
        "context": {"id": context["id"]} | choice,
        "max_tokens": 32,
    }


def answer(body: dict[str, Any]) -> str:
    text: str = body["choices"][0]["message"]["content"]
    return text


def test_a_question_about_a_context_and_about_what_it_became(knowing_system: System, client: OpenAI) -> None:
    context = create(knowing_system, sheet("Nela"))
    turns: Any = [{"role": "user", "content": "Where does Nela live?"}]

    def ask() -> Any:
        extra = {"context": {"id": context["id"]}}
        return client.chat.completions.create(model=knowing_system.model, messages=turns, extra_body=extra)

    first, second = ask(), ask()
    edit(knowing_system, context, "Nela is 34, lives in Oslo", "Nela is 34, lives in Lima")
    third = ask()

    assert "Oslo" in first.choices[0].message.content
    assert "Lima" in third.choices[0].message.content
    assert [reply.usage.prompt_tokens_details.cached_tokens for reply in (first, second, third)] == [
        0,
        len(context["token_ids"]),
        0,
    ]
    assert first.diffusion["replica"] == second.diffusion["replica"]
    assert [reply.context["epochs"] for reply in (first, second, third)] == [[0], [0], [1]]


@pytest.mark.system
def test_no_answer_after_an_edit_is_of_the_content_before(knowing_system: System) -> None:
    context = create(knowing_system, "Rada is 34, lives in Rome and has a fox. Tobin is 29, lives in Bern.")
    city = "Rome"
    for number in range(NUM_EDITS):
        before, city = city, CITIES[number % len(CITIES)]
        context = edit(knowing_system, context, before, city)
        mode = "follow" if number % 2 else "pin"
        reply = knowing_system.post(CHAT, asking(context, "Where does Rada live?", mode=mode)).json()
        assert city in answer(reply)
        assert reply["context"]["epochs"] == [context["epoch"]]


@pytest.mark.system
def test_a_request_after_an_accepted_edit_reads_it_or_a_newer_one(system: System) -> None:
    """Requests of both modes run on both replicas while a writer never pauses."""
    context = create(system, "Sanna is 34, lives in Rome.")
    accepted, asked = [0], {"max_tokens": 4, "diffusion": {"block_length": 2}}

    def write() -> None:
        current = context
        for number in range(NUM_EDITS):
            current = edit(system, current, "in " + ("Rome" if number % 2 == 0 else "Lima"), f"in {CITIES[0]}")
            current = edit(system, current, f"in {CITIES[0]}", "in " + ("Lima" if number % 2 == 0 else "Rome"))
            accepted.append(current["epoch"])

    def ask(mode: str) -> tuple[int, list[int]]:
        newest = accepted[-1]
        reply = system.post(CHAT, asking(context, "Where does Sanna live?", mode=mode) | asked)
        return newest, reply.json()["context"]["epochs"]

    with ThreadPoolExecutor(3) as pool:
        writing = pool.submit(write)
        reads = list(pool.map(ask, ["pin", "follow"] * (NUM_EDITS // 2)))
        writing.result()

    assert all(epochs[0] >= newest for newest, epochs in reads)
    assert all(epochs == sorted(set(epochs)) for _, epochs in reads)
    assert reads[-1][0] > 0


@contextmanager
def streaming(system: System, body: dict[str, Any]) -> Iterator[Iterator[dict[str, Any]]]:
    with httpx.stream("POST", system.url + CHAT, json=body | {"stream": True}, timeout=PATIENCE_S) as response:
        lines = (line.removeprefix("data: ") for line in response.iter_lines() if line.startswith("data: "))
        yield (json.loads(line) for line in lines if line != "[DONE]")


@pytest.mark.parametrize(("mode", "epochs"), [("pin", [0]), ("follow", [0, 1])])
def test_an_edit_reaches_requests_that_follow_and_no_others(system: System, mode: str, epochs: list[int]) -> None:
    context = create(system, sheet(f"Odo {mode}"))
    with streaming(system, asking(context, "Where does Ada live?", mode=mode) | SLOW) as chunks:
        opening, first = next(chunks), next(chunks)
        edit(system, context, "Ada is 41", "Ada is 42, tall")
        *pieces, last = chunks

    assert opening["choices"][0]["delta"]["role"] == "assistant"
    assert first["choices"][0]["delta"]["content"]
    assert len(pieces) > 1
    assert last["context"] == {"id": context["id"], "mode": mode, "epochs": epochs}


@pytest.mark.system
def test_a_followed_context_that_grows_too_long_ends_the_request(system: System) -> None:
    context = create(system, sheet("Pavo"))
    with streaming(system, asking(context, "Where does Ada live?", mode="follow") | SLOW) as chunks:
        next(chunks), next(chunks)
        room = system.get("/v1/models").json()["data"][0]["context_length"]
        edit(system, context, "Ada is 41", "Ada is 41" + " and" * (room - 80 - len(context["token_ids"])))
        *_, last = chunks

    assert last["error"]["code"] == "context_length_exceeded"
    assert last["error"]["param"] == "context"


def test_a_deleted_context_is_read_to_the_end(system: System) -> None:
    context = create(system, sheet("Quirin"))
    with streaming(system, asking(context, "Where does Ada live?", mode="follow") | SLOW) as chunks:
        next(chunks), next(chunks)
        assert httpx.delete(f"{system.url}{URL}/{context['id']}", timeout=PATIENCE_S).status_code == 200
        *_, last = chunks

    assert last["choices"][0]["finish_reason"] == "length"
    assert last["context"]["epochs"] == [0]
    assert system.post(CHAT, asking(context, "Who?")).status_code == 404


@pytest.mark.system
def test_two_denoisers_of_one_context_lose_no_edit(system: System) -> None:
    holes = [{"type": "mask", "length": 24}, {"type": "text", "text": " Tobin is 29."}]
    context = create(system, "Mira is 34. Anna", holes=holes)
    [hole] = context["holes"]
    body = {"diffusion": {"block_length": 4, "policy": "none"}, "temperature": 1}
    with ThreadPoolExecutor(2) as pool:
        url = f"{URL}/{context['id']}/denoise"
        both = list(pool.map(lambda seed: system.post(url, body | {"seed": seed}).json(), (1, 2)))

    blocks = sorted((block for reply in both for block in reply["blocks"]), key=lambda block: block["epoch"])
    final = system.get(f"{URL}/{context['id']}").json()
    assert [block["epoch"] for block in blocks] == [1, 2, 3, 4, 5, 6]
    filled = sorted(position for block in blocks for position in block["positions"])
    assert filled == list(range(hole["start"], hole["end"]))
    assert (final["holes"], final["epoch"]) == ([], 6)
    assert final["token_ids"][: hole["start"]] == context["token_ids"][: hole["start"]]
    assert final["token_ids"][hole["end"] :] == context["token_ids"][hole["end"] :]


def test_a_lost_race_over_http(system: System) -> None:
    context = create(system, SHEET)
    edit(system, context, "Oslo", "Rome")
    body = {"expected_epoch": 0, "edits": [{"find": "Lima", "text": "Bern"}]}
    late = httpx.patch(f"{system.url}{URL}/{context['id']}", json=body, timeout=PATIENCE_S)
    assert late.status_code == 409
    assert late.json()["error"]["current_epoch"] == 1


def test_contexts_are_listed_by_pages(system: System) -> None:
    made = [create(system, f"Sheet {number}.", cache_salt="listed")["id"] for number in range(3)]
    first = system.get(f"{URL}?cache_salt=listed&limit=2").json()
    second = system.get(f"{URL}?cache_salt=listed&limit=2&after={first['next']}").json()
    assert [context["id"] for page in (first, second) for context in page["data"]] == made
    assert second["next"] is None


def test_a_grpc_client_names_a_context(knowing_system: System, stub: InferenceStub) -> None:
    context = create(knowing_system, sheet("Runa"))
    choice = pb.ContextChoice(id=context["id"], mode=pb.CONTEXT_MODE_FOLLOW)
    turns = pb.Conversation(messages=[pb.Message(role="user", content="Where does Runa live?")])
    request = pb.GenerateRequest(conversation=turns, context=choice, max_tokens=32)

    whole = stub.Generate(request, timeout=PATIENCE_S)
    *pieces, last = stub.GenerateStream(request, timeout=PATIENCE_S)

    assert "Oslo" in whole.text
    assert "".join(piece.text for piece in pieces) == whole.text
    for report in (whole.context, last.context):
        assert (report.id, report.mode, list(report.epochs)) == (context["id"], pb.CONTEXT_MODE_FOLLOW, [0])
    assert last.usage.cached_tokens == len(context["token_ids"])

    with pytest.raises(grpc.RpcError) as unknown:
        stub.Generate(pb.GenerateRequest(text="", context=pb.ContextChoice(id="ctx-0")), timeout=PATIENCE_S)
    with pytest.raises(grpc.RpcError) as refused:
        stub.Generate(pb.GenerateRequest(text="", context=pb.ContextChoice(id="x", max_staleness=9)))
    assert unknown.value.code() is grpc.StatusCode.NOT_FOUND
    assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
