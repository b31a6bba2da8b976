"""Which masked positions to commit, and to what: low-confidence order under a quota (LLaDA, Nie et al. 2025)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from workers.errors import NonFiniteLogitsError
from workers.scheduler.plan import Decision


@dataclass(frozen=True)
class Sampling:
    """How one request turns logits into tokens."""

    temperature: float
    generator: torch.Generator
    """Its own, so that results don't depend on the batch."""
    mask_token_id: int
    wide_confidence: bool
    """Confidence in float64 instead of the logits' dtype."""


def decide(logits: Tensor, positions: Sequence[int], quota: int, sampling: Sampling) -> Decision:
    """Commit `quota` of `positions` (ascending), the most confident first; ties go to the left.

    logits [len(positions), vocab]. Raises NonFiniteLogitsError.
    """
    if not bool(torch.isfinite(logits).all()):
        raise NonFiniteLogitsError("the model returned NaN or infinite logits; check its weights and dtype")
    tokens = choose_tokens(logits, sampling)
    confidence = confidences(logits.double() if sampling.wide_confidence else logits, tokens)
    order = confidence.sort(descending=True, stable=True).indices[:quota].tolist()
    chosen = tokens.tolist()
    return Decision(tuple(positions[index] for index in order), tuple(chosen[index] for index in order))


def choose_tokens(logits: Tensor, sampling: Sampling) -> Tensor:
    """One token a row: argmax of exp(logits) / (-log u)^temperature, u uniform; plain argmax at temperature 0.

    Never the mask token: committed, it would be a hole that nothing fills. Rows whose best token is another one are
    chosen as if it weren't excluded. int64 [n].
    """
    if sampling.temperature > 0:
        wide = logits.double()
        noise = torch.rand(wide.shape, dtype=torch.float64, device=wide.device, generator=sampling.generator)
        scores = (wide - wide.amax(-1, keepdim=True)).exp() / (-noise.log()) ** sampling.temperature
        scores[:, sampling.mask_token_id] = -1.0
    else:
        scores = logits.clone()
        scores[:, sampling.mask_token_id] = -torch.inf
    return scores.argmax(-1)


def confidences(logits: Tensor, tokens: Tensor) -> Tensor:
    """Softmax probability of each row's token, before noise and exclusion."""
    return logits.softmax(-1).gather(-1, tokens.unsqueeze(-1)).squeeze(-1)
