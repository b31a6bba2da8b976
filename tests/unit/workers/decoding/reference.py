"""The decoding rules as their papers state them, on lists of floats: one row at a time, no tensor operations."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from workers.decoding.rules import Decoding, Unmasking

Row = Sequence[float]


def softmax(row: Row) -> list[float]:
    largest = max(row)
    weights = [math.exp(value - largest) for value in row]
    total = sum(weights)
    return [weight / total for weight in weights]


@dataclass(frozen=True)
class Draws:
    """What chance would give: a number in (0, 1) for each token of each row, and one for each row."""

    tokens: Sequence[Row] = field(default_factory=list)
    rows: Row = ()


@dataclass(frozen=True)
class Rules:
    """One request's rules over a vocabulary with these special tokens."""

    decoding: Decoding
    mask: int
    eos: int

    def commit(
        self, rows: Sequence[Row], positions: Sequence[int], count: int, rate: float, draws: Draws
    ) -> list[tuple[int, int]]:
        """(position, token) in the order of commitment."""
        rows = [self.biased(row, position) for row, position in zip(rows, positions, strict=True)]
        tokens = [self.token(row, draws.tokens[i] if draws.tokens else ()) for i, row in enumerate(rows)]
        scores = [
            self.score(row, token, draws.rows[i] if draws.rows else 0.0)
            for i, (row, token) in enumerate(zip(rows, tokens, strict=True))
        ]
        ranking = sorted(range(len(rows)), key=lambda i: (-scores[i], i))
        chosen = self.choose([(scores[i], i) for i in ranking], count, rate)
        return [(positions[i], tokens[i]) for i in chosen]

    def biased(self, row: Row, position: int) -> list[float]:
        biases = dict(self.decoding.logit_bias)
        biased = [value + biases.get(token, 0.0) for token, value in enumerate(row)]
        if position < self.decoding.first_eos:
            biased[self.eos] = -math.inf
        return biased

    def survivors(self, row: Row) -> list[int]:
        """Tokens that top-p and top-k leave: the smallest set of the likeliest whose mass exceeds p, and of it k."""
        decoding = self.decoding
        probabilities = softmax([value / (decoding.temperature or 1.0) for value in row])
        ranked = sorted(range(len(row)), key=lambda token: (-probabilities[token], token))
        kept, mass = [], 0.0
        for token in ranked:
            if decoding.top_p < 1 and mass > decoding.top_p:
                break
            kept.append(token)
            mass += probabilities[token]
        kept = kept[: decoding.top_k or len(row)]
        return sorted({*kept, next(token for token in ranked if token != self.mask)})

    def token(self, row: Row, noise: Row) -> int:
        """The likeliest, or with Gumbel noise g = -log(-log u) the largest logit / T + g; never the mask."""
        choosable = [token for token in self.survivors(row) if token != self.mask]
        if self.decoding.temperature == 0:
            return max(choosable, key=lambda token: (row[token], -token))
        return max(choosable, key=lambda t: row[t] / self.decoding.temperature - math.log(-math.log(noise[t])))

    def score(self, row: Row, token: int, chance: float) -> float:
        kept = self.survivors(row)
        weights = softmax([row[token] / (self.decoding.temperature or 1.0) for token in kept])
        match self.decoding.unmasking:
            case Unmasking.RANDOM | Unmasking.ORIGIN:
                return chance
            case Unmasking.ENTROPY:
                return sum(weight * math.log(weight + 1e-10) for weight in weights)
            case Unmasking.TOPK_MARGIN:
                first, second = sorted([*weights, 0.0], reverse=True)[:2]
                return first - second
            case Unmasking.MASKGIT_PLUS:
                return weights[kept.index(token)]
            case _:
                return softmax(row)[token]

    def choose(self, ranking: list[tuple[float, int]], count: int, rate: float) -> list[int]:
        match self.decoding.unmasking:
            case Unmasking.ORIGIN:
                return [i for score, i in ranking if score < rate]
            case Unmasking.THRESHOLD:
                passed = sum(score >= self.decoding.threshold for score, _ in ranking)
                return [i for _, i in ranking[: max(1, count, passed)]]
            case Unmasking.FACTOR:
                passed = 0
                while passed < len(ranking) and ranking[passed][0] >= 1 - self.decoding.factor / (passed + 2):
                    passed += 1
                return [i for _, i in ranking[: max(1, count, passed)]]
            case _:
                return [i for _, i in ranking[:count]]
