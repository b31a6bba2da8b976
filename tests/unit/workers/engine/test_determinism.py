"""An answer depends on the request alone: never on what is cached, pending, evicted, reported or held elsewhere."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from functools import cache
from itertools import count

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from cache_service.core.types import DepthLimit, PrefixKey
from tests.unit.workers.tiny import PAGE_TOKENS, TINY, Answer, engine_of, prompt_of, request_of, run_all, run_one
from tests.unit.workers.tiny import tiny_model as model_of
from workers.api import GenerateRequest
from workers.config import BiCacheConfig, EngineConfig, KVConfig
from workers.engine.engine import Engine
from workers.models.loader import LoadedModel
from workers.scheduler.admission import Preparation
from workers.scheduler.policy import POLICIES

STEEP = {0: 0, 15: 1, 30: 1, 45: 2, 60: 3, 75: 3, 90: 4}
PAGE_BYTES = 2 * PAGE_TOKENS * TINY.hidden_size * 4
PROBED = BiCacheConfig(cut_share=0.6, probe_positions=8, probe_similarity=0.98, refresh_interval=4)


def gently_mixing_model() -> LoadedModel:
    """Rows see less of each other than in a model of random weights, so that probes leave some depths as they are."""
    loaded = model_of(3, depth_table=STEEP)
    for layer, share in zip(loaded.model.layers, MIXING, strict=True):  # type: ignore[attr-defined]
        layer.o.weight.mul_(share)
    return loaded


MIXING = (0.02, 0.05, 0.1, 0.1)
LOADED = gently_mixing_model()


def budget(pool_pages: int, entry_pages: int) -> KVConfig:
    return KVConfig(pool_bytes=pool_pages * PAGE_BYTES, entry_bytes=entry_pages * PAGE_BYTES, page_tokens=PAGE_TOKENS)


ROOMY = budget(2048, 1024)
TIGHT = budget(220, 60)
NO_ENTRIES = budget(220, 0)


def fresh(kv: KVConfig = ROOMY, *, shares: bool = False, max_batch: int = 8) -> Engine:
    engine = EngineConfig(max_batch=max_batch, max_heavy_rows=64)
    return engine_of(LOADED, engine=engine, kv=kv, bicache=PROBED, shares_builds=shares)


def turn(sheet: int, num_turns: int, *, canvas: int = 8, request_id: str = "r", **params: object) -> GenerateRequest:
    """Return the last of `num_turns` turns of the conversation about one sheet."""
    prompt, boundaries = prompt_of(20 + 4 * sheet, seed=sheet), []
    for number in range(num_turns):
        boundaries.append(len(prompt))
        prompt += prompt_of(9, seed=100 + number)
    return request_of(prompt, canvas, prefixes=boundaries, request_id=request_id, **params)


def alone(request: GenerateRequest) -> Answer:
    """Return the answer of a replica that has never seen another request."""
    return run_one(fresh(), request)


def essence(answer: Answer) -> object:
    """Return all of an answer that must not depend on other requests."""
    assert answer.error is None
    assert answer.usage is not None
    usage = answer.usage
    return answer.token_ids, usage.prefix_tokens, usage.reuse_depth, usage.depth_limited_by


@cache
def expected(request: GenerateRequest) -> object:
    """Return what every replica must answer, once for all mixes in which the request occurs."""
    return essence(alone(request))


REQUESTS = st.builds(
    turn,
    st.integers(0, 3),
    st.integers(1, 4),
    canvas=st.sampled_from((4, 8, 40)),
    policy=st.sampled_from(("lean", "lean", "lean", *sorted(POLICIES))),
    block_length=st.sampled_from((2, 4)),
    temperature=st.sampled_from((0.0, 1.5)),
    seed=st.integers(0, 3),
    reuse_depth=st.sampled_from((None, None, None, 1, 3)),
)


@dataclass
class Replica:
    """Keeps an engine, and the requests that it is busy with."""

    engine: Engine
    waiting: dict[str, GenerateRequest] = field(default_factory=dict)
    answers: dict[str, Answer] = field(default_factory=dict)

    def step(self) -> None:
        for outcome in self.engine.step():
            self.answers[outcome.request_id].take(outcome)


class Mixes(RuleBasedStateMachine):
    """Lets everything happen to two replicas that may happen to them."""

    def __init__(self) -> None:
        super().__init__()
        self.numbers = count()

    @initialize(kv=st.sampled_from((ROOMY, TIGHT, NO_ENTRIES)))
    def start(self, kv: KVConfig) -> None:
        self.replicas = [Replica(fresh(kv, shares=True)) for _ in range(2)]
        self.kv = kv

    @rule(which=st.integers(0, 1), requests=st.lists(REQUESTS, min_size=1, max_size=3))
    def ask(self, which: int, requests: list[GenerateRequest]) -> None:
        replica = self.replicas[which]
        for request in requests:
            name = f"r{next(self.numbers)}"
            replica.engine.submit(renamed(request, name))
            replica.waiting[name], replica.answers[name] = request, Answer()

    @rule(which=st.integers(0, 1), num_steps=st.integers(1, 12))
    def run(self, which: int, num_steps: int) -> None:
        """Entries that are awaited come from the other replica where it has them, else they are built."""
        replica, other = self.replicas[which], self.replicas[1 - which]
        for _ in range(num_steps):
            for entry in replica.engine.take_changes().pending:
                supply(entry.key, tuple(sorted(entry.depths)), replica.engine, other.engine)
            if replica.engine.has_work:
                replica.step()

    @rule(which=st.integers(0, 1), draw=st.randoms(use_true_random=False))
    def retire(self, which: int, draw: object) -> None:
        engine = self.replicas[which].engine
        if keys := [*engine._memory.cache._entries]:
            key = draw.choice(keys)  # type: ignore[attr-defined]
            engine.with_entries(lambda entries: entries.retire(key, successor=None))

    @rule(which=st.integers(0, 1), sheet=st.integers(0, 3), bucket=st.integers(0, 9), depth=st.integers(0, 2))
    def report(self, which: int, sheet: int, bucket: int, depth: int) -> None:
        key = turn(sheet, 1).prefixes[0].key
        self.replicas[which].engine.with_entries(
            lambda entries: entries.record_limits([DepthLimit(key, 10 * bucket, depth, 0)])
        )

    @rule(which=st.integers(0, 1))
    def restart(self, which: int) -> None:
        replica = self.replicas[which]
        if not replica.waiting:
            replica.engine = fresh(self.kv, shares=True)

    @rule(which=st.integers(0, 1), draw=st.randoms(use_true_random=False))
    def abort(self, which: int, draw: object) -> None:
        replica = self.replicas[which]
        if replica.waiting:
            name = draw.choice(sorted(replica.waiting))  # type: ignore[attr-defined]
            replica.engine.abort(name)
            del replica.waiting[name]

    @invariant()
    def answers_are_those_of_a_fresh_replica(self) -> None:
        for replica in getattr(self, "replicas", ()):
            replica.engine.check_integrity()
            for name, request in tuple(replica.waiting.items()):
                answer = replica.answers[name]
                assert answer.error is None
                if answer.reason is not None:
                    del replica.waiting[name]
                    assert essence(answer) == expected(request)

    def teardown(self) -> None:
        for which in range(2):
            for _ in range(400):
                if not getattr(self, "replicas", None) or not self.replicas[which].waiting:
                    break
                self.run(which, 5)
                self.answers_are_those_of_a_fresh_replica()
            else:
                raise AssertionError(f"{self.replicas[which].engine!r} does not end")


def renamed(request: GenerateRequest, name: str) -> GenerateRequest:
    return GenerateRequest(**{**vars(request), "request_id": name})


def supply(key: PrefixKey, depths: tuple[int, ...], engine: Engine, holder: Engine) -> None:
    copy = holder.with_entries(lambda entries: entries.export(key, depths))
    if copy is None or not engine.with_entries(lambda entries: entries.install(copy)):
        engine.with_entries(lambda entries: entries.allow_build(key))


TestMixes = Mixes.TestCase
TestMixes.settings = settings(max_examples=40, stateful_step_count=25, deadline=None)


def test_a_turn_is_answered_alike_before_and_after_the_turns_before_it() -> None:
    """Its own first turn leaves an entry at another boundary."""
    engine = fresh()
    for number in range(1, 5):
        request = turn(0, number, request_id=str(number))
        assert essence(run_one(engine, request)) == essence(alone(request))


def test_the_depth_does_not_depend_on_the_depths_that_the_entry_keeps_for_others() -> None:
    """By the table the first is reused in one layer, the second in none."""
    table = {0: 0, 15: 1, 30: 2}
    loaded = model_of(depth_table=table)
    prompt = prompt_of(16)
    first = request_of(prompt + prompt_of(60, 1), 16, prefixes=[16], request_id="a", block_length=8)
    second = request_of(prompt + prompt_of(1, 2), 8, prefixes=[16], request_id="b", block_length=8)
    engine = engine_of(loaded)
    run_one(engine, first)
    beside = engine_of(loaded)
    expected = essence(run_one(engine_of(loaded), second))
    assert essence(run_one(engine, second)) == expected
    assert essence(run_all(beside, [first, second])["b"]) == expected


@pytest.mark.parametrize(
    "pair",
    [
        ({"policy": "bicache", "reuse_depth": 1}, {"policy": "bicache", "reuse_depth": 3}),
        ({"policy": "bicache"}, {"policy": "prefix-naive"}),
        ({"canvas": 200}, {"canvas": 1}),
    ],
)
def test_two_requests_of_one_step_with_one_prefix_get_their_own_depths(pair: tuple[dict[str, object], ...]) -> None:
    requests = [turn(1, 1, request_id=str(number), **params) for number, params in enumerate(pair)]
    answers = run_all(fresh(), requests)
    assert [essence(answers[request.request_id]) for request in requests] == [essence(alone(r)) for r in requests]


@pytest.mark.parametrize("kv", [TIGHT, NO_ENTRIES])
def test_a_full_budget_costs_time_and_never_another_answer(kv: KVConfig) -> None:
    engine = fresh(kv)
    for round_ in range(2):
        for sheet in range(8):
            request = turn(sheet, 1, canvas=8, request_id=f"{round_} {sheet}")
            assert essence(run_one(engine, request)) == essence(alone(request))
    engine.check_integrity()


def test_a_repeated_prefix_is_a_hit_although_the_budget_was_full_of_others() -> None:
    engine = fresh(TIGHT)
    for sheet in range(8):
        run_one(engine, turn(sheet, 1, request_id=f"other {sheet}", reuse_depth=2))
    cached = [run_one(engine, turn(9, 1, request_id=name, reuse_depth=2)).usage for name in "ab"]
    assert [usage.cached_tokens for usage in cached if usage] == [0, len(turn(9, 1).token_ids) - 9]


@given(reported=st.integers(0, 2))
def test_reports_bind_only_requests_that_are_not_deterministic(reported: int) -> None:
    engine = engine_of(LOADED, bicache=BiCacheConfig(probe_positions=0))
    request = turn(2, 1)
    [prefix] = request.prefixes
    limits = [DepthLimit(prefix.key, bucket, reported, 0) for bucket in range(0, 100, 10)]
    engine.with_entries(lambda entries: entries.record_limits(limits))
    depths = [
        usage.reuse_depth
        for deterministic in (None, True, False)
        if (usage := run_one(engine, turn(2, 1, deterministic=deterministic)).usage)
    ]
    assert depths == [3, 3, reported]


def test_the_refusal_of_a_prefix_that_never_fits_beside_its_request_names_the_setting() -> None:
    engine = fresh(budget(100, 60))
    assert run_one(engine, turn(0, 1, canvas=4)).reason is not None
    with pytest.raises(Exception, match=r"kv\.pool_bytes"):
        engine.submit(turn(0, 4, canvas=180))


def test_every_request_is_admitted_although_waiting_ones_hold_all_the_memory() -> None:
    """Each of them prepares an entry, and none has room left for its own pages."""
    requests = [turn(sheet, 2, canvas=16, request_id=str(sheet)) for sheet in range(4)]
    for pages in range(90, 220, 10):
        engine = fresh(budget(pages, pages), max_batch=4)
        fitting = [request for request in requests if fits(engine, request)]
        answers = run_all(engine, fitting)
        assert [essence(answers[r.request_id]) for r in fitting] == [essence(alone(r)) for r in fitting]
        engine.check_integrity()


def test_a_request_that_just_fits_is_answered_also_where_its_probe_lowers_its_depth() -> None:
    """The entry that was probed is deeper than the one that is needed then."""
    requests = [turn(sheet, number, canvas=canvas) for sheet in range(8) for number in range(1, 5) for canvas in (4, 8)]
    request = next(one for one in requests if lowered(alone(one)))
    pages = next(pages for pages in count(20) if fits(fresh(budget(pages, 0)), request))
    engine = fresh(budget(pages, 0))
    engine.submit(request)
    task = engine.scheduler._waiting[0]
    preparation = Preparation(is_alone=True)  # as where others held all the memory when it was first looked at
    engine.scheduler._admission._preparations[task.id] = preparation
    answer = Answer()
    for _ in range(100):
        for outcome in engine.step():
            answer.take(outcome)
    assert essence(answer) == essence(alone(request))


def lowered(answer: Answer) -> bool:
    return answer.usage is not None and answer.usage.depth_limited_by is not None and answer.usage.reuse_depth > 0


def fits(engine: Engine, request: GenerateRequest) -> bool:
    try:
        engine.submit(request)
    except Exception:
        return False
    engine.abort(request.request_id)
    return True


async def test_seeded_answers_repeat_under_load() -> None:
    """The first one has its steps for itself, the second shares them with seven others."""
    request = turn(0, 3, temperature=1.5, seed=7, canvas=24)
    others = [turn(number % 4, 1 + number % 3, request_id=f"o{number}", temperature=1.0) for number in range(7)]
    together = await asyncio.to_thread(run_all, fresh(), [*others, request])
    assert essence(together["r"]) == essence(alone(request))
