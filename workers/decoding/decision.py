"""Decides which tokens one step commits for one request."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from workers.decoding.adjustment import adjust
from workers.decoding.focus import ObservedAttention
from workers.decoding.sampling import Sampling, predict
from workers.decoding.timetable import Portion
from workers.decoding.unmasking import rank
from workers.errors import NonFiniteLogitsError


@dataclass(frozen=True)
class Decision:
    """Holds the positions that one step commits for a request, and their tokens."""

    positions: tuple[int, ...] = ()
    token_ids: tuple[int, ...] = ()
    probabilities: tuple[float, ...] = ()
    """Probabilities of the tokens before temperature; empty unless the request remasks."""
    attention: ObservedAttention | None = None
    """Attention of the sequence's masked rows; None unless it is watched."""


def decide(logits: Tensor, positions: Sequence[int], portion: Portion, sampling: Sampling) -> Decision:
    """Choose the tokens to commit at a portion of the masked `positions` (ascending); ties go to the left.

    Logits are [len(positions), vocab], guidance included. Raises NonFiniteLogitsError.
    """
    if not bool(torch.isfinite(logits).all()):
        raise NonFiniteLogitsError
    prediction = predict(adjust(logits, positions, sampling), sampling)
    order = rank(prediction, portion, sampling)
    chosen = prediction.token_ids[order].tolist()
    kept = prediction.probabilities[order].tolist() if sampling.decoding.remask else ()
    return Decision(tuple(positions[index] for index in order), tuple(chosen), tuple(kept))
