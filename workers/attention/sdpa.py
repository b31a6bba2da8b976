"""Implements the reference, on any device: gather a sequence's keys and values, then run torch's SDPA on them."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from workers.attention.base import Attend, Reader, num_rows
from workers.models.base import AttentionMask


class KeyValues(Protocol):
    """Stores keys and values."""

    def read(self, slots: Tensor) -> tuple[Tensor, Tensor]:
        """Return K and V [n, kv_heads, head_dim] at `slots` [n]."""
        ...


class SdpaBackend:
    """Implements `workers.attention.base.Backend`, for models that mask attention, too."""

    def __init__(self, pages: KeyValues, mask: AttentionMask | None = None) -> None:
        self._pages, self._mask = pages, mask

    def plan(self, readers: Sequence[Reader], num_layers: int) -> Attend:
        masks = [self._visible(reader) for reader in readers]

        def attend(layer: int, q: Tensor) -> Tensor:
            out = torch.empty_like(q)
            for reader, visible in zip(readers, masks, strict=True):
                k, v = (t.transpose(0, 1) for t in self._pages.read(reader.slots[layer]))
                first = 0
                for rows in (reader.base, reader.deep) if reader.asks_deep(layer, num_layers) else (reader.base,):
                    mask = None if visible is None else visible[first : first + num_rows(rows)]
                    out[rows] = scaled_dot_product(q[rows].transpose(0, 1), k, v, mask).transpose(0, 1)
                    first += num_rows(rows)
            return out.flatten(1)

        return attend

    def _visible(self, reader: Reader) -> Tensor | None:
        """Return the mask of the keys that each row sees, or None if all rows see all keys."""
        if self._mask is None:
            return None
        device = reader.slots.device
        keys = torch.arange(reader.slots.shape[1], device=device)
        return self._mask(torch.tensor(list(chain.from_iterable(reader.positions)), device=device), keys)


def scaled_dot_product(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    """Let [heads, n, head_dim] attend to [kv_heads, T, head_dim], where `mask` [n, T] is true: [heads, n, head_dim]."""
    grouped = q.shape[0] != k.shape[0]
    return F.scaled_dot_product_attention(q[None], k[None], v[None], attn_mask=mask, enable_gqa=grouped)[0]
