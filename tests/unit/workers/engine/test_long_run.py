"""An hour of random traffic on a simulated clock: nothing is lost, nothing is kept, memory stays where it was set."""

from __future__ import annotations

import random

from tests.unit.workers.tiny import PAGE_TOKENS, Answer, engine_of, prompt_of, request_of, tiny_model
from workers.api import GenerateChunk, GenerateRequest
from workers.config import BiCacheConfig, EngineConfig, KVConfig
from workers.errors import OverloadedError

HOUR_S = 3600.0
STEP_S = 0.5
ARRIVALS_PER_S = 0.25
POOL_BYTES, ENTRY_BYTES = 160 * 1024, 64 * 1024
"""About three requests at a time, and a third of the prefixes that come."""
TABLE = {0: 1, 40: 2, 70: 3}
POLICIES = ("none", "dual", "bicache", "bicache-dual", "lean", "lean", "lean")
ABORTED = 0.15


def random_request(draw: random.Random, name: str) -> GenerateRequest:
    """One of 30 prefixes, some far more popular than others, with a short question and canvas."""
    which = min(int(draw.expovariate(0.2)), 29)
    prefix = prompt_of(4 + 2 * which, seed=which)
    prompt = (*prefix, *prompt_of(draw.randint(1, 6), seed=draw.randrange(1000)))
    block = draw.choice((2, 4, 8))
    canvas = draw.randint(1, 12)
    return request_of(
        prompt,
        canvas,
        prefixes=[len(prefix)],
        request_id=name,
        policy=draw.choice(POLICIES),
        block_length=block,
        num_steps=draw.randint(-(-canvas // min(block, canvas)), canvas),
        refresh_interval=draw.choice((1, 4, 16)),
        temperature=draw.choice((0.0, 0.0, 0.8)),
        seed=draw.randrange(1 << 30),
    )


def test_an_hour_of_traffic_leaks_nothing() -> None:
    draw = random.Random(5)
    engine = engine_of(
        tiny_model(depth_table=TABLE),
        engine=EngineConfig(max_batch=4, max_waiting=12),
        kv=KVConfig(pool_bytes=POOL_BYTES, entry_bytes=ENTRY_BYTES, page_tokens=PAGE_TOKENS),
        bicache=BiCacheConfig(probe_positions=4),
    )
    open_: dict[str, Answer] = {}
    aborts: dict[str, float] = {}
    now, next_arrival, submitted, refused, finished, aborted = 0.0, 0.0, 0, 0, 0, 0
    while now < HOUR_S or engine.has_work:
        while next_arrival <= now < HOUR_S:
            name = f"r{submitted}"
            submitted += 1
            next_arrival += draw.expovariate(ARRIVALS_PER_S * (20 if 900 < now < 960 else 1))  # a rush
            try:
                engine.submit(random_request(draw, name))
            except OverloadedError:
                refused += 1
                continue
            open_[name] = Answer()
            if draw.random() < ABORTED:
                aborts[name] = now + draw.uniform(0, 8 * STEP_S)
        for name in [name for name, at in aborts.items() if at <= now]:
            del aborts[name]
            if open_.pop(name, None):
                engine.abort(name)
                aborted += 1
        for outcome in engine.step() if engine.has_work else ():
            answer = open_[outcome.request_id]
            answer.take(outcome)
            assert answer.error is None
            if answer.reason is not None:
                del open_[outcome.request_id]
                finished += 1
        assert engine.num_used_pages * engine.page_bytes <= POOL_BYTES
        assert engine.stats().prefix_bytes <= ENTRY_BYTES
        now += STEP_S
    assert not open_
    assert submitted == finished + aborted + refused
    assert min(finished, aborted, refused) > 0, (finished, aborted, refused)
    engine.check_integrity()
    stats = engine.stats()
    assert (stats.num_running, stats.num_waiting) == (0, 0)
    assert engine.num_used_pages * engine.page_bytes == stats.prefix_bytes
    assert stats.num_prefix_hits > 0
    engine.submit(request_of(prompt_of(152), 8, request_id="whole pool", policy="dual"))  # no entry is held any more
    outcomes = [outcome for _ in range(20) for outcome in engine.step()]
    assert any(isinstance(outcome, GenerateChunk) and outcome.finish_reason for outcome in outcomes)
