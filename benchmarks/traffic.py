"""What a number of clients ask, the same for whoever is asked, and how long the answers took."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace
from random import Random

from workers.api import DecodingParams


@dataclass(frozen=True)
class Traffic:
    """`streams` clients, each of which sends its next request when the last one is answered, `rounds` in all.

    All prompts begin with the same `prefix` tokens and end with `user` tokens of their own.
    """

    streams: int
    rounds: int
    prefix: int
    user: int
    canvas: int
    num_steps: int
    block: int
    vocab_size: int
    ends_early: bool
    """Whether the model would end an answer before the canvas is full, if it were let."""

    @property
    def params(self) -> DecodingParams:
        """In which every answer fills its canvas."""
        least = self.canvas if self.ends_early else 0
        return DecodingParams(num_steps=self.num_steps, block_length=self.block, min_tokens=least)

    @property
    def num_requests(self) -> int:
        return self.streams * self.rounds

    @property
    def canvas_tokens(self) -> int:
        return self.num_requests * self.canvas

    def alone(self, rounds: int) -> Traffic:
        """The same requests, one at a time."""
        return replace(self, streams=1, rounds=rounds)

    def prompt(self, stream: int, turn: int) -> tuple[int, ...]:
        """Token ids of the `turn`-th request of a stream. Turn -1 is for warming up."""
        shared, own = Random("prefix"), Random(f"{stream} {turn}")
        words = itertools.chain(itertools.repeat(shared, self.prefix), itertools.repeat(own, self.user))
        return tuple(word.randrange(self.vocab_size // 2) for word in words)


@dataclass(frozen=True)
class Timing:
    """Of one traffic, as its clients saw it."""

    elapsed_s: float
    """From the first request to the last answer's end."""
    first_s: Sequence[float]
    """Of each request, until its first text."""
    last_s: Sequence[float]
    """Of each request, until its last token."""
    num_chunks: int
    """Pieces in which the answers came."""

    @property
    def p50_s(self) -> float:
        return statistics.median(self.last_s)

    @property
    def p99_s(self) -> float:
        return percentile(self.last_s, 99)

    @property
    def mean_s(self) -> float:
        return statistics.fmean(self.last_s)


def percentile(values: Sequence[float], percent: int) -> float:
    """The smallest of `values` that so many percent of them don't exceed."""
    ordered = sorted(values)
    return ordered[-(-len(ordered) * percent // 100) - 1]
