from __future__ import annotations

import pytest
import torch

from workers.engine.unmask import Sampling, choose_tokens, decide
from workers.errors import NonFiniteLogitsError

MASK = 3


def sampling(temperature: float = 0.0, seed: int = 0) -> Sampling:
    return Sampling(temperature, torch.Generator().manual_seed(seed), MASK, wide_confidence=False)


def test_the_most_confident_are_committed_first_and_ties_go_to_the_left() -> None:
    logits = torch.tensor([[1.0, 0, 0, 0], [0, 5.0, 0, 0], [0, 0, 5.0, 0], [9.0, 0, 0, 0], [5.0, 0, 0, 0]])
    decision = decide(logits, [10, 11, 12, 13, 14], 3, sampling())
    assert decision.positions == (13, 11, 12)
    assert decision.token_ids == (0, 1, 2)


def test_the_mask_token_is_never_chosen_and_still_counts_in_confidence() -> None:
    logits = torch.tensor([[0.0, 1.0, 0.0, 8.0], [0.0, 1.0, 0.0, 0.0]])
    decision = decide(logits, [0, 1], 2, sampling())
    assert decision.positions == (1, 0)
    assert decision.token_ids == (1, 1)
    assert MASK not in choose_tokens(logits.repeat(200, 1), sampling(temperature=2.0)).tolist()


def test_temperature_one_samples_the_softmax() -> None:
    """exp(logit) / -log(u) is largest with the softmax's probability (Gumbel-max)."""
    logits = torch.tensor([2.0, 0.0, 1.0, -torch.inf]).repeat(20_000, 1)
    logits[:, MASK] = -50.0
    share = choose_tokens(logits, sampling(temperature=1.0)).bincount(minlength=4) / len(logits)
    torch.testing.assert_close(share, logits[0].softmax(-1), atol=0.02, rtol=0)


@pytest.mark.parametrize("poison", [torch.nan, torch.inf])
def test_non_finite_logits_are_an_error(poison: float) -> None:
    with pytest.raises(NonFiniteLogitsError):
        decide(torch.tensor([[0.0, poison, 0.0, 0.0]]), [0], 1, sampling())
