"""Holes of shared contexts, filled over HTTP and in races, with a real cache service and a real worker."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing

import pytest
from fastapi.testclient import TestClient

from cache_service.client.client import CacheClient
from cache_service.testing.processes import ServiceProcess
from cluster.errors import ReplicaLostError
from cluster.generation.answer import InferenceService
from cluster.generation.contexts.changes import Replacement, TokenRange
from cluster.generation.contexts.denoising import BlockCommitted, ContextDenoiser, DenoiseCall, Denoised, DenoiseEvent
from cluster.generation.contexts.drafting import Hole, TokenContent
from cluster.generation.events import Accepted
from cluster.metrics import IngressMetrics
from tests.unit.cluster.context_calls import COMMITS, HOLE, LIVES_IN, NONE, URL, created, failed
from tests.unit.cluster.local import Connect, Fault, LocalWorkers
from workers.api import DecodingParams, GenerateRequest


@pytest.fixture
def cache_target(cache_process: ServiceProcess) -> str:
    return cache_process.target


@pytest.fixture
def client(connect: Connect) -> Iterator[TestClient]:
    with connect(max_body_bytes=100_000) as client:
        yield client


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


async def test_a_lost_race_continues_with_the_winners_content(
    service: InferenceService, metrics: IngressMetrics, cache: CacheClient, workers: LocalWorkers
) -> None:
    async with cache:
        contexts = service.contexts
        made = await contexts.create(TokenContent((50, Hole(12), 51)), "")
        call = DenoiseCall("d", made.id, "", DecodingParams(policy="none"))
        events: list[DenoiseEvent] = []
        async with aclosing(ContextDenoiser(service, metrics, 4).run(call)) as running:
            assert await anext(running) == Accepted()
            async for event in running:
                events.append(event)
                if len(events) == 1:  # another client fills the next block's holes, and inserts text before them
                    assert isinstance(event, BlockCommitted)
                    theirs = [
                        Replacement(TokenRange(0, 0), TokenContent((60, 61))),
                        Replacement(TokenRange(5, 9), TokenContent((62,) * 4)),
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
        async with aclosing(ContextDenoiser(service, metrics, 4).run(call)) as running:
            accepted, *events = [event async for event in running]
        assert accepted == Accepted()
        assert len(events) == 3
        assert len(workers.requests) == 3


@pytest.mark.parametrize("seed", [-1, 1 << 63])
def test_an_impossible_seed_is_refused(client: TestClient, seed: int) -> None:
    made = created(client, text=[HOLE])
    assert failed(client.post(f"{URL}/{made['id']}/denoise", json={"seed": seed})) == (400, None, "seed")


def test_too_few_steps_are_refused(client: TestClient) -> None:
    made = created(client, text=[HOLE])
    refused = client.post(f"{URL}/{made['id']}/denoise", json={"diffusion": {"steps": 1}})
    assert failed(refused) == (400, None, "diffusion.steps")
