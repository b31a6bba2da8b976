"""Decides for many greedy requests at once: the most probable tokens, the most confident positions first."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from workers.decoding.decision import Decision
from workers.decoding.rules import Decoding, Unmasking
from workers.decoding.timetable import Portion
from workers.errors import NonFiniteLogitsError, WorkerError

ROWS_AT_ONCE = 512
"""The number of rows whose logits are held together, which bounds their memory."""


@dataclass(frozen=True)
class Candidates:
    """Holds one request's masked positions, and the number of them to commit."""

    positions: tuple[int, ...]
    """Ascending."""
    portion: Portion
    keeps_probabilities: bool


def is_greedy(decoding: Decoding, positions: Sequence[int], *, wide: bool) -> bool:
    """Return whether `greedy` gives the same decision as `decide`."""
    return (
        decoding.unmasking is Unmasking.LOW_CONFIDENCE
        and not (decoding.changes_distribution or decoding.logit_bias or decoding.is_guided or wide)
        and all(position >= decoding.first_eos for position in positions[:1])
    )


def greedy(
    hidden: Tensor, head: Callable[[Tensor], Tensor], asked: Sequence[Candidates], *, mask_token_id: int
) -> Iterator[Decision | WorkerError]:
    """Yield a decision for each of `asked`, whose hidden states are in order in `hidden` [n, hidden].

    It takes one copy from the device. A request whose logits aren't finite gets an error instead.
    """
    found = [best_tokens(head(rows), mask_token_id) for rows in torch.split(hidden, ROWS_AT_ONCE)]
    tokens, probabilities = torch.cat(found, dim=1).tolist()
    start = 0
    for one in asked:
        own = slice(start, start + len(one.positions))
        start = own.stop
        yield most_confident(one, tokens[own], probabilities[own])


def best_tokens(logits: Tensor, mask_token_id: int) -> Tensor:
    """Return float64 [2, n]: token ids, and their probabilities as the logits' type has them; NaN if a row isn't
    finite. The logits [n, vocab] are overwritten.
    """
    lowest, highest = logits.aminmax(dim=-1)
    probabilities = logits.softmax(-1)
    logits[:, mask_token_id] = -torch.inf
    best = logits.argmax(-1, keepdim=True)
    own = probabilities.gather(-1, best).squeeze(-1).double()
    finite = lowest.isfinite() & highest.isfinite()
    return torch.stack((best.squeeze(-1).double(), own.where(finite, torch.nan)))


def most_confident(
    asked: Candidates, tokens: Sequence[float], probabilities: Sequence[float]
) -> Decision | WorkerError:
    """Choose the positions whose tokens are the most probable, as many as the portion says."""
    if any(probability != probability for probability in probabilities):  # noqa: PLR0124 (NaN)
        return NonFiniteLogitsError()
    order = sorted(range(len(probabilities)), key=lambda index: -probabilities[index])[: asked.portion.count]
    return Decision(
        tuple(asked.positions[index] for index in order),
        tuple(int(tokens[index]) for index in order),
        tuple(probabilities[index] for index in order) if asked.keeps_probabilities else (),
    )
