"""What a request costs by arithmetic: the roofline that measured speeds are held to.

A multiply-add is 2 FLOPs. A row costs its projections and SwiGLU in each layer; attention of q rows over k keys costs
4 * q * k * width (QK and PV, no softmax); a row of logits 2 * width * vocabulary. Norms, rotations and the build of an
entry (a miss) are left out.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

from workers.models.base import ModelConfig


@dataclass(frozen=True)
class Request:
    """One request's shape: tokens, steps and blocks."""

    prefix: int
    user: int
    canvas: int
    num_steps: int
    block: int
    depth: int
    """Layers of the prefix that are reused."""
    refresh_interval: int

    @property
    def suffix(self) -> int:
        return self.user + self.canvas

    @property
    def total(self) -> int:
        return self.prefix + self.suffix

    @property
    def num_blocks(self) -> int:
        return self.canvas // self.block


@dataclass(frozen=True)
class Costs:
    """FLOPs of the pieces that policies are made of."""

    model: ModelConfig
    request: Request

    def layers(self, count: int, rows: int, keys: int) -> int:
        """`count` layers over `rows` rows that each see `keys` keys."""
        return count * rows * (2 * self.model.layer_weights + 4 * keys * self.model.hidden_size)

    def head(self, rows: int) -> int:
        return 2 * rows * self.model.hidden_size * self.model.vocab_size

    def full(self) -> int:
        """All rows through all layers."""
        return self.layers(self.model.num_layers, self.request.total, self.request.total)

    def refresh(self, prefix_rows: int) -> int:
        """The suffix through all layers, joined by `prefix_rows` at the reuse depth."""
        one, deep = self.request, self.model.num_layers - self.request.depth
        return self.layers(one.depth, one.suffix, one.total) + self.layers(deep, prefix_rows + one.suffix, one.total)

    def suffix(self) -> int:
        return self.layers(self.model.num_layers, self.request.suffix, self.request.total)

    def in_block(self) -> int:
        return self.layers(self.model.num_layers, self.request.block, self.request.total)


def none(costs: Costs) -> int:
    return costs.request.num_steps * (costs.full() + costs.head(costs.request.total))


def bicache(costs: Costs) -> int:
    one = costs.request
    refreshes = one.num_steps // one.refresh_interval
    return (
        refreshes * costs.refresh(one.prefix)
        + (one.num_steps - refreshes) * costs.suffix()
        + one.num_steps * costs.head(one.total)
    )


def dual(costs: Costs) -> int:
    one = costs.request
    steps = one.num_steps - one.num_blocks
    whole = costs.full() + costs.head(one.total)
    return one.num_blocks * whole + steps * (costs.in_block() + costs.head(one.block))


def bicache_dual(costs: Costs) -> int:
    one = costs.request
    opening = costs.refresh(one.prefix) + costs.head(one.total)
    return one.num_blocks * opening + one.num_steps * (costs.in_block() + costs.head(one.prefix + one.block))


def lean(costs: Costs) -> int:
    return _lean(costs, costs.request.prefix, costs.request.num_blocks)


def lean_anchors(costs: Costs) -> int:
    """Every refresh recomputes a fifth of the prefix."""
    return _lean(costs, costs.request.prefix // 5, costs.request.num_blocks)


def lean_skipping(costs: Costs) -> int:
    """Every second block starts without a refresh."""
    return _lean(costs, costs.request.prefix, costs.request.num_blocks // 2)


def _lean(costs: Costs, prefix_rows: int, num_refreshes: int) -> int:
    one = costs.request
    return (
        num_refreshes * costs.refresh(prefix_rows)
        + (one.num_blocks - num_refreshes) * costs.suffix()
        + (one.num_steps - one.num_blocks) * costs.in_block()
        + one.num_steps * costs.head(one.block)
    )


COST: Mapping[str, Callable[[Costs], int]] = MappingProxyType(
    {
        "none": none,
        "bicache": bicache,
        "dual": dual,
        "bicache-dual": bicache_dual,
        "lean": lean,
        "lean+anchors": lean_anchors,
        "lean+skip-refresh": lean_skipping,
    }
)
"""FLOPs of one request by policy."""
