"""Shared contexts over HTTP, with a real cache service and a real worker."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing
from typing import Any

import pytest
from fastapi.testclient import TestClient

from cache_service.client import CacheClient
from cache_service.testing.processes import ServiceProcess
from cluster.drafting import Hole, TokenContent
from cluster.errors import ReplicaLostError
from cluster.ingress.contexts import Change, TokenRange
from cluster.ingress.denoising import BlockCommitted, DenoiseCall, Denoised, Denoising
from cluster.ingress.service import InferenceService
from cluster.metrics import IngressMetrics
from tests.unit.cluster.local import Connect, Fault, LocalWorkers
from workers.api import ContextMode, DecodingParams, GenerateRequest

URL, CHAT = "/v1/contexts", "/v1/chat/completions"
SHEET = "Mira is 34, lives in Oslo and has a fox."
QUESTION = {"role": "user", "content": "Where does Mira live?"}
ASK: dict[str, Any] = {"messages": [QUESTION], "max_tokens": 8}
LIVES_IN = {"type": "text", "text": "Mira lives in"}
HOLE = {"type": "mask", "length": 8}
COMMITS = "palimpsest_context_commits_total"
NONE = {"diffusion": {"policy": "none"}}


@pytest.fixture(scope="module")
def cache_process(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServiceProcess]:
    with ServiceProcess(tmp_path_factory.mktemp("cache-service")) as process:
        yield process


@pytest.fixture
def cache_target(cache_process: ServiceProcess) -> str:
    return cache_process.target


@pytest.fixture
def client(connect: Connect) -> Iterator[TestClient]:
    with connect(max_body_bytes=100_000) as client:
        yield client


def created(client: TestClient, **body: Any) -> dict[str, Any]:
    response = client.post(URL, json=body)
    assert response.status_code == 201, response.text
    content: dict[str, Any] = response.json()
    return content


def of_turns(client: TestClient, content: Any = SHEET, **more: Any) -> dict[str, Any]:
    return created(client, messages=[{"role": "system", "content": content}], **more)


def change(client: TestClient, context: dict[str, Any], **body: Any) -> Any:
    return client.patch(f"{URL}/{context['id']}", json={"expected_epoch": context["epoch"]} | body)


def failed(response: Any) -> tuple[int, str, str]:
    error = response.json()["error"]
    return response.status_code, error["code"], error["param"]


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


def test_edits_by_text_and_by_position(client: TestClient) -> None:
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


def test_a_lost_race_says_where_the_context_is_now(client: TestClient) -> None:
    context = of_turns(client)
    assert change(client, context, edits=[{"find": "Oslo", "text": "Lima"}]).status_code == 200
    late = change(client, context, edits=[{"find": "Oslo", "text": "Bern"}])
    assert failed(late) == (409, "epoch_conflict", "expected_epoch")
    assert late.json()["error"]["current_epoch"] == 1


def test_concurrent_edits_to_one_epoch_are_accepted_once(client: TestClient) -> None:
    context = of_turns(client)
    with ThreadPoolExecutor(4) as pool:
        edits = [[{"find": "Oslo", "text": town}] for town in ("Lima", "Bern", "Rome", "Cairo")]
        codes = list(pool.map(lambda edit: change(client, context, edits=edit).status_code, edits))
    assert sorted(codes) == [200, 409, 409, 409]


def test_contexts_are_listed_by_pages(client: TestClient) -> None:
    made = [of_turns(client, cache_salt="pages")["id"] for _ in range(5)]
    seen, after, pages = [], None, 0
    while after is not None or not pages:
        query = {"limit": 2, "cache_salt": "pages"} | ({} if after is None else {"after": after})
        page = client.get(URL, params=query).json()
        seen += [context["id"] for context in page["data"]]
        after, pages = page["next"], pages + 1
    assert seen == made
    assert pages == 3
    assert failed(client.get(URL, params={"limit": 0}))[0] == 400
    assert client.get(URL, params={"after": "nonsense"}).status_code == 400


def test_a_deleted_context_is_gone(client: TestClient) -> None:
    context = of_turns(client)
    assert client.delete(f"{URL}/{context['id']}").json()["deleted"] is True
    gone = (404, "context_not_found", "context")
    assert failed(client.get(f"{URL}/{context['id']}")) == gone
    assert failed(client.delete(f"{URL}/{context['id']}")) == gone
    assert failed(client.post(CHAT, json=ASK | {"context": {"id": context["id"]}})) == gone
    assert failed(change(client, context, text="x")) == gone
    assert failed(client.post(f"{URL}/{context['id']}/denoise", json={})) == gone


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
        ({"token_ids": [1_000_000]}, "outside the vocabulary"),
        ({"token_ids": [5] * 4000}, "no room for an answer"),
        ({"text": "a", "colour": "red"}, "colour"),
    ],
)
def test_a_context_that_cannot_be_is_refused(client: TestClient, body: dict[str, Any], problem: str) -> None:
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
def test_an_edit_that_cannot_be_is_refused(client: TestClient, edit: dict[str, Any], problem: str) -> None:
    context = of_turns(client)
    response = change(client, context, edits=[edit])
    assert response.status_code == 400
    assert problem in response.json()["error"]["message"]
    assert client.get(f"{URL}/{context['id']}").json()["epoch"] == 0


def test_denoising_fills_every_hole_block_by_block(client: TestClient, workers: LocalWorkers) -> None:
    made = created(client, text=[LIVES_IN, HOLE, {"type": "text", "text": " and"}, HOLE])
    filled = client.post(f"{URL}/{made['id']}/denoise", json=NONE | {"seed": 1}).json()

    assert filled["context"]["holes"] == []
    assert filled["context"]["epoch"] == 4 == len(filled["blocks"])
    assert [block["epoch"] for block in filled["blocks"]] == [1, 2, 3, 4]
    assert filled["lost_races"] == 0
    assert client.get(f"{URL}/{made['id']}").json() == filled["context"]
    holes = {position for block in filled["blocks"] for position in block["positions"]}
    kept = [
        (a, b)
        for i, (a, b) in enumerate(zip(made["token_ids"], filled["context"]["token_ids"], strict=True))
        if i not in holes
    ]
    assert all(a == b for a, b in kept)
    assert [request.params.seed for request in workers.requests] == [1, 2, 3, 4]
    assert filled["diffusion"]["steps"] == 8

    again = client.post(f"{URL}/{made['id']}/denoise", json={}).json()
    assert (again["context"]["epoch"], again["blocks"], again["diffusion"]) == (4, [], None)


async def test_denoising_block_by_block_is_denoising_at_once(client: TestClient, workers: LocalWorkers) -> None:
    made = created(client, text=[LIVES_IN, HOLE, {"type": "text", "text": " and"}])
    filled = client.post(f"{URL}/{made['id']}/denoise", json={"diffusion": {"policy": "none", "steps": 4}}).json()

    [hole] = made["holes"]
    holes = tuple(range(hole["start"], hole["end"]))
    params = DecodingParams(num_steps=4, block_length=4, policy="none")
    whole = GenerateRequest("whole", tuple(made["token_ids"]), 0, params=params, holes=holes)
    token_ids = [token async for chunk in workers.worker.generate(whole) for token in chunk.token_ids]
    assert filled["context"]["token_ids"][hole["start"] : hole["end"]] == token_ids


def test_denoising_streams_its_blocks(client: TestClient) -> None:
    made = created(client, text=[LIVES_IN, HOLE])
    response = client.post(f"{URL}/{made['id']}/denoise", json=NONE | {"stream": True})
    *events, done = [line.removeprefix("data: ") for line in response.text.splitlines() if line.startswith("data: ")]
    assert done == "[DONE]"
    assert [json.loads(event)["object"] for event in events] == ["context.block", "context.block", "context.denoised"]
    assert json.loads(events[-1])["context"]["epoch"] == 2


def test_two_denoisers_of_one_context_lose_no_edit(client: TestClient) -> None:
    made = created(client, text=[LIVES_IN, {"type": "mask", "length": 32}])
    url = f"{URL}/{made['id']}/denoise"
    with ThreadPoolExecutor(3) as pool:
        both = list(
            pool.map(lambda seed: client.post(url, json=NONE | {"seed": seed, "temperature": 1}).json(), (1, 2))
        )

    blocks = sorted((block for answer in both for block in answer["blocks"]), key=lambda block: block["epoch"])
    final = client.get(f"{URL}/{made['id']}").json()
    assert final["holes"] == []
    assert [block["epoch"] for block in blocks] == list(range(1, 9))
    assert sorted(position for block in blocks for position in block["positions"]) == list(
        range(made["holes"][0]["start"], made["holes"][0]["end"])
    )


async def test_a_lost_race_goes_on_with_what_the_winner_wrote(
    service: InferenceService, metrics: IngressMetrics, cache: CacheClient, workers: LocalWorkers
) -> None:
    async with cache:
        contexts = service.contexts
        made = await contexts.create(TokenContent((50, Hole(12), 51)), "")
        call = DenoiseCall("d", made.id, "", DecodingParams(policy="none"))
        events: list[BlockCommitted | Denoised] = []
        async with aclosing(Denoising(service, metrics, 4).run(call)) as running:
            async for event in running:
                events.append(event)
                if len(events) == 1:  # someone fills the next block's holes, and writes before them
                    theirs = [
                        Change(TokenRange(0, 0), TokenContent((60, 61))),
                        Change(TokenRange(5, 9), TokenContent((62,) * 4)),
                    ]
                    await contexts.change(made.id, "", event.context.epoch, theirs)

        *blocks, last = events
        assert isinstance(last, Denoised)
        assert last.lost_races == 1
        counted = [metrics.registry.get_sample_value(COMMITS, {"outcome": name}) for name in ("accepted", "lost")]
        assert counted == [3, 1]
        assert [block.positions for block in blocks if isinstance(block, BlockCommitted)] == [
            (1, 2, 3, 4),
            (11, 12, 13, 14),
        ]
        tokens = last.context.token_ids
        assert tokens[:3] == (60, 61, 50)
        assert tokens[7:11] == (62,) * 4
        assert tokens[-1] == 51
        assert last.context == await contexts.read(made.id, "")
        assert [request.holes[0] for request in workers.requests] == [1, 5, 11]


async def test_a_lost_replica_costs_a_block_not_the_denoising(
    service: InferenceService, metrics: IngressMetrics, cache: CacheClient, workers: LocalWorkers
) -> None:
    async with cache:
        made = await service.contexts.create(TokenContent((50, Hole(8), 51)), "")
        workers.faults.append(Fault(ReplicaLostError("gone")))
        call = DenoiseCall("d", made.id, "", DecodingParams(policy="none"))
        async with aclosing(Denoising(service, metrics, 4).run(call)) as running:
            events = [event async for event in running]
        assert len(events) == 3
        assert len(workers.requests) == 3


def test_too_few_steps_are_refused(client: TestClient) -> None:
    made = created(client, text=[HOLE])
    refused = client.post(f"{URL}/{made['id']}/denoise", json={"diffusion": {"steps": 1}})
    assert failed(refused) == (400, None, "diffusion.steps")
