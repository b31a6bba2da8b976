from __future__ import annotations

from collections import defaultdict

import pytest
import torch

from tests.unit.workers.attention.batches import NUM_LAYERS, asking, random_case
from tests.unit.workers.tiny import TINY
from workers.attention.tiles import SMALL_ROWS, Tiling, tilings

LARGE_ROWS = 128


def tiling_of(found: list[Tiling], layer: int) -> Tiling:
    return [tiling for tiling in found if tiling.first_layer <= layer][-1]


@pytest.mark.parametrize("num_programs", [1, 4000])
@pytest.mark.parametrize("seed", range(12))
def test_every_row_meets_each_of_its_slots_once(seed: int, num_programs: int) -> None:
    case = random_case(TINY, torch.float32, torch.device("cpu"), seed, longest=1500)
    slots_at = {reader.slots.data_ptr(): reader.slots for reader in case.readers}
    found = list(tilings(case.readers, NUM_LAYERS, num_heads=4, num_programs=num_programs, large_rows=LARGE_ROWS))
    for layer in range(NUM_LAYERS):
        tiling = tiling_of(found, layer)
        met, parts = defaultdict(list), defaultdict(list)
        for tile in (*tiling.small, *tiling.large):
            slots = slots_at[tile.slots_address][layer, tile.first_key : tile.first_key + tile.num_keys]
            assert len(slots) == tile.num_keys > 0
            for row in range(tile.first_row, tile.first_row + tile.num_rows):
                met[row] += slots.tolist()
                parts[row].append(tile.part)
        for reader in case.readers:
            for rows in (reader.base, reader.deep) if reader.asks_deep(layer, NUM_LAYERS) else (reader.base,):
                for row in range(rows.start, rows.stop):
                    assert sorted(met.pop(row)) == sorted(reader.slots[layer].tolist())
        assert not met
        counts = {row: count for rows, count in tiling.row_parts for row in range(rows.start, rows.stop)}
        assert {row: list(range(counts[row])) for row in counts} == {row: sorted(own) for row, own in parts.items()}
        assert sorted(counts) == sorted(asking(case, layer).tolist())
        assert all(tile.num_rows <= SMALL_ROWS for tile in tiling.small)
        assert all(tile.num_rows <= LARGE_ROWS for tile in tiling.large)


def test_requests_of_one_entry_read_its_shallow_keys_once() -> None:
    case = random_case(TINY, torch.float32, torch.device("cpu"), 3, longest=1500)
    grouped = [reader for reader in case.readers if reader.entry is not None]
    [first, *_] = tilings(case.readers, NUM_LAYERS, num_heads=4, num_programs=1, large_rows=1 << 20)
    for entry in {reader.entry for reader in grouped}:
        members = [reader for reader in grouped if reader.entry == entry]
        tiles = [tile for tile in (*first.small, *first.large) if any(owns(m.base, tile.first_row) for m in members)]
        num_keys = sum(tile.num_keys for tile in tiles)
        own = sum(reader.slots.shape[1] - reader.num_shared for reader in members)
        assert num_keys == own + members[0].num_shared


def owns(rows: slice, row: int) -> bool:
    return bool(rows.start <= row < rows.stop)
