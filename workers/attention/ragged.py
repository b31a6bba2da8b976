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
TILE_FIELDS = len(Tile._fields)
NO_TILE = Tile(0, 0, 0, 0, 0, 0, 0)
FIXED_SMALL, FIXED_LARGE = 64, 32
"""Tiles that a fixed plan has room for: some for each of its sequences, or many for the few that it has."""
FIXED_PARTS = ((256, 4), (128, 8), (0, 18))
"""(rows from which on, parts that a fixed plan has room for): the fewer rows, the more their keys are cut."""


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
        launches = self._upload(self._tilings(readers, num_layers), num_rows)

        def attend(layer: int, q: Tensor) -> Tensor:
            return self._attend(max((one for one in launches if one.first_layer <= layer), key=first_layer), layer, q)

        return attend

    def fixed(self, num_rows: int, num_layers: int) -> FixedPlan:
        """A plan whose launches stay the same, whatever the batch, for up to `num_rows` base rows."""
        return FixedPlan(self, num_rows, num_layers, self._kv.device)

    def _tilings(self, readers: Sequence[Reader], num_layers: int) -> list[Tiling]:
        return list(
            tilings(
                readers,
                num_layers,
                num_heads=self._num_heads,
                num_programs=self._num_programs,
                large_rows=self._large_rows,
            )
        )

    def _upload(self, found: Sequence[Tiling], num_rows: int) -> list[Launch]:
        """All tables in one copy."""
        tiles = [tile for one in found for tile in (*one.small, *one.large)]
        table = torch.tensor(tiles, dtype=torch.int64).view(-1, TILE_FIELDS).to(self._kv.device)
        counts = torch.stack([parts_of_rows(one, num_rows) for one in found]).to(self._kv.device)
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


class FixedPlan:
    """Tables of a fixed size in a fixed place, one for each layer, for launches that a CUDA graph has recorded.

    Implements `workers.attention.base.Attend`. Where a table has fewer tiles than room, the rest are empty.
    """

    def __init__(self, backend: RaggedBackend, num_rows: int, num_layers: int, device: torch.device) -> None:
        self._backend, self._num_rows, self._num_layers = backend, num_rows, num_layers
        self._tiles = torch.zeros(
            (num_layers, FIXED_SMALL + FIXED_LARGE, TILE_FIELDS), dtype=torch.int64, device=device
        )
        self._row_parts = torch.zeros((num_layers, num_rows), dtype=torch.int32, device=device)
        self._max_parts = next(parts for rows, parts in FIXED_PARTS if num_rows >= rows)

    def fill(self, readers: Sequence[Reader]) -> bool:
        """Take in a batch; False, and nothing is changed, where it doesn't fit."""
        found = self._backend._tilings(readers, self._num_layers)
        if any(
            len(one.small) > FIXED_SMALL or len(one.large) > FIXED_LARGE or one.num_parts > self._max_parts
            for one in found
        ):
            return False
        starts = [one.first_layer for one in found]
        which = torch.tensor([sum(start <= layer for start in starts) - 1 for layer in range(self._num_layers)])
        tiles = torch.tensor([[*fill_up(one.small, FIXED_SMALL), *fill_up(one.large, FIXED_LARGE)] for one in found])
        counts = torch.stack([parts_of_rows(one, self._num_rows) for one in found])
        self._tiles.copy_(tiles[which], non_blocking=True)
        self._row_parts.copy_(counts[which], non_blocking=True)
        return True

    def __call__(self, layer: int, q: Tensor) -> Tensor:
        tiles = self._tiles[layer]
        launch = Launch(0, tiles[:FIXED_SMALL], tiles[FIXED_SMALL:], self._max_parts, self._row_parts[layer])
        return self._backend._attend(launch, layer, q)


def fill_up(tiles: Sequence[Tile], count: int) -> list[Tile]:
    return [*tiles, *[NO_TILE] * (count - len(tiles))]


def parts_of_rows(tiling: Tiling, num_rows: int) -> Tensor:
    """int32 [num_rows]: how many parts each row has."""
    counts = torch.zeros(num_rows, dtype=torch.int32)
    for rows, count in tiling.row_parts:
        counts[rows] = count
    return counts


def first_layer(launch: Launch) -> int:
    return launch.first_layer


def padded(size: int) -> int:
    return int(triton.next_power_of_2(size))
