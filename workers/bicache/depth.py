"""How many shallow layers of a prefix may be reused, by the prefix's share of the sequence."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files

from workers.models.base import ModelConfig


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

        Half are deeper, for requests whose prefix weighs more; the rest shallower.
        """
        deeper = sorted({other for other in self.steps.values() if other > depth})
        shallower = sorted({other for other in self.steps.values() if 0 < other < depth}, reverse=True)
        above = deeper[: (count - 1) // 2]
        return frozenset({depth, *above, *shallower[: count - 1 - len(above)]})

    def lookup(self, ratio: int) -> int:
        """The depth at the largest edge that `ratio` reaches."""
        reached = [edge for edge in self.steps if edge <= ratio]
        return self.steps[max(reached)] if reached else 0


def published_table(config: ModelConfig) -> Mapping[int, int] | None:
    """The table that BiCache's authors measured for a checkpoint of these dimensions, if there is one."""
    published = json.loads(files("workers.bicache").joinpath("depth_tables.json").read_text())
    mine = (config.architecture, config.num_layers, config.hidden_size)
    for entry in published["tables"]:
        if (entry["architecture"], entry["num_layers"], entry["hidden_size"]) == mine:
            return {int(ratio): depth for ratio, depth in entry["table"].items()}
    return None
