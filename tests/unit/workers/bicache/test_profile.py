from __future__ import annotations

import json
from pathlib import Path

import torch

from tests.unit.workers.engine.reference import Decoder
from tests.unit.workers.tiny import TINY, prompt_of, tiny_model
from workers.bicache.profile import Measurement, ProfileConfig, Profiler, ProfileSample, profile, profile_model
from workers.models.loader import read_depth_table

CPU = torch.device("cpu")


def measured(ratio: int, agreeing: list[int], similarity: list[float]) -> Measurement:
    return Measurement(ratio, tuple(similarity), tuple(agreeing), tuple([100] * len(agreeing)))


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


def test_a_table_without_evidence_reuses_nothing() -> None:
    assert profile([], ProfileConfig()).table == {0: 0}


def test_what_is_measured_is_what_a_refresh_computes() -> None:
    """Agreement at each depth against the reference's own refresh; depth 0 is the exact pass."""
    loaded = tiny_model(3)
    sample = ProfileSample(prompt_of(20, 3), 14, 8)
    measurement = Profiler(loaded.model, CPU).measure(sample)
    assert sample.ratio == measurement.ratio == 50
    assert measurement.agreeing[0] == measurement.compared[0]
    assert measurement.similarity[0] > 0.999
    assert min(measurement.similarity[1:]) < 0.97
    assert any(same < all_ for same, all_ in zip(measurement.agreeing, measurement.compared, strict=True))


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
