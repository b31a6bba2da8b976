from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from rich.console import Console

from tests.unit.workers.engine.reference import Decoder
from tests.unit.workers.tiny import TINY, prompt_of, tiny_model
from workers.bicache.profile import Measurement, ProfileConfig, Profiler, ProfileSample, measure, profile, report
from workers.bicache.profile.heatmap import colour, save_heatmap
from workers.bicache.profile.report import profile_directory
from workers.models.bundle import model_directory
from workers.models.loader import read_depth_table

CPU = torch.device("cpu")


def measurement(ratio: int, agreeing: list[int], similarity: list[float]) -> Measurement:
    return Measurement(ratio, tuple(similarity), tuple(percent / 100 for percent in agreeing))


def test_depth_ends_where_the_tokens_change() -> None:
    config = ProfileConfig(agreement=0.95)
    made = profile(
        [
            measurement(23, [100, 90, 99, 99], [1.0, 0.98, 0.5]),
            measurement(57, [100, 99, 95, 80], [1.0, 0.98, 0.98]),
            measurement(52, [100, 97, 97, 96], [1.0, 0.98, 0.5]),
            measurement(91, [100, 100, 100, 100], [1.0, 0.9, 1.0]),
        ],
        config,
    )
    assert made.table == {0: 0, 50: 2, 90: 3}
    assert made.published_table == {20: 2}
    assert [bucket.num_samples for bucket in made.buckets] == [1, 2, 1]


def test_a_smaller_ratio_is_never_reused_deeper_than_a_larger_one() -> None:
    """Its neighbours outweigh one unlucky sample among many; one lucky sample doesn't outweigh them."""
    fine, poor = [100, 100, 100], [100, 99, 99]
    unlucky = (
        [measurement(30, fine, [1.0, 1.0])] * 40
        + [measurement(60, poor, [1.0, 1.0])]
        + [measurement(80, fine, [1.0, 1.0])]
    )
    assert profile(unlucky, ProfileConfig(agreement=0.999)).table == {0: 0, 30: 2}
    lucky = [measurement(30, fine, [1.0, 1.0])] + [measurement(60, poor, [1.0, 1.0])] * 40
    assert profile(lucky, ProfileConfig(agreement=0.999)).table == {0: 0}


def test_a_depth_is_safe_with_and_without_turns_behind_the_prefix() -> None:
    first = measurement(50, [100, 100, 100], [1.0, 1.0])
    later = replace(measurement(55, [100, 100, 90], [1.0, 1.0]), has_later_turns=True)
    assert profile([first] * 40 + [later], ProfileConfig()).table == {0: 0, 50: 1}


def test_a_table_without_evidence_reuses_nothing() -> None:
    assert profile([], ProfileConfig()).table == {0: 0}


def test_only_the_exact_pass_and_the_first_layer_are_free_of_differences() -> None:
    """Depth 0 is the exact pass, and the first layer's K/V hold nothing of the suffix yet."""
    loaded = tiny_model(3)
    sample = ProfileSample(prompt_of(20, 3), 14, 8)
    found = Profiler(loaded.model, CPU).measure(sample)
    assert sample.ratio == found.ratio == 50
    assert found.agreement[0] == 1
    assert found.similarity[0] > 0.999
    assert min(found.similarity[1:]) < 0.97
    assert min(found.agreement) < 1


def test_reused_states_equal_the_references() -> None:
    loaded = tiny_model(5)
    prompt = prompt_of(16, 5)
    profiler = Profiler(loaded.model, CPU)
    for depth in range(TINY.num_layers + 1):
        decoder = Decoder(loaded, prompt, 6, prefix=11, depth=depth)
        expected, _, _ = decoder.refresh(11, decoder.total)
        alone_kv, states = decoder.entry()
        reused = list(profiler._reused(decoder.tokens, states, alone_kv))[depth]
        torch.testing.assert_close(loaded.model.logits(reused), expected, atol=1e-4, rtol=1e-4)


def test_a_saved_profile_is_read_by_the_loader(tmp_path: Path) -> None:
    loaded = tiny_model(1)
    samples = [ProfileSample(prompt_of(20, seed), prefix, 6) for seed, prefix in enumerate((0, 6, 18))]
    made = profile(measure(loaded.model, samples, CPU), ProfileConfig())
    made.save(tmp_path / "depth_table.json")
    assert read_depth_table(tmp_path) == made.table
    assert len(json.loads((tmp_path / "depth_table.json").read_text())["buckets"]) == 2


def test_several_processes_measure_what_one_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three chunks of one sample each: one of the two processes measures two of them."""
    monkeypatch.setattr(report, "CHUNK", 1)
    samples = [ProfileSample(tuple(range(2, end)), end - 10, 4) for end in (24, 40, 18)]
    made = [
        profile_directory(
            model_directory("factbook"),
            samples,
            tmp_path,
            config=ProfileConfig(),
            console=Console(quiet=True),
            num_processes=num_processes,
        )
        for num_processes in (1, 2)
    ]
    assert made[0] == made[1]
    assert sum(bucket.num_samples for bucket in made[0].buckets) == len(samples)


def test_the_heat_map_shows_every_layer_and_bucket(tmp_path: Path) -> None:
    made = profile(
        [measurement(23, [100, 90, 99], [1.0, 0.913]), measurement(57, [100, 98, 31], [0.999, 0.25])], ProfileConfig()
    )
    save_heatmap(made, tmp_path / "map.svg")
    picture = (tmp_path / "map.svg").read_text()
    for shown in ("20&#160;%", "50&#160;%", "1.000", "0.913", "0.990", "0.980*", "0.310"):
        assert shown in picture
    assert "0.900*" not in picture
    assert colour(0.5) == "black on rgb(255,0,80)"
    assert colour(1.0) == "black on rgb(0,215,80)"
