"""How many shallow layers of a prefix may be reused, by the prefix's share of the sequence."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from itertools import takewhile

from cache_service.types import DepthLimit, PrefixKey
from workers.models.base import ModelConfig

PROBE_BUCKET_PERCENT = 10
"""Ratios from one multiple of it to the next share a probe, and a limit."""


def ratio_percent(num_prefix: int, num_total: int) -> int:
    """The prefix's share of prompt and canvas in percent, halves to even: r in the paper."""
    return round(100 * num_prefix / num_total)


@dataclass(frozen=True)
class DepthTable:
    """Ratio in percent (lower edge) -> reuse depth; a ratio below every edge reuses nothing."""

    steps: Mapping[int, int]

    @classmethod
    def for_model(cls, config: ModelConfig, own: Mapping[int, int] | None) -> DepthTable:
        """The model's own table, else the published one for its dimensions, else no reuse: depth needs evidence."""
        table = own if own is not None else published_table(config)
        return cls({ratio: min(depth, config.num_layers) for ratio, depth in (table or {0: 0}).items()})

    def near(self, depth: int, count: int) -> frozenset[int]:
        """`depth` and the table's depths around it, `count` in all: what an entry keeps boundary states for.

        Half are deeper, for requests whose prefix weighs more; the rest shallower, and where the table has too few of
        them, halves: depths to fall back on.
        """
        deeper = sorted({other for other in self.steps.values() if other > depth})
        shallower = sorted({other for other in self.steps.values() if 0 < other < depth}, reverse=True)
        chosen = [depth, *deeper[: (count - 1) // 2]]
        chosen += shallower[: count - len(chosen)]
        while len(chosen) < count and min(chosen) > 1:
            chosen.append(min(chosen) // 2)
        return frozenset(chosen)

    def lookup(self, ratio: int) -> int:
        """The depth at the largest edge that `ratio` reaches."""
        reached = [edge for edge in self.steps if edge <= ratio]
        return self.steps[max(reached)] if reached else 0

    def most_within(self, bucket: int) -> int:
        """The deepest of the depths at ratios of the bucket."""
        return max(self.lookup(ratio) for ratio in range(bucket, bucket + PROBE_BUCKET_PERCENT))


class DepthLimits:
    """The most layers that replicas found to be reusable, where that is less than the table says.

    A limit counts unless it was found under an older profile than ours; under one profile it only falls.
    """

    def __init__(self, profile: int) -> None:
        self.profile = profile
        self._limits: dict[PrefixKey, dict[int, DepthLimit]] = {}

    def take(self, limit: DepthLimit) -> None:
        known = self._limits.get(limit.key, {}).get(limit.bucket)
        if limit.profile < self.profile:
            return
        if known is None or (limit.profile, -limit.depth) > (known.profile, -known.depth):
            self._limits.setdefault(limit.key, {})[limit.bucket] = limit

    def depth(self, key: PrefixKey, bucket: int) -> int | None:
        """None where nothing was found."""
        limit = self._limits.get(key, {}).get(bucket)
        return limit.depth if limit else None


def trusted_depth(similarities: Sequence[float], kept_depth: int, threshold: float) -> int:
    """The largest depth whose layers, and the one behind them, all reach `threshold`.

    `similarities` are those of layers 0..kept_depth, or to the last layer where all are kept. The layer behind counts
    because its K/V come from a reused state, too.
    """
    num_similar = sum(1 for _ in takewhile(lambda similarity: similarity >= threshold, similarities))
    return kept_depth if num_similar == len(similarities) else max(0, num_similar - 1)


def nominal_suffix(num_prefix: int, edge: int, context_length: int) -> int:
    """The longest suffix with which a prefix makes up `edge` percent or more, within the context."""
    room = context_length - num_prefix
    return max(1, min(room, num_prefix * (100 - edge) // max(1, edge)))


def published_table(config: ModelConfig) -> Mapping[int, int] | None:
    """The table that BiCache's authors measured for a checkpoint of these dimensions, if there is one."""
    published = json.loads(files("workers.bicache").joinpath("depth_tables.json").read_text())
    mine = (config.architecture, config.num_layers, config.hidden_size)
    for entry in published["tables"]:
        if (entry["architecture"], entry["num_layers"], entry["hidden_size"]) == mine:
            return {int(ratio): depth for ratio, depth in entry["table"].items()}
    return None
