"""Tracks which prefix rows the masked positions attend to, and whether that has changed since the last refresh.

Anchors (Affix Cache, arXiv 2608.26140): the most attended prefix rows stand for all of them in a refresh; the others
keep their K/V. Skipping (after Elastic-Cache): a due refresh is skipped while attention is unchanged.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class FocusConfig:
    """Sets how a request uses its observed attention."""

    anchor_share: float
    """Share of the prefix rows that a refresh after the first recomputes; 1 takes all."""
    skip_refresh: bool
    skip_similarity: float
    """Cosine of attention to the prefix, now and at the last refresh, above which a due refresh is skipped."""
    max_skips: int
    """Maximum number of consecutive refreshes that may be skipped."""

    @property
    def is_used(self) -> bool:
        return self.skip_refresh or self.anchor_share < 1


@dataclass(frozen=True)
class ObservedAttention:
    """Holds the attention weights of some masked rows on the rows of the prefix."""

    positions: tuple[int, ...]
    weights: Tensor
    """[len(positions), prefix]: softmax weight over all keys, averaged over heads; one layer."""

    def restrict_to(self, positions: frozenset[int]) -> ObservedAttention:
        """Return the attention of the rows at `positions` alone."""
        kept = [index for index, position in enumerate(self.positions) if position in positions]
        return ObservedAttention(tuple(self.positions[index] for index in kept), self.weights[kept])


class Focus:
    """Tracks one request's attention to its prefix over time.

    Tensors are read when attention is observed and when a block ends, after a pass. Schedules read only
    plain values, so they need no synchronisation with the device.
    """

    def __init__(self, config: FocusConfig) -> None:
        self._config = config
        self._at_refresh: ObservedAttention | None = None
        self._is_steady = False
        self._num_skipped = 0
        self._anchors: tuple[int, ...] | None = None

    @property
    def is_watched(self) -> bool:
        return self._config.is_used

    @property
    def has_drifted(self) -> bool:
        """Return False if a due refresh may be skipped: attention is steady, and `max_skips` is not yet reached."""
        return not self._is_steady or self._num_skipped >= self._config.max_skips

    @property
    def anchors(self) -> tuple[int, ...] | None:
        """Return the prefix rows that the next refresh recomputes, ascending; None means all of them."""
        return self._anchors

    def observe(self, attention: ObservedAttention, *, refreshed: bool) -> None:
        """Compare attention with that of the last refresh; if this pass `refreshed`, make it the new reference."""
        if refreshed:
            self._at_refresh, self._is_steady, self._num_skipped = attention, False, 0
        else:
            self._is_steady = self._config.skip_refresh and self._is_like_last_refresh(attention)

    def skip(self) -> None:
        """Count a due refresh that was skipped."""
        self._num_skipped += 1

    def choose_anchors(self, masked: frozenset[int]) -> None:
        """Choose the most attended prefix rows, as the rows that are still `masked` saw them at the last refresh."""
        if self._config.anchor_share == 1 or self._at_refresh is None or not masked:
            return
        attention = self._at_refresh.restrict_to(masked).weights.sum(0)
        count = math.ceil(self._config.anchor_share * len(attention))
        self._anchors = tuple(attention.topk(count).indices.sort().values.tolist())

    def _is_like_last_refresh(self, now: ObservedAttention) -> bool:
        then = self._at_refresh
        shared = frozenset(then.positions) & frozenset(now.positions) if then else frozenset()
        if then is None or not shared:
            return False
        similarity = F.cosine_similarity(then.restrict_to(shared).weights, now.restrict_to(shared).weights).mean()
        return not similarity.item() < self._config.skip_similarity


def attention_to_prefix(q: Tensor, k: Tensor, num_prefix: int, mask: Tensor | None = None) -> Tensor:
    """Return the weights of rows q [n, heads, head_dim] on the first `num_prefix` of keys k [T, kv_heads, head_dim].

    They are float32 [n, num_prefix], averaged over heads; a row sees the keys for which `mask` [n, T] is true.
    """
    heads, kv_heads = q.shape[1], k.shape[1]
    keys = k.float().repeat_interleave(heads // kv_heads, dim=1)
    scores = torch.einsum("nhd,thd->nht", q.float(), keys) / q.shape[-1] ** 0.5
    if mask is not None:
        scores = scores.masked_fill(~mask[:, None], -torch.inf)
    weights: Tensor = scores.softmax(-1)[..., :num_prefix].mean(1)
    return weights
