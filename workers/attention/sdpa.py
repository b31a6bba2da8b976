"""The reference path, on any device: gather a sequence's keys and values, then torch's SDPA, sequence by sequence."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from workers.attention.base import Attend, Reader


class KeyValues(Protocol):
    """Where the keys and values of one layer or more lie."""

    def read(self, slots: Tensor) -> tuple[Tensor, Tensor]:
        """K and V [n, kv_heads, head_dim] at `slots` [n]."""
        ...


class SdpaBackend:
    """Implements `workers.attention.base.Backend`."""

    def __init__(self, pages: KeyValues) -> None:
        self._pages = pages

    def plan(self, readers: Sequence[Reader], num_layers: int) -> Attend:
        def attend(layer: int, q: Tensor) -> Tensor:
            out = torch.empty_like(q)
            for reader in readers:
                k, v = (t.transpose(0, 1) for t in self._pages.read(reader.slots[layer]))
                for rows in (reader.base, reader.deep) if reader.asks_deep(layer, num_layers) else (reader.base,):
                    out[rows] = scaled_dot_product(q[rows].transpose(0, 1), k, v).transpose(0, 1)
            return out.flatten(1)

        return attend


def scaled_dot_product(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """[heads, n, head_dim] over [kv_heads, T, head_dim] -> [heads, n, head_dim]."""
    grouped = q.shape[0] != k.shape[0]
    return F.scaled_dot_product_attention(q[None], k[None], v[None], enable_gqa=grouped)[0]
