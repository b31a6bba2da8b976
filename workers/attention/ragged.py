"""Implements the fast path: a few launches a layer for a batch, in which keys that requests share are read once."""

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
FIXED_PARTS = ((256, 4), (128, 8), (0, 18))
"""(minimum rows, maximum parts of a row in a fixed plan): with fewer rows, keys are split into more parts."""


@dataclass(frozen=True)
class TileShape:
    """Sets how a tile is computed: rows and keys of one matrix product, and how Triton schedules it."""

    num_rows: int
    num_keys: int
    num_warps: int
    num_stages: int


SMALL_SHAPE = TileShape(SMALL_ROWS, num_keys=32, num_warps=2, num_stages=4)
LARGE_SHAPE = TileShape(128, num_keys=128, num_warps=8, num_stages=3)
"""The fastest of the shapes measured on an H100 in bf16, at head dimension 128."""


@dataclass(frozen=True)
class UploadedTiling:
    """Holds a tiling in the device's memory."""

    first_layer: int
    small: Tensor
    """int64 [tiles, 7]"""
    large: Tensor
    num_parts: int
    row_parts: Tensor
    """int32 [N]: parts of each row; 0 for a row that doesn't ask."""


class RaggedBackend:
    """Implements `workers.attention.base.Backend` with `workers.attention.kernels`."""

    def __init__(self, rows: Tensor, *, page_tokens: int, num_heads: int) -> None:
        """Read `rows` [rows, kv_heads, head_dim], where a token's V is `page_tokens` rows behind its K."""
        self._kv, self._page_tokens, self._num_heads = rows, page_tokens, num_heads
        is_wide = rows.element_size() > 2
        self._small = TileShape(SMALL_ROWS, num_keys=32, num_warps=4, num_stages=2) if is_wide else SMALL_SHAPE
        self._large = self._small if is_wide else LARGE_SHAPE
        processors = torch.cuda.get_device_properties(rows.device).multi_processor_count if rows.is_cuda else 1
        self._num_programs = PROGRAMS_PER_PROCESSOR * processors

    def plan(self, readers: Sequence[Reader], num_layers: int) -> Attend:
        num_rows = max(rows.stop for reader in readers for rows in (reader.base, reader.deep))
        launches = self._upload(self._tilings(readers, num_layers), num_rows)

        def attend(layer: int, q: Tensor) -> Tensor:
            return self._attend(max((one for one in launches if one.first_layer <= layer), key=first_layer), layer, q)

        return attend

    def fixed(self, num_rows: int, num_layers: int) -> FixedPlan:
        """Return a plan whose launches stay the same, whatever the batch, for up to `num_rows` base rows."""
        return FixedPlan(self, num_rows, num_layers, self._kv.device)

    def _tilings(self, readers: Sequence[Reader], num_layers: int) -> list[Tiling]:
        return list(
            tilings(
                readers,
                num_layers,
                num_heads=self._num_heads,
                num_programs=self._num_programs,
                large_rows=self._large.num_rows,
            )
        )

    def _upload(self, found: Sequence[Tiling], num_rows: int) -> list[UploadedTiling]:
        """Copy all tables to the device at once."""
        tiles = [tile for one in found for tile in (*one.small, *one.large)]
        table = torch.tensor(tiles, dtype=torch.int64).view(-1, TILE_FIELDS).to(self._kv.device)
        counts = torch.stack([num_parts_by_row(one, num_rows) for one in found]).to(self._kv.device)
        sizes = [size for one in found for size in (len(one.small), len(one.large))]
        pieces = iter(torch.split(table, sizes))
        return [
            UploadedTiling(one.first_layer, next(pieces), next(pieces), one.num_parts, row_parts)
            for one, row_parts in zip(found, counts, strict=True)
        ]

    def _attend(self, launch: UploadedTiling, layer: int, q: Tensor) -> Tensor:
        num_rows, heads, dim = q.shape
        out = q.new_empty(num_rows, heads * dim)
        if launch.num_parts <= 1:
            self._run(launch, layer, q, out, out, in_parts=False)
            return out
        parts = torch.empty((launch.num_parts, num_rows, heads, dim), dtype=torch.float32, device=q.device)
        lse = torch.empty(parts.shape[:-1], dtype=torch.float32, device=q.device)
        self._run(launch, layer, q, parts, lse, in_parts=True)
        merge_parts[(num_rows,)](
            out, parts, lse, launch.row_parts, num_rows, heads, dim, padded_size(heads), padded_size(dim), num_warps=4
        )
        return out

    def _run(self, launch: UploadedTiling, layer: int, q: Tensor, out: Tensor, lse: Tensor, *, in_parts: bool) -> None:
        num_rows, heads, dim = q.shape
        for tiles, shape in ((launch.small, self._small), (launch.large, self._large)):
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
                    max(16, padded_size(dim)),
                    shape.num_rows,
                    shape.num_keys,
                    in_parts,
                    num_warps=shape.num_warps,
                    num_stages=shape.num_stages,
                )


class FixedPlan:
    """Implements `workers.attention.base.Attend` for launches that a CUDA graph has recorded.

    Its tables, one for each layer, keep their size and address. Unused places in a table hold empty tiles.
    """

    def __init__(self, backend: RaggedBackend, num_rows: int, num_layers: int, device: torch.device) -> None:
        self._backend, self._num_rows, self._num_layers = backend, num_rows, num_layers
        self._num_small, self._num_large = fixed_tiles(num_rows)
        num_tiles = self._num_small + self._num_large
        self._tiles = torch.zeros((num_layers, num_tiles, TILE_FIELDS), dtype=torch.int64, device=device)
        self._row_parts = torch.zeros((num_layers, num_rows), dtype=torch.int32, device=device)
        self._max_parts = next(parts for rows, parts in FIXED_PARTS if num_rows >= rows)

    def fill(self, readers: Sequence[Reader]) -> bool:
        """Load a batch and return True; if it doesn't fit, change nothing and return False."""
        found = self._backend._tilings(readers, self._num_layers)
        if any(
            len(one.small) > self._num_small or len(one.large) > self._num_large or one.num_parts > self._max_parts
            for one in found
        ):
            return False
        starts = [one.first_layer for one in found]
        which = torch.tensor([sum(start <= layer for start in starts) - 1 for layer in range(self._num_layers)])
        tiles = torch.tensor(
            [[*pad_tiles(one.small, self._num_small), *pad_tiles(one.large, self._num_large)] for one in found]
        )
        counts = torch.stack([num_parts_by_row(one, self._num_rows) for one in found])
        self._tiles.copy_(tiles[which], non_blocking=True)
        self._row_parts.copy_(counts[which], non_blocking=True)
        return True

    def __call__(self, layer: int, q: Tensor) -> Tensor:
        tiles = self._tiles[layer]
        small, large = tiles[: self._num_small], tiles[self._num_small :]
        launch = UploadedTiling(0, small, large, self._max_parts, self._row_parts[layer])
        return self._backend._attend(launch, layer, q)


def fixed_tiles(num_rows: int) -> tuple[int, int]:
    """Return the numbers of small and large tiles in a fixed plan.

    Small tiles suffice for two a sequence and some for split keys; large ones are for sequences that share an entry.
    Unused tiles have a small cost.
    """
    return 24 + num_rows // 16, 12 if num_rows > SMALL_ROWS else 0


def pad_tiles(tiles: Sequence[Tile], count: int) -> list[Tile]:
    return [*tiles, *[NO_TILE] * (count - len(tiles))]


def num_parts_by_row(tiling: Tiling, num_rows: int) -> Tensor:
    """Return the number of parts of each row: int32 [num_rows]."""
    counts = torch.zeros(num_rows, dtype=torch.int32)
    for rows, count in tiling.row_parts:
        counts[rows] = count
    return counts


def first_layer(launch: UploadedTiling) -> int:
    return launch.first_layer


def padded_size(size: int) -> int:
    return int(triton.next_power_of_2(size))
