r"""Chooses the token that each masked position would get.

    logits ---> p = softmax(logits)
        |
        +----> / temperature ---> top-p ---> top-k ---> q = softmax(what is left) ---> chosen token x

The mask token counts in p and q, as in the published samplers, but is never chosen: a committed mask token would
remain a hole.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor

from workers.decoding.rules import Decoding

MIN_TEMPERATURE = 1e-30
"""Lower temperatures count as this one, which float32 still distinguishes from 0."""


Generator = torch.Generator


def seeded_generator(seed: int, device: torch.device) -> Generator:
    """Return a generator on `device` with this seed, so that results can be reproduced."""
    return torch.Generator(device).manual_seed(seed)


@dataclass(frozen=True)
class Sampling:
    """Holds everything besides its logits that a request's decisions depend on."""

    decoding: Decoding
    generator: Callable[[], Generator]
    """Returns the request's own generator, so that results don't depend on the batch; called only to draw."""
    mask_token_id: int
    eos_token_id: int
    wide: bool
    """Probabilities in float64 instead of the logits' dtype."""


@dataclass(frozen=True)
class Prediction:
    """Holds the model's prediction at n masked positions, and the token that is chosen for each."""

    logits: Tensor
    """[n, vocab]"""
    filtered: Tensor
    """[n, vocab], tempered; -inf for tokens that top-p and top-k leave out."""
    token_ids: Tensor
    """int64 [n]"""

    @cached_property
    def probabilities(self) -> Tensor:
        """Return p(x) [n]."""
        return self._at_tokens(self.logits.softmax(-1))

    @cached_property
    def distribution(self) -> Tensor:
        """Return q [n, vocab]."""
        return self.filtered.softmax(-1)

    @property
    def filtered_probabilities(self) -> Tensor:
        """Return q(x) [n]."""
        return self._at_tokens(self.distribution)

    def _at_tokens(self, values: Tensor) -> Tensor:
        return values.gather(-1, self.token_ids.unsqueeze(-1)).squeeze(-1)


def predict(logits: Tensor, sampling: Sampling) -> Prediction:
    """Choose a token for each of the rows [n, vocab]."""
    if sampling.wide:
        logits = logits.double()
    choosable = logits.clone()
    choosable[:, sampling.mask_token_id] = -torch.inf
    best = choosable.argmax(-1)
    if not sampling.decoding.changes_distribution:
        return Prediction(logits, logits, best)
    tempered = temper(logits, sampling.decoding.temperature)
    keep = in_top_p(tempered, sampling.decoding.top_p) & in_top_k(tempered, sampling.decoding.top_k)
    out = ~keep.scatter(-1, best.unsqueeze(-1), value=True)  # the mask token alone may have passed
    is_greedy = sampling.decoding.temperature == 0
    token_ids = best if is_greedy else sample(choosable.masked_fill(out, -torch.inf), sampling)
    return Prediction(logits, tempered.masked_fill(out, -torch.inf), token_ids)


def temper(logits: Tensor, temperature: float) -> Tensor:
    """Divide logits by a temperature above 0, with the largest of a row at 0, so that nothing overflows."""
    if temperature == 0:
        return logits
    return (logits - logits.amax(-1, keepdim=True)) / max(temperature, MIN_TEMPERATURE)


def sample(logits: Tensor, sampling: Sampling) -> Tensor:
    """Return the argmax of exp(logits) / (-log u)^temperature, u uniform, in float64, as LLaDA does it: int64 [n].

    This draws from softmax(logits / temperature) (Gumbel-max), and never a token whose logit is -inf.
    """
    wide = logits.double()
    noise = torch.rand(wide.shape, dtype=torch.float64, device=wide.device, generator=sampling.generator())
    scores = (wide - wide.amax(-1, keepdim=True)).exp() / (-noise.log()) ** sampling.decoding.temperature
    return scores.masked_fill(wide.isneginf(), -1.0).argmax(-1)


def in_top_p(logits: Tensor, top_p: float) -> Tensor:
    """Mark the smallest set of most probable tokens whose total probability exceeds `top_p`: bool [n, vocab]."""
    if top_p >= 1:
        return torch.ones_like(logits, dtype=torch.bool)
    ranked, order = logits.sort(descending=True, stable=True)
    before = ranked.softmax(-1).cumsum(-1)[:, :-1]
    return torch.zeros_like(logits, dtype=torch.bool).scatter(-1, order, F.pad(before <= top_p, (1, 0), value=True))


def in_top_k(logits: Tensor, top_k: int | None) -> Tensor:
    """Mark the `top_k` most probable tokens, and those as probable as the last of them: bool [n, vocab]."""
    if top_k is None or top_k >= logits.shape[-1]:
        return torch.ones_like(logits, dtype=torch.bool)
    return logits >= logits.topk(top_k).values[:, -1:]
