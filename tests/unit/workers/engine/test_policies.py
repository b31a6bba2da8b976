"""The engine's policies against the published decoders, token for token."""

from __future__ import annotations

import random

import pytest

from tests.unit.workers.engine.reference import Decoder
from tests.unit.workers.tiny import TINY, engine_of, prompt_of, request_of, run_one, tiny_model
from workers.config import POLICY_NAMES
from workers.scheduler.policy import POLICIES

SHAPES = range(12)


def shape(seed: int) -> tuple[int, int, int, int, int]:
    """Prompt, prefix and canvas length, block length and steps, none of them round."""
    draw = random.Random(seed)
    prompt, canvas = draw.randint(2, 40), draw.randint(1, 24)
    block = draw.randint(1, canvas)
    num_blocks = -(-canvas // block)
    return prompt, draw.randint(0, prompt), canvas, block, num_blocks * draw.randint(1, block)


@pytest.mark.parametrize("seed", SHAPES)
def test_none_is_llada(seed: int) -> None:
    prompt, _, canvas, block, steps = shape(seed)
    loaded, ids = tiny_model(seed), prompt_of(prompt, seed)
    answer = run_one(engine_of(loaded), request_of(ids, canvas, policy="none", block_length=block, num_steps=steps))
    assert answer.token_ids == Decoder(loaded, ids, canvas).none(block, steps)


@pytest.mark.parametrize("seed", SHAPES)
@pytest.mark.parametrize("depth", range(TINY.num_layers + 1))
def test_bicache_is_as_published(seed: int, depth: int) -> None:
    prompt, prefix, canvas, _, steps = shape(seed)
    interval = seed % 4
    loaded, ids = tiny_model(seed), prompt_of(prompt, seed)
    request = request_of(
        ids,
        canvas,
        prefixes=[prefix],
        policy="bicache",
        num_steps=steps,
        reuse_depth=depth,
        refresh_interval=interval,
    )
    assert run_one(engine_of(loaded), request).token_ids == Decoder(
        loaded, ids, canvas, prefix, depth if prefix else 0, interval
    ).bicache(steps)


@pytest.mark.parametrize("seed", SHAPES)
def test_depth_zero_refreshed_at_every_step_is_exact(seed: int) -> None:
    prompt, prefix, canvas, _, steps = shape(seed)
    loaded, ids = tiny_model(seed), prompt_of(prompt, seed)
    exact = run_one(engine_of(loaded), request_of(ids, canvas, policy="none", block_length=canvas, num_steps=steps))
    cached = request_of(
        ids, canvas, prefixes=[prefix], policy="bicache", num_steps=steps, reuse_depth=0, refresh_interval=1
    )
    assert run_one(engine_of(loaded), cached).token_ids == exact.token_ids


def test_naive_reuse_answers_differently() -> None:
    """The prefix alone decides nothing right: the reason for everything else."""
    loaded, ids = tiny_model(3), prompt_of(40, 3)
    exact = run_one(engine_of(loaded), request_of(ids, 24, policy="none", block_length=24))
    naive = run_one(engine_of(loaded), request_of(ids, 24, prefixes=[36], policy="prefix-naive"))
    assert naive.usage is not None
    assert naive.usage.reuse_depth == TINY.num_layers
    assert naive.token_ids != exact.token_ids
    assert naive.token_ids == Decoder(loaded, ids, 24, 36, TINY.num_layers).bicache(12)


@pytest.mark.parametrize("seed", SHAPES)
def test_dual_is_fast_dllm(seed: int) -> None:
    prompt, _, canvas, block, steps = shape(seed)
    loaded, ids = tiny_model(seed), prompt_of(prompt, seed)
    answer = run_one(engine_of(loaded), request_of(ids, canvas, policy="dual", block_length=block, num_steps=steps))
    assert answer.token_ids == Decoder(loaded, ids, canvas).dual(block, steps)


@pytest.mark.parametrize("seed", SHAPES)
@pytest.mark.parametrize("depth", range(TINY.num_layers + 1))
@pytest.mark.parametrize("policy", ["bicache-dual", "lean"])
def test_blockwise_bicache_is_as_described(policy: str, seed: int, depth: int) -> None:
    prompt, prefix, canvas, block, steps = shape(seed)
    interval = seed % 5
    loaded, ids = tiny_model(seed), prompt_of(prompt, seed)
    request = request_of(
        ids,
        canvas,
        prefixes=[prefix],
        policy=policy,
        block_length=block,
        num_steps=steps,
        reuse_depth=depth,
        refresh_interval=interval,
    )
    decoder = Decoder(loaded, ids, canvas, prefix, depth if prefix else 0, interval)
    expected = decoder.lean(block, steps) if policy == "lean" else decoder.bicache_dual(block, steps)
    assert run_one(engine_of(loaded), request).token_ids == expected


def test_the_configuration_knows_every_policy() -> None:
    assert tuple(POLICIES) == POLICY_NAMES
