r"""Cuts a batch's attention into equal pieces of work, for a range of layers in which nothing about it changes.

    rows    \ keys   shared 0..S-1              private S..T-1
    A, B (one entry) [ tiles over both ]        [ tiles of A ] [ tiles of B ]      below their depth
    C                [ tiles over all keys of C ]

A tile is some rows of one sequence (or of several that share an entry) against a run of keys. If a row's keys are
cut into several runs, each gives a part, and the parts are merged by their log-sum-exp, which is exact. Keys are also
cut if there would be too few tiles to fill the device.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import NamedTuple

from workers.attention.base import Reader, num_rows

SMALL_ROWS = 32
"""The height of a small tile, which suits a decoding block; a large one has the kernel's full height."""
TILE_KEYS_STEP = 64
MIN_TILE_KEYS = 256
"""Minimum number of keys in a tile when keys are split, so that merging stays cheap."""


class Tile(NamedTuple):
    """Describes one piece of work: some query rows against a run of keys, computed for each head."""

    first_row: int
    num_rows: int
    slots_address: int
    """Address of the sequence's slots [num_layers, T] in device memory."""
    slots_stride: int
    """Number of elements from one layer's slots to the next one's."""
    first_key: int
    num_keys: int
    part: int
    """Index of the partial result that it computes for its rows."""


@dataclass(frozen=True)
class Span:
    """Describes a run of adjacent rows that see the same run of one sequence's keys."""

    rows: slice
    reader: Reader
    keys: range
    is_last: bool = True
    """True if the rows see no keys after these."""


@dataclass(frozen=True)
class Tiling:
    """Lists the tiles of attention for the layers from `first_layer` up to the next tiling's."""

    first_layer: int
    small: tuple[Tile, ...]
    large: tuple[Tile, ...]
    row_parts: tuple[tuple[slice, int], ...]
    """Pairs of rows and their number of parts."""

    @property
    def num_parts(self) -> int:
        return max((count for _, count in self.row_parts), default=0)


def tilings(
    readers: Sequence[Reader], num_layers: int, *, num_heads: int, num_programs: int, large_rows: int
) -> Iterator[Tiling]:
    """Yield tilings for all layers, in order; `num_programs` of tile x head should fill the device."""
    changes = {0, num_layers - 1, *(reader.depth for reader in readers if reader.depth < num_layers)}
    for layer in sorted(changes):
        found = list(spans(readers, layer, num_layers))
        yield tiling(layer, found, max_tile_keys(found, -(-num_programs // num_heads), large_rows), large_rows)


def spans(readers: Sequence[Reader], layer: int, num_layers: int) -> Iterator[Span]:
    """Yield spans of rows with the keys that they see in a layer; spans over shared keys come first."""
    for shared, group in groupby(readers, key=lambda reader: reader.entry if layer < reader.depth else None):
        members = list(group)
        first_private = 0
        if shared is not None and len(members) > 1:
            first_private = members[0].num_shared
            for rows in merge_adjacent(member.base for member in members):
                yield Span(rows, members[0], range(first_private), is_last=False)
        for reader in members:
            keys = range(first_private, reader.slots.shape[1])
            yield Span(reader.base, reader, keys)
            if reader.asks_deep(layer, num_layers):
                yield Span(reader.deep, reader, keys)


def merge_adjacent(slices: Iterable[slice]) -> Iterator[slice]:
    """Merge adjacent slices of rows, without changing their order."""
    merged: list[slice] = []
    for rows in slices:
        if merged and merged[-1].stop == rows.start:
            merged[-1] = slice(merged[-1].start, rows.stop)
        else:
            merged.append(rows)
    yield from merged


def max_tile_keys(found: Sequence[Span], num_tiles: int, large_rows: int) -> int:
    """Return the maximum number of keys of a tile, chosen to give about `num_tiles` tiles."""
    whole = sum(-(-num_rows(span.rows) // tile_height(span, large_rows)) for span in found)
    longest = max((len(span.keys) for span in found), default=0)
    cuts = -(-num_tiles // max(1, whole))
    return max(MIN_TILE_KEYS, -(-longest // cuts // TILE_KEYS_STEP) * TILE_KEYS_STEP)


def tiling(layer: int, found: Sequence[Span], run: int, large_rows: int) -> Tiling:
    small: list[Tile] = []
    large: list[Tile] = []
    parts: list[tuple[slice, int]] = []
    for span in found:
        kind = small if tile_height(span, large_rows) == SMALL_ROWS else large
        kind.extend(cut_span(span, run, tile_height(span, large_rows)))
        if span.is_last:
            parts.append((span.rows, num_runs(span.keys.start, run) + num_runs(len(span.keys), run)))
    return Tiling(layer, tuple(small), tuple(large), tuple(parts))


def tile_height(span: Span, large_rows: int) -> int:
    return SMALL_ROWS if num_rows(span.rows) <= SMALL_ROWS else large_rows


def num_runs(num_keys: int, run: int) -> int:
    return -(-num_keys // run)


def cut_span(span: Span, run: int, rows: int) -> Iterator[Tile]:
    slots = span.reader.slots
    address, stride = slots.data_ptr(), slots.stride(0)
    first_part = num_runs(span.keys.start, run)
    for index, first_key in enumerate(range(span.keys.start, span.keys.stop, run)):
        num_keys = min(run, span.keys.stop - first_key)
        for first_row in range(span.rows.start, span.rows.stop, rows):
            num = min(rows, span.rows.stop - first_row)
            yield Tile(first_row, num, address, stride, first_key, num_keys, first_part + index)
