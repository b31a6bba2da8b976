"""Decide the reuse depth of a prefix, by the prefix's share of the sequence."""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from itertools import takewhile
from typing import NamedTuple, Self

from cache_service.core.types import DepthLimit, PrefixKey
from workers.models.base import ModelConfig

PROBE_BUCKET_PERCENT = 10
"""The width of a bucket: ratios from one multiple of it to the next share a probe, and a limit."""
MAX_REMEMBERED_KEYS = 4096
"""The number of prefixes whose evidence is remembered."""


def ratio_percent(num_prefix: int, num_total: int) -> int:
    """Return the prefix's share of prompt and canvas in percent, halves to even: r in the paper.

    The published code divides first: 23 of 40 tokens are 57 percent, not 58.
    """
    return round(num_prefix / num_total * 100)


def bucket_of(ratio: int) -> int:
    """Return the lower edge of the bucket of ratios that share a probe."""
    return ratio // PROBE_BUCKET_PERCENT * PROBE_BUCKET_PERCENT


@dataclass(frozen=True)
class DepthTable:
    """Maps a ratio in percent (lower edge) to a reuse depth; a ratio below every edge reuses nothing."""

    steps: Mapping[int, int]

    @classmethod
    def for_model(cls, config: ModelConfig, own: Mapping[int, int] | None) -> DepthTable:
        """Return the model's own table, else the published one for its dimensions, else one without reuse."""
        table = own if own is not None else published_table(config)
        return cls({ratio: min(depth, config.num_layers) for ratio, depth in (table or {0: 0}).items()})

    def depths_near(self, depth: int, count: int) -> frozenset[int]:
        """Return `depth` and the table's depths around it, `count` in all, for which a new entry keeps boundary states.

        Half of them are deeper, for requests whose prefix has a larger share. The rest are shallower, for when a probe
        lowers the depth; if the table has too few of these, the depth is halved repeatedly.
        """
        deeper = sorted({other for other in self.steps.values() if other > depth})
        shallower = sorted({other for other in self.steps.values() if 0 < other < depth}, reverse=True)
        chosen = [depth, *deeper[: (count - 1) // 2]]
        chosen += shallower[: count - len(chosen)]
        while len(chosen) < count and min(chosen) > 1:
            chosen.append(min(chosen) // 2)
        return frozenset(chosen)

    def lookup(self, ratio: int) -> int:
        """Return the depth at the largest edge that `ratio` reaches."""
        reached = [edge for edge in self.steps if edge <= ratio]
        return self.steps[max(reached)] if reached else 0


class Finding(NamedTuple):
    """Holds what a probe found about a prefix at the ratios of one bucket."""

    num_similar: int
    """Number of leading layers whose K/V, computed from the prefix alone, are similar to the true ones."""
    ends_there: bool
    """True if the next layer was compared too, and differs."""

    @classmethod
    def from_similarities(cls, similarities: Sequence[float], threshold: float) -> Self:
        """Return the finding that follows from the similarities of layers 0, 1, ..."""
        num_similar = sum(1 for _ in takewhile(lambda similarity: similarity >= threshold, similarities))
        return cls(num_similar, num_similar < len(similarities))

    def depth(self, most: int, num_layers: int) -> int | None:
        """Return the largest depth up to `most` whose layers, and the next one, are similar; None if unknown.

        The next layer counts because its K/V come from a reused state, too.
        """
        if self.num_similar >= min(most + 1, num_layers):
            return most
        return max(0, self.num_similar - 1) if self.ends_there else None


class Evidence:
    """Remembers what probes found, by prefix and ratio bucket.

    A finding is a function of the prefix, the bucket and the model. Forgetting it costs another probe, and changes no
    answer.
    """

    def __init__(self) -> None:
        self._findings: OrderedDict[PrefixKey, dict[int, Finding]] = OrderedDict()

    def find(self, key: PrefixKey, bucket: int) -> Finding | None:
        """Return the finding of one bucket; None if no probe has run, or it is forgotten."""
        return self._findings.get(key, {}).get(bucket)

    def record(self, key: PrefixKey, findings: Mapping[int, Finding]) -> None:
        """Remember findings by bucket; of two for the same bucket, keep the one that compared more layers."""
        known = self._findings.setdefault(key, {})
        self._findings.move_to_end(key)
        if len(self._findings) > MAX_REMEMBERED_KEYS:
            self._findings.popitem(last=False)
        for bucket, finding in findings.items():
            known[bucket] = max(finding, known.get(bucket, finding))


class DepthLimits:
    """Keeps the depth limits that replicas have reported.

    A limit counts unless it was found under an older version of the depth table; under one version it only falls. It
    ends once no replica holds its prefix any more.
    """

    def __init__(self, depth_table_version: int) -> None:
        self.depth_table_version = depth_table_version
        self._limits: dict[PrefixKey, dict[int, DepthLimit]] = {}

    def record(self, limit: DepthLimit) -> None:
        """Record a limit that a replica reported."""
        known = self._limits.get(limit.key, {}).get(limit.bucket)
        if limit.depth_table_version < self.depth_table_version:
            return
        if known is None or (limit.depth_table_version, -limit.depth) > (known.depth_table_version, -known.depth):
            self._limits.setdefault(limit.key, {})[limit.bucket] = limit

    def lift(self, key: PrefixKey) -> None:
        """Forget the limits of a prefix."""
        self._limits.pop(key, None)

    def lift_all(self) -> None:
        """Forget all limits, as the service that knew them may have."""
        self._limits.clear()

    def depth(self, key: PrefixKey, bucket: int) -> int | None:
        """Return the depth limit of a prefix in one bucket; None if no replica has reported one."""
        limit = self._limits.get(key, {}).get(bucket)
        return limit.depth if limit else None


def nominal_suffix_length(num_prefix: int, bucket: int, context_length: int) -> int:
    """Return the longest suffix with which a prefix makes up `bucket` percent or more, within the context."""
    room = context_length - num_prefix
    return max(1, min(room, num_prefix * (100 - bucket) // max(1, bucket)))


def published_table(config: ModelConfig) -> Mapping[int, int] | None:
    """Return the table that BiCache's authors measured for a checkpoint of these dimensions, if they did."""
    published = json.loads(files("workers.bicache").joinpath("depth_tables.json").read_text())
    mine = (config.architecture, config.num_layers, config.hidden_size)
    for entry in published["tables"]:
        if (entry["architecture"], entry["num_layers"], entry["hidden_size"]) == mine:
            return {int(ratio): depth for ratio, depth in entry["table"].items()}
    return None
