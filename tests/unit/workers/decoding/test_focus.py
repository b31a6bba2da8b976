from __future__ import annotations

import pytest
import torch

from tests.unit.workers.engine.reference import Decoder
from tests.unit.workers.tiny import engine_of, prompt_of, request_of, run_one, tiny_model
from workers.decoding.focus import Focus, FocusConfig, ObservedAttention, attention_to_prefix
from workers.engine.engine import Engine
from workers.errors import InvalidRequestError
from workers.scheduler.policy import Pass

PREFIX = 20


def passes_of(engine: Engine, **params: object) -> list[Pass]:
    """The passes of one `lean` request of four blocks with four steps each, a refresh due at each."""
    engine.submit(
        request_of(
            prompt_of(30),
            32,
            prefixes=[PREFIX],
            policy="lean",
            block_length=8,
            num_steps=16,
            refresh_interval=4,
            reuse_depth=2,
            **params,
        )
    )
    passes = []
    while engine.has_work:
        plan = engine.scheduler.schedule()
        passes += [scheduled.run for scheduled in plan.passes]
        engine.scheduler.apply(plan, engine.runner.run(plan))
    return passes


def attention(weights: list[list[float]], positions: tuple[int, ...] = (10, 11)) -> ObservedAttention:
    return ObservedAttention(positions, torch.tensor(weights))


def test_without_flags_every_block_refreshes_the_whole_prefix() -> None:
    passes = passes_of(engine_of(tiny_model()))
    assert [len(run.deep) for run in passes] == [20, 0, 0, 0] * 4
    assert [len(run.rows) for run in passes] == [42, 8, 8, 8] * 4


def test_later_refreshes_recompute_the_anchors_alone() -> None:
    passes = passes_of(engine_of(tiny_model()), anchors=0.2)
    assert [len(run.deep) for run in passes[::4]] == [20, 4, 4, 4]


@pytest.mark.parametrize("seed", range(3))
def test_anchors_are_the_prefix_rows_that_a_plain_decoder_finds_most_attended(seed: int) -> None:
    """The rows that are still masked after the first block decide, by what they saw in that block's refresh."""
    loaded, depth, still_masked = tiny_model(seed), 2, 30 + 8
    plain = Decoder(loaded, prompt_of(30), 32, prefix=PREFIX, depth=depth)
    entry, states = plain.entry()
    x, positions = plain.rows(PREFIX, plain.total)
    for index in range(depth):
        x, _ = plain.layer(index, x, positions, [entry[index]])
    everywhere = torch.arange(plain.total)
    x, _ = plain.layer(depth, torch.cat((states[depth], x)), everywhere)
    q, k, _ = loaded.model.stack[depth + 1].qkv(x, *loaded.model.rope(everywhere))  # the middle of layers 2 and 3
    weights = (torch.einsum("qhd,khd->hqk", q, k) / q.shape[-1] ** 0.5).softmax(-1).mean(0)
    seen = weights[still_masked:, :PREFIX].sum(0)
    most_attended = sorted(sorted(range(PREFIX), key=lambda row: -float(seen[row]))[:4])

    passes = passes_of(engine_of(loaded), anchors=0.2, min_tokens=32)

    assert list(passes[4].deep) == most_attended


def test_anchors_of_the_whole_prefix_change_nothing() -> None:
    loaded, prompt = tiny_model(1), prompt_of(30)
    whole, all_ = (
        run_one(engine_of(loaded), request_of(prompt, 24, prefixes=[PREFIX], reuse_depth=2, block_length=8, **flags))
        for flags in ({}, {"anchors": 1.0})
    )
    assert whole.token_ids == all_.token_ids


def test_refreshes_are_skipped_while_attention_stays_up_to_the_cap() -> None:
    """A model whose rows all look alike everywhere never drifts."""
    loaded = tiny_model()
    for layer in loaded.model.layers:  # type: ignore[attr-defined]
        layer.q.weight.zero_()
    passes = passes_of(engine_of(loaded), skip_refresh=True)
    assert [len(run.deep) for run in passes[::4]] == [20, 0, 0, 0]


def test_refreshes_are_not_skipped_once_attention_drifts() -> None:
    passes = passes_of(engine_of(tiny_model()), skip_refresh=True)
    assert [len(run.deep) for run in passes[::4]] == [20, 20, 20, 20]


def test_the_cap_on_skips() -> None:
    focus = Focus(FocusConfig(1.0, skip_refresh=True, skip_similarity=0.9, max_skips=1))
    assert focus.has_drifted
    focus.observe(attention([[1.0, 0.0], [0.0, 1.0]]), refreshed=True)
    assert focus.has_drifted
    focus.observe(attention([[1.0, 0.1]], (10,)), refreshed=False)
    assert not focus.has_drifted
    focus.skip()
    assert focus.has_drifted
    focus.observe(attention([[1.0, 0.0]], (11,)), refreshed=True)
    focus.observe(attention([[0.0, 1.0]], (11,)), refreshed=False)
    assert focus.has_drifted


def test_attention_drifts_away_from_the_last_refresh_and_not_from_the_last_pass() -> None:
    """Each pass is like the one before it; the third is too far from the refresh. Only rows seen both times count."""
    focus = Focus(FocusConfig(1.0, skip_refresh=True, skip_similarity=0.9, max_skips=9))
    focus.observe(attention([[1.0, 0.0], [0.0, 1.0]]), refreshed=True)
    drifted = []
    for degrees in (12.0, 24.0, 36.0, 24.0):
        angle = torch.tensor(degrees).deg2rad()
        focus.observe(attention([[angle.cos().item(), angle.sin().item()], [1.0, 0.0]], (10, 12)), refreshed=False)
        drifted.append(focus.has_drifted)
    assert drifted == [False, False, True, False]
    focus.observe(attention([[0.0, 1.0]], (12,)), refreshed=False)
    assert focus.has_drifted, "nothing can be compared"


def test_anchors_are_what_the_rows_still_masked_look_at() -> None:
    focus = Focus(FocusConfig(0.5, skip_refresh=False, skip_similarity=0.9, max_skips=1))
    focus.choose_anchors(frozenset({10, 11}))
    assert focus.anchors is None
    focus.observe(attention([[0.5, 0.0, 0.3, 0.1], [0.0, 0.2, 0.1, 0.7]]), refreshed=True)
    for masked, anchors in (({10}, (0, 2)), ({11}, (1, 3)), ({10, 11}, (0, 3))):
        focus.choose_anchors(frozenset(masked))
        assert focus.anchors == anchors


@pytest.mark.parametrize("flags", [{"anchors": 0.2}, {"skip_refresh": True}, {"anchors": 0.2, "skip_refresh": True}])
def test_scheduling_reads_no_tensor(flags: dict[str, object], monkeypatch: pytest.MonkeyPatch) -> None:
    """Each read would wait for the GPU, for every request and at every step."""
    engine = engine_of(tiny_model(depth_table={0: 2}))
    for seed in range(3):
        prompt = prompt_of(30, seed)
        engine.submit(request_of(prompt, 32, prefixes=[PREFIX], block_length=8, request_id=str(seed), **flags))
    while engine.has_work:
        with monkeypatch.context() as patch:
            for name in ("item", "tolist", "__bool__", "__int__", "__float__", "cpu"):
                patch.setattr(torch.Tensor, name, lambda *_: pytest.fail("a tensor is read"))
            plan = engine.scheduler.schedule()
        engine.scheduler.apply(plan, engine.runner.run(plan))
    assert engine.stats().num_forwards > 3 * 4


@pytest.mark.parametrize("kv_heads", [4, 2])
def test_attention_weights_are_those_of_the_softmax(kv_heads: int) -> None:
    q, k = torch.randn(3, 4, 8), torch.randn(9, kv_heads, 8)
    weights = torch.stack(
        [(q[:, head] @ k[:, head * kv_heads // 4].T / 8**0.5).softmax(-1)[:, :5] for head in range(4)]
    ).mean(0)
    torch.testing.assert_close(attention_to_prefix(q, k, 5), weights)


@pytest.mark.parametrize(
    ("param", "params"),
    [
        ("anchors", {"anchors": 0.0}),
        ("anchors", {"anchors": 0.2, "policy": "bicache"}),
        ("skip_refresh", {"skip_refresh": True, "policy": "none"}),
    ],
)
def test_flags_are_checked(param: str, params: dict[str, object]) -> None:
    with pytest.raises(InvalidRequestError, match=param) as refusal:
        engine_of(tiny_model()).submit(request_of([1], 8, **params))
    assert refusal.value.param == param
