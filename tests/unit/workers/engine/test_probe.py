"""The probe: an entry's depth is trusted only where its states are like the true ones."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from tests.unit.workers.engine.reference import Decoder
from tests.unit.workers.tiny import TINY, Answer, drain, engine_of, prompt_of, request_of, run_one, tiny_model
from workers.api import DepthLimiter, GenerateRequest
from workers.bicache import depth
from workers.bicache.depth import Finding, nominal_suffix_length
from workers.config import BiCacheConfig
from workers.engine import builder
from workers.engine.engine import Engine
from workers.engine.probe import similarities
from workers.errors import StepFailedError
from workers.models.loader import LoadedModel

PREFIX, SUFFIX = 24, 8
TABLE = {0: 0, 50: 3}


def blind_model(first_seeing: int = TINY.num_layers) -> LoadedModel:
    """Return a model whose rows don't see each other before layer `first_seeing`: there, prefix states are true."""
    loaded = tiny_model(2, depth_table=TABLE)
    for layer in loaded.model.layers[:first_seeing]:  # type: ignore[attr-defined]
        layer.o.weight.zero_()
    return loaded


def guarded(loaded: LoadedModel) -> Engine:
    return engine_of(loaded, bicache=BiCacheConfig(probe_positions=8, refresh_interval=4))


def ask(name: str = "r", seed: int = 9) -> GenerateRequest:
    prompt = prompt_of(PREFIX) + prompt_of(4, seed)
    return request_of(prompt, SUFFIX, prefixes=[PREFIX], request_id=name, policy="lean", block_length=4, num_steps=8)


def depth_and_cached(engine: Engine, request: GenerateRequest) -> tuple[int, int]:
    usage = run_one(engine, request).usage
    assert usage is not None
    return usage.reuse_depth, usage.cached_tokens


def test_true_states_are_reused() -> None:
    engine = guarded(blind_model())
    assert depth_and_cached(engine, ask("a")) == (3, 0)
    assert depth_and_cached(engine, ask("b", seed=1)) == (3, PREFIX)


def test_the_layer_behind_the_reused_ones_counts() -> None:
    """Layer 1 sees the suffix, so layer 2's K/V are false; layers 0 and 1 have true ones. Kept: depths 3 and 1."""
    engine = guarded(blind_model(first_seeing=1))
    assert depth_and_cached(engine, ask("a")) == (1, 0)
    assert depth_and_cached(engine, ask("b")) == (1, PREFIX)


def test_false_states_are_not_reused_and_the_answer_is_that_of_depth_zero() -> None:
    loaded = tiny_model(2, depth_table=TABLE)
    request = ask()
    answer = run_one(guarded(loaded), request)
    assert answer.usage is not None
    assert answer.usage.reuse_depth == 0
    decoder = Decoder(loaded, request.token_ids, SUFFIX, PREFIX, depth=0, interval=4)
    assert answer.token_ids == decoder.lean(4, 8)


def test_the_finding_does_not_depend_on_which_request_is_first() -> None:
    depths = [
        [depth_and_cached(engine, ask(seed=seed))[0] for seed in order]
        for order in ((1, 2), (2, 1))
        for engine in (guarded(blind_model(first_seeing=1)),)
    ]
    assert depths == [[1, 1], [1, 1]]


@pytest.mark.parametrize("happens", ["widened", "retired"])
def test_an_entry_that_changes_is_still_probed_for_the_request_that_waits(happens: str) -> None:
    """A longer canvas is another ratio, for which the entry's depth is yet to be found out."""
    engine = guarded(blind_model())
    run_one(engine, ask("a"))
    engine.submit(replace(ask("b"), max_tokens=20))
    deeper = replace(ask("c"), params=replace(ask().params, reuse_depth=TINY.num_layers))
    if happens == "widened":
        engine.submit(deeper)
    engine.scheduler.schedule()
    if happens == "retired":
        engine.with_entries(lambda entries: entries.retire(ask().prefixes[0].key, successor=None))
    answers = {"b": Answer(), "c": Answer()}
    drain(engine, answers)
    usage = answers["b"].usage
    assert usage is not None
    assert (usage.reuse_depth, usage.cached_tokens) == (3, PREFIX)
    engine.check_integrity()


def test_the_answer_says_what_lowered_its_depth() -> None:
    usage = run_one(guarded(blind_model(first_seeing=1)), ask()).usage
    assert usage is not None
    assert (usage.prefix_tokens, usage.reuse_depth, usage.depth_limited_by) == (PREFIX, 1, DepthLimiter.PROBE)
    free = run_one(guarded(blind_model()), ask()).usage
    assert free is not None
    assert (free.prefix_tokens, free.reuse_depth, free.depth_limited_by) == (PREFIX, 3, None)


def test_a_probes_finding_does_not_depend_on_the_depths_that_the_entry_keeps() -> None:
    """Bit for bit: a finding may lie at the threshold."""
    loaded = tiny_model(2, depth_table=TABLE)
    found = []
    for kept in ({3}, {1, 2, 3, 4}):
        engine = guarded(loaded)
        cache = engine.scheduler._cache
        handle = cache.admit(ask().prefixes[0].key, ask().token_ids[:PREFIX], kept)
        assert handle is not None
        engine.runner.builder.build(handle.entry)
        with torch.inference_mode():
            found.append(similarities(handle.entry, 60, loaded.model, engine._memory.storage, most=3, num_positions=8))
    assert found[0] == found[1]


def test_a_prefix_whose_probe_is_forgotten_is_probed_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(depth, "MAX_REMEMBERED_KEYS", 1)
    engine = guarded(blind_model(first_seeing=1))
    first = depth_and_cached(engine, ask("a"))
    other = request_of(prompt_of(PREFIX + 4, 77), SUFFIX, prefixes=[PREFIX], request_id="b", policy="lean")
    run_one(engine, other)
    assert depth_and_cached(engine, ask("c")) == (first[0], PREFIX)


def test_the_published_policies_go_by_the_table_alone() -> None:
    engine = guarded(tiny_model(2, depth_table=TABLE))
    prompt = prompt_of(PREFIX + 4)
    for policy in ("bicache", "bicache-dual"):
        request = request_of(prompt, SUFFIX, prefixes=[PREFIX], policy=policy, request_id=policy)
        assert depth_and_cached(engine, request)[0] == 3


def test_an_abort_frees_the_entry_that_was_being_prepared() -> None:
    engine = guarded(blind_model())
    engine.submit(ask())
    engine.scheduler.schedule()
    assert engine.num_used_pages > 0
    engine.abort("r")
    assert engine.num_used_pages == 0
    engine.check_integrity()


@pytest.mark.parametrize("broken", ["build", "probe"])
def test_a_failed_build_or_probe_ends_its_request_and_the_next_one_is_answered(
    monkeypatch: pytest.MonkeyPatch, broken: str
) -> None:
    """Without the entry the answer would differ."""
    engine = guarded(blind_model())
    with monkeypatch.context() as patch:
        if broken == "probe":
            patch.setattr(builder, "similarities", lambda *_, **__: 1 / 0)
        else:
            patch.setattr(engine.runner.builder, "build", lambda _: 1 / 0)
        assert isinstance(run_one(engine, ask()).error, StepFailedError)
    assert engine.num_used_pages == 0
    assert depth_and_cached(engine, ask()) == (3, 0)
    engine.check_integrity()


@pytest.mark.parametrize(
    ("found", "most", "expected"),
    [
        ([1.0, 0.99, 0.95, 0.5], 3, 2),
        ([1.0, 0.5, 0.99, 0.99], 3, 0),
        ([0.5, 1.0], 1, 0),
        ([1.0, 1.0, 1.0, 1.0], 3, 3),
        ([1.0, 1.0, 1.0, 1.0], 4, 4),  # all layers of four
        ([1.0, 1.0, 1.0], 1, 1),  # a deeper probe answers for a shallower one
        ([1.0, 1.0, 0.5], 3, 1),  # and one that found the end for a deeper one
        ([1.0, 1.0], 2, None),
    ],
)
def test_depth_ends_one_before_the_first_layer_that_differs(
    found: list[float], most: int, expected: int | None
) -> None:
    assert Finding.from_similarities(found, 0.9).depth(most, num_layers=4) == expected


def test_the_probes_suffix_is_the_buckets_longest() -> None:
    assert nominal_suffix_length(80, 80, 4096) == 20
    assert nominal_suffix_length(80, 0, 200) == 120
    assert nominal_suffix_length(200, 99, 4096) == 2


def test_similarity_is_one_where_the_suffix_is_not_seen() -> None:
    engine = guarded(blind_model(first_seeing=2))
    engine.submit(ask())
    plan = engine.scheduler.schedule()
    [probed] = engine.runner.run(plan).similarities.values()
    [by_layer] = probed.values()
    torch.testing.assert_close(by_layer[:3], [1.0, 1.0, 1.0], atol=1e-5, rtol=0)
    assert by_layer[3] < 0.99
