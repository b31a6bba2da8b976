"""Counts the FLOPs of a request, with which its measured speed is compared as a roofline.

A multiply-add is 2 FLOPs. A row costs its projections and SwiGLU in each layer. Attention of q rows over k keys costs
4 * q * k * width (QK and PV, no softmax), and a row of logits 2 * width * vocabulary. Norms, rotations and the build of
an entry (a miss) are left out.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

from workers.models.base import ModelConfig


@dataclass(frozen=True)
class Request:
    """Describes the shape of a request: its tokens, steps and blocks."""

    prefix: int
    user: int
    canvas: int
    num_steps: int
    block: int
    depth: int
    """Number of layers in which the prefix is reused."""
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
    """Counts the FLOPs of the passes that policies consist of."""

    model: ModelConfig
    request: Request

    def layers(self, num_layers: int, rows: int, keys: int) -> int:
        """Count `num_layers` layers over `rows` rows that each see `keys` keys."""
        return num_layers * rows * (2 * self.model.layer_weights + 4 * keys * self.model.hidden_size)

    def head(self, rows: int) -> int:
        return 2 * rows * self.model.hidden_size * self.model.vocab_size

    def full(self) -> int:
        """Count all rows through all layers."""
        return self.layers(self.model.num_layers, self.request.total, self.request.total)

    def refresh(self, prefix_rows: int) -> int:
        """Count the suffix through all layers, joined by `prefix_rows` at the reuse depth."""
        request, deep = self.request, self.model.num_layers - self.request.depth
        return self.layers(request.depth, request.suffix, request.total) + self.layers(
            deep, prefix_rows + request.suffix, request.total
        )

    def suffix(self) -> int:
        return self.layers(self.model.num_layers, self.request.suffix, self.request.total)

    def in_block(self) -> int:
        return self.layers(self.model.num_layers, self.request.block, self.request.total)


def none(costs: Costs) -> int:
    return costs.request.num_steps * (costs.full() + costs.head(costs.request.total))


def bicache(costs: Costs) -> int:
    request = costs.request
    refreshes = request.num_steps // request.refresh_interval
    return (
        refreshes * costs.refresh(request.prefix)
        + (request.num_steps - refreshes) * costs.suffix()
        + request.num_steps * costs.head(request.total)
    )


def dual(costs: Costs) -> int:
    request = costs.request
    steps = request.num_steps - request.num_blocks
    whole = costs.full() + costs.head(request.total)
    return request.num_blocks * whole + steps * (costs.in_block() + costs.head(request.block))


def bicache_dual(costs: Costs) -> int:
    request = costs.request
    opening = costs.refresh(request.prefix) + costs.head(request.total)
    return request.num_blocks * opening + request.num_steps * (
        costs.in_block() + costs.head(request.prefix + request.block)
    )


def lean(costs: Costs) -> int:
    return _lean(costs, costs.request.prefix, costs.request.num_blocks)


def lean_anchors(costs: Costs) -> int:
    """Count refreshes that recompute a fifth of the prefix."""
    return _lean(costs, costs.request.prefix // 5, costs.request.num_blocks)


def lean_skipping(costs: Costs) -> int:
    """Count a refresh in every second block alone."""
    return _lean(costs, costs.request.prefix, costs.request.num_blocks // 2)


def _lean(costs: Costs, prefix_rows: int, num_refreshes: int) -> int:
    request = costs.request
    return (
        num_refreshes * costs.refresh(prefix_rows)
        + (request.num_blocks - num_refreshes) * costs.suffix()
        + (request.num_steps - request.num_blocks) * costs.in_block()
        + request.num_steps * costs.head(request.block)
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
"""FLOPs of one request, by policy."""
