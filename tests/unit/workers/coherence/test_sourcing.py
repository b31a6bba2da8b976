"""The choice of an entry's source, and the estimates behind it."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cache_service.core.types import FIRST_EPOCH, Build, FencingToken, PrefixKey, ReplicaId
from workers.coherence.estimate import CostModel, Costs, LinearFit, Prior
from workers.coherence.sourcing import BuildAlone, Claim, Fetch, Situation, Wait, choose
from workers.config import CoherenceConfig

KEY = PrefixKey(bytes(20))
US, A, B = ReplicaId("us"), ReplicaId("a"), ReplicaId("b")
BUILD = Build(KEY, FIRST_EPOCH, A, FencingToken(7), 10.0)
NO_HOLDER = Situation(KEY, US, frozenset(), None, 0.0)
DEAR_BUILD, DEAR_FETCH = Costs(build_s=1.0, fetch_s=0.1), Costs(build_s=0.1, fetch_s=1.0)
AUTO = CoherenceConfig(patience=2.0, max_wait_s=5.0)
seconds = st.floats(0.0, 100.0)


def test_no_replica_is_asked_where_a_fetch_is_dearer() -> None:
    assert choose(replace(NO_HOLDER, holders={A}, build=BUILD), DEAR_FETCH, AUTO) == BuildAlone()


def test_an_entry_with_a_holder_is_fetched_though_another_replica_builds_it() -> None:
    assert choose(replace(NO_HOLDER, holders={A}, build=BUILD), DEAR_BUILD, AUTO) == Fetch(A)


def test_a_build_that_no_replica_has_begun_is_claimed() -> None:
    assert choose(NO_HOLDER, DEAR_BUILD, AUTO) == Claim()


def test_another_replicas_build_is_waited_for_as_long_as_patience_lasts() -> None:
    waiting = replace(NO_HOLDER, build=BUILD)
    assert choose(waiting, DEAR_BUILD, AUTO) == Wait(BUILD, 2.0)
    assert choose(replace(waiting, waited_s=1.5), DEAR_BUILD, AUTO) == Wait(BUILD, 0.5)
    assert choose(replace(waiting, waited_s=1.95), DEAR_BUILD, AUTO) == BuildAlone()
    assert choose(waiting, DEAR_BUILD, replace(AUTO, patience=1.0)) == BuildAlone()
    assert choose(waiting, DEAR_BUILD, replace(AUTO, max_wait_s=1.2)) == Wait(BUILD, 1.2)


@pytest.mark.parametrize("costs", [DEAR_BUILD, DEAR_FETCH])
def test_always_and_never_disregard_the_costs(costs: Costs) -> None:
    waiting = replace(NO_HOLDER, build=BUILD)
    assert choose(waiting, costs, replace(AUTO, transfer="always")) == Wait(BUILD, 5.0)
    assert choose(replace(waiting, holders={A}), costs, replace(AUTO, transfer="never")) == BuildAlone()


@given(seconds, seconds, seconds, st.floats(1.0, 10.0), st.floats(0.01, 10.0))
def test_no_wait_outlasts_patience_or_the_configured_limit(
    build_s: float, fetch_s: float, waited_s: float, patience: float, max_wait_s: float
) -> None:
    config = CoherenceConfig(patience=patience, max_wait_s=max_wait_s)
    chosen = choose(replace(NO_HOLDER, build=BUILD, waited_s=waited_s), Costs(build_s, fetch_s), config)
    if isinstance(chosen, Wait):
        assert 0 < chosen.timeout_s <= max_wait_s - waited_s + 1e-9
        assert waited_s + chosen.timeout_s <= patience * build_s + 1e-9
        assert fetch_s < build_s


def test_replicas_spread_their_fetches_over_the_holders() -> None:
    asked = {
        choose(replace(NO_HOLDER, replica=ReplicaId(f"r{number}"), holders={A, B}), DEAR_BUILD, AUTO)
        for number in range(32)
    }
    assert asked == {Fetch(A), Fetch(B)}


@given(st.lists(st.tuples(st.floats(0.0, 1e9), seconds), max_size=40), st.floats(0.0, 1e9))
def test_an_estimate_is_never_negative_and_grows_with_size(samples: list[tuple[float, float]], size: float) -> None:
    line = LinearFit(Prior(0.01, 1e-9, 1e8))
    for seen, took in samples:
        line.add(seen, took)
    assert 0 <= line.seconds(size) <= line.seconds(2 * size) + 1e-9


@given(st.floats(0.0, 1.0), st.floats(1e-10, 1e-7))
def test_an_estimate_approaches_what_is_measured(fixed_s: float, unit_s: float) -> None:
    line = LinearFit(Prior(0.01, 1e-9, 1e8))
    for number in range(200):
        size = 1e7 * (number % 10)
        line.add(size, fixed_s + unit_s * size)
    truth = fixed_s + unit_s * 5e7
    assert line.seconds(5e7) == pytest.approx(truth, rel=0.2, abs=0.02)


def test_a_fetch_that_was_slow_once_is_tried_again() -> None:
    model = CostModel(Prior(0.1, 0.0, 1.0), Prior(0.01, 0.0, 1.0))
    model.record_fetch(1, 5.0)
    assert model.estimate(1, 1).fetch_s > model.estimate(1, 1).build_s
    for _ in range(1000):
        model.record_skipped_fetch()
    assert model.estimate(1, 1).fetch_s < model.estimate(1, 1).build_s
