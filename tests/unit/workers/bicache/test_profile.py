from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import torch

from tests.unit.workers.engine.reference import Decoder
from tests.unit.workers.tiny import TINY, prompt_of, tiny_model
from workers.bicache.profile import Measurement, ProfileConfig, Profiler, ProfileSample, profile, profile_model
from workers.bicache.profile.heatmap import colour, save_heatmap
from workers.models.loader import read_depth_table

CPU = torch.device("cpu")


def measured(ratio: int, agreeing: list[int], similarity: list[float]) -> Measurement:
    return Measurement(ratio, tuple(similarity), tuple(share / 100 for share in agreeing))


def test_depth_ends_where_the_tokens_change() -> None:
    config = ProfileConfig(agreement=0.95)
    made = profile(
        [
            measured(23, [100, 90, 99, 99], [1.0, 0.98, 0.5]),
            measured(57, [100, 99, 95, 80], [1.0, 0.98, 0.98]),
            measured(52, [100, 97, 97, 96], [1.0, 0.98, 0.5]),
            measured(91, [100, 100, 100, 100], [1.0, 0.9, 1.0]),
        ],
        config,
    )
    assert made.table == {0: 0, 50: 2, 90: 3}
    assert made.published_table == {20: 2}
    assert [bucket.num_samples for bucket in made.buckets] == [1, 2, 1]


def test_a_smaller_share_is_never_reused_deeper_than_a_larger_one() -> None:
    """One unlucky sample among many is outweighed by its neighbours; one lucky one doesn't outweigh them."""
    fine, poor = [100, 100, 100], [100, 99, 99]
    unlucky = (
        [measured(30, fine, [1.0, 1.0])] * 40 + [measured(60, poor, [1.0, 1.0])] + [measured(80, fine, [1.0, 1.0])]
    )
    assert profile(unlucky, ProfileConfig(agreement=0.999)).table == {0: 0, 30: 2}
    lucky = [measured(30, fine, [1.0, 1.0])] + [measured(60, poor, [1.0, 1.0])] * 40
    assert profile(lucky, ProfileConfig(agreement=0.999)).table == {0: 0}


def test_a_depth_is_safe_with_and_without_turns_behind_the_prefix() -> None:
    first = measured(50, [100, 100, 100], [1.0, 1.0])
    later = replace(measured(55, [100, 100, 90], [1.0, 1.0]), has_turns_behind=True)
    assert profile([first] * 40 + [later], ProfileConfig()).table == {0: 0, 50: 1}


def test_a_table_without_evidence_reuses_nothing() -> None:
    assert profile([], ProfileConfig()).table == {0: 0}


def test_the_measured_agreement_is_that_of_a_refresh() -> None:
    """Agreement at each depth against the reference's own refresh; depth 0 is the exact pass."""
    loaded = tiny_model(3)
    sample = ProfileSample(prompt_of(20, 3), 14, 8)
    measurement = Profiler(loaded.model, CPU).measure(sample)
    assert sample.ratio == measurement.ratio == 50
    assert measurement.agreement[0] == 1
    assert measurement.similarity[0] > 0.999
    assert min(measurement.similarity[1:]) < 0.97
    assert min(measurement.agreement) < 1


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
    seen = []
    made = profile_model(loaded.model, samples, ProfileConfig(), device=CPU, on_sample=lambda: seen.append(1))
    assert len(seen) == 3
    made.save(tmp_path / "depth_table.json")
    assert read_depth_table(tmp_path) == made.table
    assert len(json.loads((tmp_path / "depth_table.json").read_text())["buckets"]) == 2


def test_the_heat_map_shows_every_layer_and_bucket(tmp_path: Path) -> None:
    made = profile(
        [measured(23, [100, 90, 99], [1.0, 0.913]), measured(57, [100, 98, 31], [0.999, 0.25])], ProfileConfig()
    )
    save_heatmap(made, tmp_path / "map.svg")
    picture = (tmp_path / "map.svg").read_text()
    for shown in ("20&#160;%", "50&#160;%", "1.000", "0.913", "0.990", "0.980*", "0.310"):
        assert shown in picture
    assert "0.900*" not in picture
    assert colour(0.5) == "black on rgb(255,0,80)"
    assert colour(1.0) == "black on rgb(0,215,80)"
