"""The fast path: a few launches a layer for the whole batch, and keys that requests share are read once for all."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import triton
from torch import Tensor

from workers.attention.base import Attend, Reader
from workers.attention.kernels import attend_tiles, merge_parts
from workers.attention.tiles import SMALL_ROWS, Tile, Tiling, tilings

PROGRAMS_PER_PROCESSOR = 2


@dataclass(frozen=True)
class Launch:
    """A tiling on the device."""

    first_layer: int
    small: Tensor
    """int64 [tiles, 7]"""
    large: Tensor
    num_parts: int
    row_parts: Tensor
    """int32 [N]: parts of each row; 0 for a row that doesn't ask."""


class RaggedBackend:
    """Implements `workers.attention.base.Backend` with the kernels beside it."""

    def __init__(self, rows: Tensor, *, page_tokens: int, num_heads: int) -> None:
        """`rows` [rows, kv_heads, head_dim]: a token's V is `page_tokens` rows behind its K."""
        self._kv, self._page_tokens, self._num_heads = rows, page_tokens, num_heads
        wide = rows.element_size() > 2
        self._large_rows, self._tile_keys = (SMALL_ROWS, 32) if wide else (128, 64)
        processors = torch.cuda.get_device_properties(rows.device).multi_processor_count if rows.is_cuda else 1
        self._num_programs = PROGRAMS_PER_PROCESSOR * processors

    def plan(self, readers: Sequence[Reader], num_layers: int) -> Attend:
        num_rows = max(rows.stop for reader in readers for rows in (reader.base, reader.deep))
        found = tilings(
            readers,
            num_layers,
            num_heads=self._num_heads,
            num_programs=self._num_programs,
            large_rows=self._large_rows,
        )
        launches = self._upload(list(found), num_rows)

        def attend(layer: int, q: Tensor) -> Tensor:
            return self._attend(max((one for one in launches if one.first_layer <= layer), key=first_layer), layer, q)

        return attend

    def _upload(self, found: Sequence[Tiling], num_rows: int) -> list[Launch]:
        """All tables in one copy."""
        tiles = [tile for one in found for tile in (*one.small, *one.large)]
        counts = torch.zeros((len(found), num_rows), dtype=torch.int32)
        for index, one in enumerate(found):
            for rows, count in one.row_parts:
                counts[index, rows] = count
        table = torch.tensor(tiles, dtype=torch.int64).view(-1, len(Tile._fields)).to(self._kv.device)
        counts = counts.to(self._kv.device)
        sizes = [size for one in found for size in (len(one.small), len(one.large))]
        pieces = iter(torch.split(table, sizes))
        return [
            Launch(one.first_layer, next(pieces), next(pieces), one.num_parts, row_parts)
            for one, row_parts in zip(found, counts, strict=True)
        ]

    def _attend(self, launch: Launch, layer: int, q: Tensor) -> Tensor:
        num_rows, heads, dim = q.shape
        out = q.new_empty(num_rows, heads * dim)
        if launch.num_parts <= 1:
            self._run(launch, layer, q, out, out, in_parts=False)
            return out
        parts = torch.empty((launch.num_parts, num_rows, heads, dim), dtype=torch.float32, device=q.device)
        lse = torch.empty(parts.shape[:-1], dtype=torch.float32, device=q.device)
        self._run(launch, layer, q, parts, lse, in_parts=True)
        merge_parts[(num_rows,)](
            out, parts, lse, launch.row_parts, num_rows, heads, dim, padded(heads), padded(dim), num_warps=4
        )
        return out

    def _run(self, launch: Launch, layer: int, q: Tensor, out: Tensor, lse: Tensor, *, in_parts: bool) -> None:
        num_rows, heads, dim = q.shape
        for tiles, tile_rows in ((launch.small, SMALL_ROWS), (launch.large, self._large_rows)):
            if len(tiles):
                attend_tiles[(len(tiles), heads)](
                    q,
                    self._kv,
                    out,
                    lse,
                    tiles,
                    layer,
                    num_rows,
                    q.stride(0),
                    self._page_tokens,
                    dim**-0.5,
                    heads,
                    self._kv.shape[1],
                    dim,
                    max(16, padded(dim)),
                    tile_rows,
                    self._tile_keys,
                    in_parts,
                    num_warps=8 if tile_rows == 128 else 4,
                    num_stages=3,
                )


def first_layer(launch: Launch) -> int:
    return launch.first_layer


def padded(size: int) -> int:
    return int(triton.next_power_of_2(size))
