"""Every rule against its definition, and what all of them have in common."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.unit.workers.decoding.reference import Draws, Rules
from workers.decoding.adjustment import guide
from workers.decoding.decision import decide
from workers.decoding.rules import Decoding, Unmasking
from workers.decoding.sampling import Sampling
from workers.decoding.timetable import Portion
from workers.errors import NonFiniteLogitsError

VOCAB, EOS, MASK = 12, 10, 11


def sampling(seed: int = 0, *, wide: bool = False, **decoding: object) -> Sampling:
    generator = torch.Generator().manual_seed(seed)
    return Sampling(Decoding(**decoding), lambda: generator, MASK, EOS, wide)  # type: ignore[arg-type]


def logits_of(*best: tuple[int, float]) -> Tensor:
    """Rows of zeros with one larger logit each."""
    logits = torch.zeros(len(best), VOCAB)
    for row, (token, value) in enumerate(best):
        logits[row, token] = value
    return logits


def draws_of(seed: int, num_rows: int, decoding: Decoding) -> Draws:
    """What a generator of this seed gives: tokens' noise only at a temperature, then a number for each row."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.rand(num_rows, VOCAB, dtype=torch.float64, generator=generator) if decoding.temperature else None
    rows = torch.rand(num_rows, dtype=torch.float64, generator=generator)
    return Draws([] if noise is None else noise.tolist(), rows.tolist())


DECODINGS = st.fixed_dictionaries(
    {
        "temperature": st.sampled_from((0.0, 0.0, 0.5, 1.3)),
        "top_p": st.sampled_from((1.0, 0.3, 0.8)),
        "top_k": st.sampled_from((None, 1, 3)),
        "logit_bias": st.sampled_from(((), ((2, 4.0), (5, -3.0)))),
        "threshold": st.sampled_from((0.2, 0.6, 0.9)),
        "factor": st.sampled_from((0.5, 1.0, 2.0)),
        "first_eos": st.sampled_from((0, 15)),
    }
)
PEAKS = st.dictionaries(st.integers(0, VOCAB - 1), st.integers(-8, 8), max_size=2)


@st.composite
def masked_rows(draw: st.DrawFn) -> tuple[list[int], Tensor]:
    """Ascending positions and a row of logits for each.

    Noise keeps scores apart that are equal on paper and not in floating point; ties are rows that are repeated.
    """
    positions = sorted(draw(st.sets(st.integers(0, 29), min_size=1, max_size=9)))
    noise = torch.Generator().manual_seed(draw(st.integers(0, 1 << 16)))
    rows: list[Tensor] = []
    for _ in positions:
        if rows and draw(st.integers(0, 9)) >= 7:
            rows.append(rows[-1])
            continue
        row = 3 * torch.randn(VOCAB, dtype=torch.float64, generator=noise)
        for token, value in draw(PEAKS).items():
            row[token] += value
        rows.append(row)
    return positions, torch.stack(rows)


@pytest.mark.parametrize("unmasking", Unmasking)
@settings(max_examples=60, deadline=None)
@given(rows=masked_rows(), options=DECODINGS, seed=st.integers(0, 1 << 16), data=st.data())
def test_every_rule_is_its_definition(
    unmasking: Unmasking, rows: tuple[list[int], Tensor], options: dict[str, Any], seed: int, data: st.DataObject
) -> None:
    positions, logits = rows
    portion = Portion(data.draw(st.integers(0, len(positions))), data.draw(st.floats(0, 1)))
    decision = decide(logits, positions, portion, sampling(seed, unmasking=unmasking, **options))

    decoding = Decoding(unmasking=unmasking, **options)
    draws = draws_of(seed, len(positions), decoding)
    expected = Rules(decoding, MASK, EOS).commit(logits.tolist(), positions, portion.count, portion.rate, draws)
    assert list(zip(decision.positions, decision.token_ids, strict=True)) == expected


def test_the_most_confident_are_committed_first_and_ties_go_to_the_left() -> None:
    logits = logits_of((0, 1.0), (1, 5.0), (2, 5.0), (0, 9.0), (0, 5.0))
    decision = decide(logits, [10, 11, 12, 13, 14], Portion(3, 0.6), sampling())
    assert decision.positions == (13, 11, 12)
    assert decision.token_ids == (0, 1, 2)


def test_the_mask_token_is_never_chosen_and_still_counts_in_confidence() -> None:
    logits = logits_of((1, 1.0), (1, 1.0))
    logits[0, MASK] = 8.0
    decision = decide(logits, [0, 1], Portion(2, 1.0), sampling())
    assert decision.positions == (1, 0)
    assert decision.token_ids == (1, 1)
    many = logits[:1].repeat(200, 1)
    for choice in ({"temperature": 2.0}, {"temperature": 1.0, "top_k": 1}, {"top_p": 0.1}):
        assert MASK not in decide(many, range(200), Portion(200, 1.0), sampling(**choice)).token_ids


def test_a_threshold_takes_all_that_reach_it_and_always_one() -> None:
    logits = logits_of((3, 8.0), (4, 0.5), (5, 8.0), (6, 1.0))
    rule = sampling(unmasking=Unmasking.THRESHOLD, threshold=0.9)
    assert decide(logits, [0, 1, 2, 3], Portion(1, 0.25), rule).positions == (0, 2)
    assert decide(logits[[1, 3]], [1, 3], Portion(1, 0.5), rule).positions == (3,)
    assert decide(logits[[1, 3]], [1, 3], Portion(2, 1.0), rule).positions == (3, 1), "the timetable's least"


def test_a_factor_stops_at_the_first_failure_even_if_it_is_the_last() -> None:
    """c = .9, .7, .5: with f = 1 the bars are none, 2/3 and 3/4; with f = 0.5 they are none, 5/6 and 7/8."""
    logits = torch.stack(
        [torch.tensor([share] + [(1 - share) / (VOCAB - 1)] * (VOCAB - 1)).log() for share in (0.9, 0.7, 0.5)]
    )
    one = sampling(unmasking=Unmasking.FACTOR, factor=1.0, wide=True)
    half = sampling(unmasking=Unmasking.FACTOR, factor=0.5, wide=True)
    assert decide(logits, [0, 1, 2], Portion(1, 1 / 3), one).positions == (0, 1)
    assert decide(logits, [0, 1, 2], Portion(1, 1 / 3), half).positions == (0,)


def test_origin_unmasks_each_position_with_the_rate_as_its_probability() -> None:
    logits = logits_of((1, 3.0)).repeat(20_000, 1)
    rule = sampling(unmasking=Unmasking.ORIGIN)
    decision = decide(logits, range(20_000), Portion(1, 0.3), rule)
    assert len(decision.positions) / 20_000 == pytest.approx(0.3, abs=0.015)
    assert len(decide(logits, range(20_000), Portion(1, 1.0), rule).positions) == 20_000


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_a_temperature_samples_the_tempered_and_filtered_softmax(temperature: float) -> None:
    row = torch.tensor([2.0, 0.0, 1.0, -1.0, 1.5, *[-50.0] * (VOCAB - 5)])
    rule = sampling(temperature=temperature, top_p=0.95, top_k=3)
    decision = decide(row.repeat(20_000, 1), range(20_000), Portion(20_000, 1.0), rule)
    share = torch.tensor(decision.token_ids).bincount(minlength=VOCAB) / 20_000
    kept = [0, 2, 4]
    torch.testing.assert_close(share[kept], (row[kept] / temperature).softmax(-1), atol=0.015, rtol=0)
    assert share.sum() == share[kept].sum()


@pytest.mark.parametrize("unmasking", [Unmasking.ENTROPY, Unmasking.TOPK_MARGIN, Unmasking.MASKGIT_PLUS])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_the_lowest_temperature_is_greedy_and_sure(unmasking: Unmasking, dtype: torch.dtype) -> None:
    """Even where the mask token has the largest logit; and certainty is a tie."""
    torch.manual_seed(0)
    logits = (8 * torch.randn(6, VOCAB)).to(dtype)
    logits[:, MASK] = torch.tensor([60.0, *[-60.0] * 5])
    lowest = decide(logits, range(6), Portion(6, 1.0), sampling(unmasking=unmasking, temperature=1e-300))
    greedy = decide(logits, range(6), Portion(6, 1.0), sampling())
    assert dict(zip(lowest.positions, lowest.token_ids, strict=True)) == dict(
        zip(greedy.positions, greedy.token_ids, strict=True)
    )
    last = 0 if unmasking is Unmasking.MASKGIT_PLUS else 5
    assert lowest.positions[-1] == last
    assert sorted(lowest.positions[:-1]) == list(lowest.positions[:-1])


def test_bias_moves_tokens_in_and_out() -> None:
    logits = logits_of((1, 5.0))
    assert decide(logits, [0], Portion(1, 1.0), sampling(logit_bias=((1, -100.0), (7, 2.0)))).token_ids == (7,)
    assert logits[0, 1] == 5.0, "the caller's logits stay as they are"


def test_eos_is_not_chosen_before_its_first_position() -> None:
    logits = logits_of((EOS, 9.0), (EOS, 9.0))
    logits[:, 2] = 1.0
    decision = decide(logits, [19, 20], Portion(2, 1.0), sampling(first_eos=20))
    assert dict(zip(decision.positions, decision.token_ids, strict=True)) == {19: 2, 20: EOS}


def test_probabilities_come_along_where_remasking_needs_them() -> None:
    logits = logits_of((1, 1.0), (2, 2.0))
    assert decide(logits, [0, 1], Portion(2, 1.0), sampling()).probabilities == ()
    decision = decide(logits, [0, 1], Portion(2, 1.0), sampling(remask=1, unmasking=Unmasking.ENTROPY))
    expected = [logits[row].softmax(-1).max().item() for row in (1, 0)]
    assert decision.probabilities == pytest.approx(expected)


@pytest.mark.parametrize("poison", [torch.nan, torch.inf])
@pytest.mark.parametrize("unmasking", [Unmasking.LOW_CONFIDENCE, Unmasking.RANDOM])
def test_non_finite_logits_are_an_error(poison: float, unmasking: Unmasking) -> None:
    logits = logits_of((1, poison))
    with pytest.raises(NonFiniteLogitsError):
        decide(logits, [0], Portion(1, 1.0), sampling(unmasking=unmasking))


def test_guidance_pushes_away_from_what_the_model_says_without_the_prompt() -> None:
    conditional, unconditional = torch.tensor([[3.0, 1.0]]), torch.tensor([[1.0, 2.0]])
    assert guide(conditional, unconditional, 0.0).tolist() == [[3.0, 1.0]]
    assert guide(conditional, unconditional, 1.5).tolist() == [[6.0, -0.5]]
