"""Traffic is what clients ask, the same of every server or engine, and a timing is how long the answers took."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace
from random import Random

from workers.api import DecodingParams


@dataclass(frozen=True)
class Traffic:
    """States what `streams` clients ask, each of which sends `rounds` requests, one after the other.

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
    """True where the model can end an answer before the canvas is full."""

    @property
    def params(self) -> DecodingParams:
        """Return parameters with which every answer fills its canvas."""
        min_tokens = self.canvas if self.ends_early else 0
        return DecodingParams(num_steps=self.num_steps, block_length=self.block, min_tokens=min_tokens)

    @property
    def num_requests(self) -> int:
        return self.streams * self.rounds

    @property
    def canvas_tokens(self) -> int:
        return self.num_requests * self.canvas

    def alone(self, rounds: int) -> Traffic:
        """Return the traffic of one client that sends `rounds` of the same requests."""
        return replace(self, streams=1, rounds=rounds)

    def prompt(self, stream: int, turn: int) -> tuple[int, ...]:
        """Return the token ids of a stream's request number `turn`; number -1 is for warming up."""
        shared, own = Random("prefix"), Random(f"{stream} {turn}")
        generators = itertools.chain(itertools.repeat(shared, self.prefix), itertools.repeat(own, self.user))
        return tuple(generator.randrange(self.vocab_size // 2) for generator in generators)


@dataclass(frozen=True)
class Timing:
    """Holds the times of one traffic, as its clients measured them."""

    elapsed_s: float
    """Time from the first request to the end of the last answer."""
    first_s: Sequence[float]
    """Time of each request until its first text."""
    last_s: Sequence[float]
    """Time of each request until its last token."""
    num_chunks: int
    """Number of pieces in which the answers came."""

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
    """Return the smallest of `values` that at least `percent` % of them don't exceed."""
    ordered = sorted(values)
    return ordered[-(-len(ordered) * percent // 100) - 1]
