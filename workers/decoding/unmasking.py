"""Chooses the masked positions that a step commits: each gets a score, and a rule says how many of the best to commit.

`workers.decoding.rules.Unmasking` says what each rule means.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

import torch
from torch import Tensor

from workers.decoding.rules import Decoding, Unmasking
from workers.decoding.sampling import Prediction, Sampling
from workers.decoding.timetable import Portion

Draw = Callable[[], torch.Generator]
"""Returns the request's generator."""

Scorer = Callable[[Prediction, Draw], Tensor]
"""Maps a prediction of n positions to scores [n]; the best position has the highest."""

LOG_GUARD = 1e-10
"""The constant that Dream adds to the argument of the logarithm."""


def probability(prediction: Prediction, _: Draw) -> Tensor:
    return prediction.probabilities


def filtered_probability(prediction: Prediction, _: Draw) -> Tensor:
    return prediction.filtered_probabilities


def margin(prediction: Prediction, _: Draw) -> Tensor:
    first, second = prediction.distribution.topk(2).values.unbind(-1)
    return first - second


def negative_entropy(prediction: Prediction, _: Draw) -> Tensor:
    q = prediction.distribution
    return (q * (q + LOG_GUARD).log()).sum(-1)


def random_score(prediction: Prediction, generator: Draw) -> Tensor:
    """Draw scores uniformly from [0, 1)."""
    device = prediction.token_ids.device
    return torch.rand(len(prediction.token_ids), dtype=torch.float64, device=device, generator=generator())


SCORERS: Mapping[Unmasking, Scorer] = MappingProxyType(
    {
        Unmasking.LOW_CONFIDENCE: probability,
        Unmasking.RANDOM: random_score,
        Unmasking.ENTROPY: negative_entropy,
        Unmasking.TOPK_MARGIN: margin,
        Unmasking.MASKGIT_PLUS: filtered_probability,
        Unmasking.ORIGIN: random_score,
        Unmasking.THRESHOLD: probability,
        Unmasking.FACTOR: probability,
    }
)


def rank(prediction: Prediction, portion: Portion, sampling: Sampling) -> list[int]:
    """Return indices of the positions to commit, the best first; equal scores go to the left."""
    scores = SCORERS[sampling.decoding.unmasking](prediction, sampling.generator)
    ranked, order = scores.sort(descending=True, stable=True)
    return order[positions_to_commit(ranked, portion, sampling.decoding)].tolist()


def positions_to_commit(ranked: Tensor, portion: Portion, decoding: Decoding) -> slice:
    """Return the slice of the ranked positions to commit, given their scores in descending order."""
    match decoding.unmasking:
        case Unmasking.ORIGIN:
            return slice(int((ranked >= portion.rate).sum()), None)
        case Unmasking.THRESHOLD:
            passed = ranked >= decoding.threshold
        case Unmasking.FACTOR:
            ordinal = torch.arange(1, len(ranked) + 1, dtype=ranked.dtype, device=ranked.device)
            passed = ranked >= 1 - decoding.factor / (ordinal + 1)  # the bar rises: after a failure all fail
        case _:
            return slice(portion.count)
    return slice(max(1, portion.count, int(passed.sum())))
