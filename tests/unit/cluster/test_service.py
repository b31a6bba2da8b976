from __future__ import annotations

from collections.abc import AsyncGenerator, Iterable
from contextlib import aclosing

import pytest

from cluster.errors import (
    ModelNotFoundError,
    NotReadyError,
    ReplicaLostError,
    RequestError,
    RequestTimeoutError,
)
from cluster.generation.answer import InferenceService
from cluster.generation.events import Accepted, Event, Finished, Text
from cluster.generation.prompts import GenerationCall
from cluster.generation.tokenization import Conversation, Message, TokenPrompt
from cluster.metrics import IngressMetrics
from tests.support.waiting import until
from tests.unit.cluster.local import Fault, LocalWorkers
from workers.api import DecodingParams, FinishReason, WorkerStats
from workers.errors import InvalidRequestError, OverloadedError

TALK = Conversation((Message("system", "Mira is 34."), Message("user", "How old is Mira?")))
BLOCKS = DecodingParams(block_length=4, num_steps=16, temperature=1.0, seed=1)
"""Sixteen tokens in four blocks: text comes in several pieces."""
SLOW = DecodingParams(block_length=4, num_steps=900, policy="none")


def call(**fields: object) -> GenerationCall:
    return GenerationCall(**({"request_id": "r", "prompt": TALK, "params": BLOCKS} | fields))  # type: ignore[arg-type]


async def collect(service: InferenceService, asked: GenerationCall) -> list[Event]:
    async with aclosing(service.generate(asked)) as events:
        return [event async for event in events]


async def first_text(events: AsyncGenerator[Event, None]) -> Event:
    assert await anext(events) == Accepted()
    return await anext(events)


def joined(events: Iterable[Event]) -> str:
    return "".join(event.text for event in events if isinstance(event, Text))


def outcome(metrics: IngressMetrics, name: str) -> float | None:
    return metrics.registry.get_sample_value("palimpsest_requests_total", {"outcome": name})


async def test_a_stream_and_a_whole_answer_are_the_same(service: InferenceService) -> None:
    events = await collect(service, call())
    answer = await service.answer(call())

    accepted, *texts, last = events
    assert accepted == Accepted()
    assert len(texts) > 1
    assert all(isinstance(text, Text) and text.text for text in texts)
    assert joined(events) == answer.text
    assert isinstance(last, Finished)
    assert last.reason is answer.finished.reason
    assert last.usage.completion_tokens == answer.finished.usage.completion_tokens


async def test_a_stop_string_ends_the_text(service: InferenceService) -> None:
    whole = (await service.answer(call())).text
    stop = whole[len(whole) // 2 :][:3]

    stopped = await service.answer(call(stop=(stop,)))

    assert stopped.text == whole[: whole.index(stop)]
    assert stopped.finished.reason is FinishReason.STOP


async def test_a_stop_string_stops_the_work(service: InferenceService, workers: LocalWorkers) -> None:
    async with aclosing(service.generate(call(params=SLOW, max_tokens=900))) as events:
        first = await first_text(events)
    assert isinstance(first, Text)
    before = (await idle_stats(workers)).num_aborted

    stopped = await service.answer(call(params=SLOW, max_tokens=900, stop=(first.text[:3],)))

    assert stopped.text == ""
    assert stopped.finished.usage.completion_tokens < 900
    assert (await idle_stats(workers)).num_aborted == before + 1


async def test_requests_carry_their_candidate_prefixes(service: InferenceService, workers: LocalWorkers) -> None:
    for salt in ("", "", "tenant"):
        await service.answer(call(cache_salt=salt))

    one, two, salted = (request.prefixes for request in workers.requests)
    assert one == two
    assert one[0].num_tokens == salted[0].num_tokens
    assert one[0].key != salted[0].key


@pytest.mark.parametrize("model", [None, "", "random"])
async def test_the_model_may_be_left_out(service: InferenceService, model: str | None) -> None:
    assert isinstance((await collect(service, call(model=model)))[-1], Finished)


async def test_another_model_is_not_found(service: InferenceService) -> None:
    with pytest.raises(ModelNotFoundError, match="random"):
        await service.answer(call(model="gpt"))


async def test_the_canvas_is_the_default_as_far_as_the_context_has_room(
    service: InferenceService, workers: LocalWorkers
) -> None:
    await service.answer(call(params=DecodingParams()))
    await service.answer(call(prompt=TokenPrompt((7,) * 1020), params=DecodingParams()))

    assert [request.max_tokens for request in workers.requests] == [16, 4]


@pytest.mark.parametrize(
    ("prompt_tokens", "max_tokens", "param"),
    [(1000, 25, "max_tokens"), (1024, None, "prompt"), (2000, 1, "max_tokens")],
)
async def test_what_exceeds_the_context_length_is_refused(
    service: InferenceService, prompt_tokens: int, max_tokens: int | None, param: str
) -> None:
    with pytest.raises(RequestError, match="1024") as refused:
        await service.answer(call(prompt=TokenPrompt((7,) * prompt_tokens), max_tokens=max_tokens))

    assert (refused.value.param, refused.value.code) == (param, "context_length_exceeded")


@pytest.mark.parametrize("after", [0, 1])
async def test_a_worker_lost_before_any_text_is_replaced(
    service: InferenceService, workers: LocalWorkers, metrics: IngressMetrics, after: int
) -> None:
    """A client learns once that its request is accepted, and not that the first replica that accepted it is lost."""
    workers.faults = [Fault(ReplicaLostError("gone"), after), Fault(ReplicaLostError("gone"), after)]

    events = await collect(service, call())

    assert isinstance(events[-1], Finished)
    assert [event for event in events if event == Accepted()] == events[:1]
    assert len(workers.requests) == 3
    assert outcome(metrics, "length") == 1


async def test_a_worker_lost_in_the_middle_ends_a_stream_but_not_a_whole_answer(
    service: InferenceService, workers: LocalWorkers, metrics: IngressMetrics
) -> None:
    expected = (await service.answer(call())).text
    workers.faults = [Fault(ReplicaLostError("gone"), after=3), Fault(ReplicaLostError("gone"), after=3)]

    with pytest.raises(ReplicaLostError, match="after a part of this answer"):
        await collect(service, call())
    assert (await service.answer(call())).text == expected
    assert outcome(metrics, "replica_lost") == 1


async def test_no_request_is_tried_forever(service: InferenceService, workers: LocalWorkers) -> None:
    for ask in (service.answer(call()), collect(service, call())):
        workers.requests.clear()
        workers.faults = [Fault(ReplicaLostError("gone"))] * 3
        with pytest.raises(ReplicaLostError, match="3 replicas were lost"):
            await ask
        assert len(workers.requests) == 3


@pytest.mark.parametrize("error", [OverloadedError("full"), InvalidRequestError("no", param="policy")])
async def test_a_refusal_is_passed_on_at_once(
    service: InferenceService, workers: LocalWorkers, error: Exception
) -> None:
    workers.faults = [Fault(error)]

    with pytest.raises(type(error)):
        await collect(service, call())
    assert len(workers.requests) == 1


async def test_a_deadline_stops_the_work(
    service: InferenceService, workers: LocalWorkers, metrics: IngressMetrics
) -> None:
    before = (await idle_stats(workers)).num_aborted

    with pytest.raises(RequestTimeoutError, match="request_timeout_s"):
        await service.answer(call(params=SLOW, max_tokens=900), timeout_s=0.1)

    assert (await idle_stats(workers)).num_aborted == before + 1
    assert outcome(metrics, "timeout") == 1


async def test_without_any_worker_a_deadline_means_unavailable(
    service: InferenceService, workers: LocalWorkers
) -> None:
    await service.catalogue.model()
    workers.faults, workers.away = [Fault()], True

    with pytest.raises(NotReadyError):
        await service.answer(call(), timeout_s=0.1)


async def test_requests_before_the_first_worker_are_asked_to_come_back_later(
    service: InferenceService, workers: LocalWorkers
) -> None:
    workers.away = True
    with pytest.raises(NotReadyError, match="/health"):
        await service.answer(call())
    assert not await service.catalogue.is_ready()

    workers.away = False
    assert await service.catalogue.is_ready()
    assert (await service.answer(call())).text


async def test_leaving_a_stream_stops_the_work(
    service: InferenceService, workers: LocalWorkers, metrics: IngressMetrics
) -> None:
    before = (await idle_stats(workers)).num_aborted
    async with aclosing(service.generate(call(params=SLOW, max_tokens=900))) as events:
        await first_text(events)

    assert (await idle_stats(workers)).num_aborted == before + 1
    assert outcome(metrics, "cancelled") == 1


async def idle_stats(workers: LocalWorkers) -> WorkerStats:
    async def is_idle() -> bool:
        return (await workers.worker.stats()).num_running == 0

    await until(is_idle)
    return await workers.worker.stats()
