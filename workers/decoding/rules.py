"""Holds the rule by which one request's logits become committed tokens, with every default resolved."""

from __future__ import annotations

import enum
from dataclasses import dataclass


class Unmasking(enum.Enum):
    """Lists the rules that choose which masked positions a step commits.

    p is the softmax of a position's logits, q the same after temperature, top-p and top-k; x is the token that was
    chosen for the position.
    """

    LOW_CONFIDENCE = "low_confidence"
    """Descending p(x): LLaDA's low-confidence remasking."""
    RANDOM = "random"
    """In random order."""
    ENTROPY = "entropy"
    """Descending sum of q log q (Dream)."""
    TOPK_MARGIN = "topk_margin"
    """Descending difference between the two largest q (Dream)."""
    MASKGIT_PLUS = "maskgit_plus"
    """Descending q(x) (Dream)."""
    ORIGIN = "origin"
    """Each position with the step's rate as its probability (Dream, as in the absorbing diffusion of its training)."""
    THRESHOLD = "threshold"
    """The largest p(x), and every other that reaches the threshold (Fast-dLLM)."""
    FACTOR = "factor"
    """The n-th largest p(x) while it reaches 1 - factor / (n + 1), the first in any case (Fast-dLLM)."""

    @property
    def is_adaptive(self) -> bool:
        """Return whether confidence decides how many tokens a step commits; the timetable then gives the least."""
        return self in {Unmasking.THRESHOLD, Unmasking.FACTOR}


@dataclass(frozen=True)
class Decoding:
    """Holds a request's decoding rule and its numeric parameters."""

    unmasking: Unmasking = Unmasking.LOW_CONFIDENCE
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int | None = None
    logit_bias: tuple[tuple[int, float], ...] = ()
    """Pairs of a token id and the value that is added to its logits."""
    guidance: float = 0.0
    """w: the logits become u + (w + 1)(c - u), where u are the logits with the prompt masked."""
    threshold: float = 0.9
    factor: float = 1.0
    remask: int = 0
    """Committed tokens of the active block, the least probable, that are masked again after each step."""
    first_eos: int = 0
    """EOS is not chosen at positions before this one."""

    @property
    def changes_distribution(self) -> bool:
        """Return whether q differs from p."""
        return self.temperature > 0 or self.top_p < 1 or self.top_k is not None

    @property
    def is_guided(self) -> bool:
        return self.guidance > 0
