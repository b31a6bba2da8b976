"""The stack's benchmark sends the same prompts to server and engine, and bars follow from the answers' times."""

from __future__ import annotations

from dataclasses import replace

import pytest

from benchmarks.alone import EngineDriver
from benchmarks.report import Row
from benchmarks.settings import bundled, configuration
from benchmarks.stack import bars, medians, row
from benchmarks.traffic import Timing, Traffic, percentile
from cluster.config_file import parse_config
from tests.support.requirements import require_bundled_model

TRAFFIC = Traffic(
    streams=2, rounds=2, prefix=128, user=8, canvas=8, num_steps=4, block=8, vocab_size=1894, ends_early=True
)


def test_prompts_share_their_beginning_and_nothing_else() -> None:
    prompts = [TRAFFIC.prompt(stream, turn) for stream in range(2) for turn in range(-1, 2)]
    assert len({prompt[:128] for prompt in prompts}) == 1
    assert len({prompt[128:] for prompt in prompts}) == 6
    assert {len(prompt) for prompt in prompts} == {136}
    assert TRAFFIC.prompt(1, 1) == TRAFFIC.alone(5).prompt(1, 1)


def test_the_server_is_configured_with_the_engine_that_is_measured_alone() -> None:
    require_bundled_model()
    setting = bundled("factbook", "cpu", 3, quick=True)
    worker = parse_config(configuration(setting)).worker
    assert (worker.engine, worker.bicache, worker.num_threads) == (setting.engine, setting.bicache, 1)


def test_an_engine_alone_answers_every_stream_in_full() -> None:
    require_bundled_model()
    driver = EngineDriver(replace(bundled("factbook", "cpu", 2, quick=True), traffic=TRAFFIC))
    timing = driver.drive(TRAFFIC)
    stats = driver.engine.stats()
    assert (stats.num_requests, stats.num_canvas_tokens) == (4, TRAFFIC.canvas_tokens)
    assert (len(timing.last_s), timing.num_chunks >= 4) == (4, True)
    assert max(timing.last_s) < timing.elapsed_s


@pytest.mark.parametrize(("percent", "found"), [(50, 2.0), (75, 3.0), (99, 4.0), (1, 1.0)])
def test_percentiles_are_values_that_were_seen(percent: int, found: float) -> None:
    assert percentile([4.0, 1.0, 3.0, 2.0], percent) == found


def rows(transport: str, elapsed_s: float, added_s: float) -> list[Row]:
    alone = Timing(10.0, [1.0], [2.0, 2.0], 4)
    timing = Timing(elapsed_s, [1.0], [2.0 + added_s] * 2, 4)
    single = row(transport, TRAFFIC.alone(2), timing, alone) | {"outside_engine_ms": 4.0}
    return [single, row(transport, TRAFFIC, timing, alone) | {"outside_engine_ms": 1000 * added_s}]


@pytest.mark.parametrize(
    ("elapsed_s", "added_s", "holds"),
    [(10.4, 0.009, [True, True, True]), (10.6, 0.009, [True, False, True]), (10.4, 0.011, [False, True, False])],
)
def test_bars_bound_throughput_and_added_latency(elapsed_s: float, added_s: float, holds: list[bool]) -> None:
    assert [bar.holds for bar in bars(rows("HTTP", elapsed_s, added_s))] == holds
    assert bars(rows("engine alone", elapsed_s, added_s)) == []


def test_the_median_of_repeats_counts() -> None:
    repeats = [one for elapsed_s in (20.0, 11.0, 10.0) for one in rows("gRPC", elapsed_s, 0.0)]
    assert [one["share_of_engine"] for one in medians(repeats)] == [pytest.approx(10 / 11)] * 2
