"""The reference path, on any device: gather a sequence's keys and values, then torch's SDPA, sequence by sequence."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor


class KeyValues(Protocol):
    """Where the keys and values of one layer or more lie."""

    def read(self, slots: Tensor) -> tuple[Tensor, Tensor]:
        """K and V [n, kv_heads, head_dim] at `slots` [n]."""
        ...


@dataclass(frozen=True)
class Reader:
    """One sequence of the batch in one layer: which query rows it has and which keys they see."""

    rows: tuple[slice, ...]
    """Its rows among the batch's query rows."""
    slots: Tensor
    """int64 [T]: the key rows of all its positions. Order doesn't matter: positions are in the rotated keys."""


def attend(q: Tensor, pages: KeyValues, readers: Sequence[Reader]) -> Tensor:
    """Bidirectional attention: every row of a reader sees all its slots, and nothing else.

    q [N, heads, head_dim] -> [N, heads * head_dim]; every row of q belongs to exactly one reader.
    """
    out = torch.empty_like(q)
    for reader in readers:
        k, v = (t.transpose(0, 1) for t in pages.read(reader.slots))
        for rows in reader.rows:
            query = q[rows].transpose(0, 1)
            out[rows] = scaled_dot_product(query, k, v).transpose(0, 1)
    return out.flatten(1)


def scaled_dot_product(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """[heads, n, head_dim] over [kv_heads, T, head_dim] -> [heads, n, head_dim]."""
    grouped = q.shape[0] != k.shape[0]
    return F.scaled_dot_product_attention(q[None], k[None], v[None], enable_gqa=grouped)[0]
