"""Shared contexts over gRPC, with a real cache service and a real worker: the same contexts as over HTTP."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import grpc
import pytest

from cache_service.client.client import CacheClient
from cache_service.core.types import ContextId
from cache_service.testing.processes import ServiceProcess
from cluster.generation.answer import InferenceService
from cluster.generation.contexts.denoising import ContextDenoiser
from cluster.generation.contexts.drafting import Hole, TokenContent
from cluster.ingress.grpc.server import serving
from cluster.metrics import IngressMetrics
from protos import contexts_v1_pb2 as pb
from protos import inference_v1_pb2 as inference
from protos.contexts_v1_pb2_grpc import ContextsStub
from protos.inference_v1_pb2_grpc import InferenceStub
from tests.support.waiting import eventually
from tests.unit.cluster.context_calls import SHEET
from tests.unit.cluster.context_messages import all_of, created, edit, refusal, replaced, sheet, text, tokens
from tests.unit.cluster.local import Fault, LocalWorkers
from workers.errors import OverloadedError

PLAIN = inference.DiffusionOptions(policy="none")
RUNNING = "palimpsest_requests_running"
INVALID, ABSENT = grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.NOT_FOUND


@pytest.fixture
def cache_target(cache_process: ServiceProcess) -> str:
    return cache_process.target


@asynccontextmanager
async def channel_to(
    service: InferenceService, denoiser: ContextDenoiser, cache: CacheClient, *keys: str
) -> AsyncIterator[grpc.aio.Channel]:
    async with (
        cache,
        serving(service, denoiser, "127.0.0.1:0", frozenset(keys), max_message_bytes=1 << 20) as port,
        grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel,
    ):
        yield channel


@pytest.fixture
async def channel(
    service: InferenceService, denoiser: ContextDenoiser, cache: CacheClient
) -> AsyncIterator[grpc.aio.Channel]:
    async with channel_to(service, denoiser, cache) as channel:
        yield channel


@pytest.fixture
def stub(channel: grpc.aio.Channel) -> ContextsStub:
    return ContextsStub(channel)  # type: ignore[no-untyped-call]


async def test_a_context_comes_back_as_it_was_made_and_is_read_by_generations(
    stub: ContextsStub, channel: grpc.aio.Channel, workers: LocalWorkers
) -> None:
    made = await created(stub, sheet("Mira lives in", 8, "."))
    assert (await stub.Get(pb.GetContextRequest(id=made.id))).context == made
    [hole] = made.holes
    assert (made.epoch, hole.end - hole.start, made.text.count("<|mask|>")) == (0, 8, 8)

    choice = inference.ContextChoice(id=made.id)
    asked = inference.GenerateRequest(text="", max_tokens=4, context=choice)
    answer = await InferenceStub(channel).Generate(asked)  # type: ignore[no-untyped-call]
    assert list(answer.context.epochs) == [0]
    [request] = workers.requests
    assert request.token_ids == tuple(made.token_ids)
    assert request.prefixes[0].key == made.versions[0].key


async def test_it_is_the_same_context_as_over_http(stub: ContextsStub, service: InferenceService) -> None:
    made = await created(stub, pb.ContextContent(tokens=tokens([50, 51], 3, [52])))
    known = await service.contexts.read(ContextId(made.id), "")
    ours = await service.contexts.create(TokenContent((50, 51, Hole(3), 52)), "")
    assert (known.token_ids, known.masked, known.key) == (ours.token_ids, ours.masked, ours.key)
    assert [(hole.start, hole.end) for hole in made.holes] == [(2, 5)]


async def test_edits_name_a_text_or_positions_or_replace_everything(stub: ContextsStub) -> None:
    made = await created(stub, sheet(SHEET))
    edited = (await stub.Change(edit(made, replaced("Mira", "Tobin"), replaced("Oslo", "Lima")))).context
    expected = await created(stub, sheet("Tobin is 34, lives in Lima and has a fox."))
    assert edited.token_ids == expected.token_ids

    end = len(edited.token_ids)
    place = pb.TokenRange(start=end, end=end)
    longer = (await stub.Change(edit(edited, pb.ContextEdit(range=place, tokens=tokens([7], 2))))).context
    assert list(longer.token_ids)[:-2] == [*edited.token_ids, 7]
    assert [(hole.start, hole.end) for hole in longer.holes] == [(end + 1, end + 3)]

    content = pb.ContextContent(text=text("All new."))
    rewritten = await stub.Change(pb.ChangeContextRequest(id=made.id, expected_epoch=2, content=content))
    assert (rewritten.context.text, rewritten.context.epoch) == ("All new.", 3)
    assert [version.epoch for version in rewritten.context.versions] == [3, 2, 1, 0]


async def test_a_lost_race_reports_the_newest_epoch(stub: ContextsStub) -> None:
    made = await created(stub, sheet(SHEET))
    await stub.Change(edit(made, replaced("Oslo", "Lima")))
    late = await refusal(stub.Change(edit(made, replaced("Oslo", "Bern"))))
    assert late.code() == grpc.StatusCode.ABORTED
    assert dict(late.trailing_metadata() or ())["current-epoch"] == "1"


async def test_contexts_are_listed_by_pages(stub: ContextsStub) -> None:
    made = [(await created(stub, sheet(SHEET), "grpc pages")).id for _ in range(5)]
    pages, token = [], ""
    while token or not pages:
        page = await stub.List(pb.ListContextsRequest(cache_salt="grpc pages", page_size=2, page_token=token))
        assert all(not context.token_ids and context.versions for context in page.contexts)
        pages.append([context.id for context in page.contexts])
        token = page.next_page_token
    assert [context_id for page in pages for context_id in page] == made
    assert len(pages) == 3


async def test_a_deleted_context_is_gone_and_another_tenants_was_never_there(stub: ContextsStub) -> None:
    mine, deleted = await created(stub, sheet(SHEET), "mine"), await created(stub, sheet(SHEET))
    await stub.Delete(pb.DeleteContextRequest(id=deleted.id))
    for context in (mine, deleted):
        for call in (
            stub.Get(pb.GetContextRequest(id=context.id)),
            stub.Change(edit(context, replaced("Oslo", "Lima"))),
            stub.Delete(pb.DeleteContextRequest(id=context.id)),
            stub.Denoise(pb.DenoiseRequest(id=context.id)),
        ):
            assert (await refusal(call)).code() == ABSENT
    assert (await stub.Get(pb.GetContextRequest(id=mine.id, cache_salt="mine"))).context == mine


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (pb.ContextContent(), "turns"),
        (pb.ContextContent(turns=pb.Turns()), "turns"),
        (pb.ContextContent(text=text(0)), "hole"),
        (pb.ContextContent(text=text(5000)), "hole"),
        (pb.ContextContent(text=text("")), "1 to"),
        (pb.ContextContent(tokens=tokens([1_000_000])), "beyond the vocabulary"),
        (pb.ContextContent(tokens=tokens([5] * 4000)), "no room for an answer"),
        (pb.ContextContent(turns=pb.Turns(turns=[pb.Turn(role="wizard")])), "wizard"),
    ],
)
async def test_impossible_content_is_refused(stub: ContextsStub, content: pb.ContextContent, words: str) -> None:
    refused = await refusal(stub.Create(pb.CreateContextRequest(content=content)))
    assert refused.code() == INVALID
    assert words in (refused.details() or "")


FINE, FOREIGN = replaced("Oslo", "Lima"), pb.ContextEdit(find="Mira", tokens=tokens([1_000_000]))


@pytest.mark.parametrize(
    ("wrong", "param"),
    [
        (pb.ContextContent(tokens=tokens([1_000_000])), "content.tokens"),
        (pb.ContextContent(text=text("a", 0)), "content.text.parts.1.hole"),
        (pb.ContextContent(turns=pb.Turns(turns=[pb.Turn(role="wizard")])), "content.turns.turns.0.role"),
        (pb.ContextEdits(edits=[FINE, replaced("Bergen", "Lima")]), "edits.edits.1.find"),
        (pb.ContextEdits(edits=[FINE, FOREIGN]), "edits.edits.1.tokens"),
        (pb.ContextEdits(edits=[FINE, pb.ContextEdit(find="a")]), "edits.edits.1"),
    ],
)
async def test_a_refusal_names_the_fields_path(
    stub: ContextsStub, wrong: pb.ContextContent | pb.ContextEdits, param: str
) -> None:
    context = await created(stub, sheet(SHEET))
    change = {"content" if isinstance(wrong, pb.ContextContent) else "edits": wrong}
    calls: list[Any] = [stub.Change(pb.ChangeContextRequest(id=context.id, expected_epoch=0, **change))]
    calls += [stub.Create(pb.CreateContextRequest(content=wrong))] if isinstance(wrong, pb.ContextContent) else []
    for call in calls:
        refused = await refusal(call)
        assert dict(refused.trailing_metadata() or ()).get("param") == param


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (pb.ChangeContextRequest(edits=pb.ContextEdits(edits=[replaced("Oslo", "Lima")])), "epoch"),
        (pb.ChangeContextRequest(expected_epoch=0), "edits"),
        (pb.ChangeContextRequest(expected_epoch=0, edits=pb.ContextEdits()), "edits"),
        (pb.ChangeContextRequest(expected_epoch=0, edits=pb.ContextEdits(edits=[pb.ContextEdit(find="a")])), "text"),
        (
            pb.ChangeContextRequest(expected_epoch=0, edits=pb.ContextEdits(edits=[pb.ContextEdit(text=text("a"))])),
            "find",
        ),
        (
            pb.ChangeContextRequest(expected_epoch=0, edits=pb.ContextEdits(edits=[replaced("Bergen", "Lima")])),
            "Bergen",
        ),
    ],
)
async def test_an_impossible_edit_is_refused(stub: ContextsStub, change: pb.ChangeContextRequest, words: str) -> None:
    change.id = (await created(stub, sheet(SHEET))).id
    refused = await refusal(stub.Change(change))
    assert refused.code() == INVALID
    assert words in (refused.details() or "")
    assert (await stub.Get(pb.GetContextRequest(id=change.id))).context.epoch == 0


async def test_a_page_that_does_not_exist_is_refused(stub: ContextsStub) -> None:
    for token in ("nonsense", "9" * 5000):
        assert (await refusal(stub.List(pb.ListContextsRequest(page_token=token)))).code() == INVALID
    assert (await refusal(stub.List(pb.ListContextsRequest(page_size=101)))).code() == INVALID


async def test_what_repeats_a_long_text_is_refused_by_its_own_status(stub: ContextsStub) -> None:
    """gRPC itself would refuse a header of that length with an error of its own."""
    long = "\N{GRINNING FACE}" * 20_000
    assert (await refusal(stub.Get(pb.GetContextRequest(id=long)))).code() == ABSENT
    refused = await refusal(stub.Change(edit(await created(stub, sheet(SHEET)), replaced(long, "Lima"))))
    assert (refused.code(), (refused.details() or "")[:2]) == (INVALID, f"'{long[0]}")


async def test_denoising_streams_each_committed_block_and_then_a_report(
    stub: ContextsStub, workers: LocalWorkers
) -> None:
    made = await created(stub, pb.ContextContent(text=text("Mira lives in", 8, " and", 8)))
    request = pb.DenoiseRequest(id=made.id, seed=1, diffusion=PLAIN)
    *blocks, last = await all_of(stub.Denoise(request))

    assert [message.block.epoch for message in blocks] == [1, 2, 3, 4]
    assert [request.params.seed for request in workers.requests] == [1, 2, 3, 4]
    final = last.denoised.context
    assert (await stub.Get(pb.GetContextRequest(id=made.id))).context == final
    assert (list(final.holes), last.denoised.lost_races, last.denoised.diffusion.steps) == ([], 0, 8)
    holes = [position for message in blocks for position in message.block.positions]
    assert holes == [position for hole in made.holes for position in range(hole.start, hole.end)]
    assert all(a == b for i, (a, b) in enumerate(zip(made.token_ids, final.token_ids, strict=True)) if i not in holes)

    [again] = await all_of(stub.Denoise(pb.DenoiseRequest(id=made.id)))
    assert again.denoised.context == final
    assert not again.denoised.HasField("diffusion")


@pytest.mark.parametrize(
    ("wrong", "code"),
    [
        (pb.DenoiseRequest(model="gpt-none"), ABSENT),
        (pb.DenoiseRequest(temperature=3), INVALID),
        (pb.DenoiseRequest(diffusion=inference.DiffusionOptions(steps=1)), INVALID),
        (pb.DenoiseRequest(diffusion=inference.DiffusionOptions(policy="magic")), INVALID),
    ],
)
async def test_an_impossible_denoising_is_refused(
    stub: ContextsStub, wrong: pb.DenoiseRequest, code: grpc.StatusCode
) -> None:
    wrong.id = (await created(stub, pb.ContextContent(text=text(8)))).id
    assert (await refusal(stub.Denoise(wrong))).code() == code


async def test_what_was_committed_before_an_error_stays(stub: ContextsStub, workers: LocalWorkers) -> None:
    made = await created(stub, pb.ContextContent(text=text(12)))
    workers.faults = [Fault(after=99), Fault(OverloadedError("full", retry_after_s=2.4))]
    refused = await refusal(stub.Denoise(pb.DenoiseRequest(id=made.id, diffusion=PLAIN)))
    assert refused.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
    assert dict(refused.trailing_metadata() or ())["retry-after"] == "3"
    assert (await stub.Get(pb.GetContextRequest(id=made.id))).context.epoch == 1


@pytest.mark.parametrize("ends_by", ["cancellation", "deadline"])
async def test_a_client_that_leaves_stops_the_denoising(
    stub: ContextsStub, workers: LocalWorkers, metrics: IngressMetrics, ends_by: str
) -> None:
    made = await created(stub, pb.ContextContent(text=text(12)))
    workers.faults = [Fault(after=99), Fault()]  # the second block's worker hangs
    timeout_s = 3.0 if ends_by == "deadline" else None
    call = stub.Denoise(pb.DenoiseRequest(id=made.id, diffusion=PLAIN), timeout=timeout_s)
    assert (await call.read()).block.epoch == 1
    assert metrics.registry.get_sample_value(RUNNING) == 1
    if ends_by == "cancellation":
        call.cancel()

    await asyncio.to_thread(eventually, lambda: metrics.registry.get_sample_value(RUNNING) == 0)
    assert await call.code() == (
        grpc.StatusCode.CANCELLED if ends_by == "cancellation" else grpc.StatusCode.DEADLINE_EXCEEDED
    )
    assert (await stub.Get(pb.GetContextRequest(id=made.id))).context.epoch == 1
    assert len(workers.requests) == 2


async def test_api_keys_are_required_where_they_are_configured(
    service: InferenceService, denoiser: ContextDenoiser, cache: CacheClient
) -> None:
    async with channel_to(service, denoiser, cache, "right") as channel:
        stub = ContextsStub(channel)  # type: ignore[no-untyped-call]
        right, wrong = ((("authorization", f"Bearer {key}"),) for key in ("right", "wrong"))
        content = sheet(SHEET)
        made = (await stub.Create(pb.CreateContextRequest(content=content), metadata=right)).context
        for call in (
            stub.Create(pb.CreateContextRequest(content=content)),
            stub.Get(pb.GetContextRequest(id=made.id), metadata=wrong),
            stub.List(pb.ListContextsRequest(), metadata=wrong),
            stub.Change(edit(made, replaced("Oslo", "Lima")), metadata=wrong),
            stub.Delete(pb.DeleteContextRequest(id=made.id), metadata=wrong),
            stub.Denoise(pb.DenoiseRequest(id=made.id), metadata=wrong),
        ):
            assert (await refusal(call)).code() == grpc.StatusCode.UNAUTHENTICATED
        assert (await stub.Get(pb.GetContextRequest(id=made.id), metadata=right)).context == made
