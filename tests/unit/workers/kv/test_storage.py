from __future__ import annotations

from pathlib import Path

import pytest
import torch

from benchmarks.dimensions import DREAM_7B, LLADA_8B
from tests.unit.workers.tiny import TINY
from workers.bicache.depth import DepthTable, ratio_percent
from workers.config import BiCacheConfig
from workers.kv.page_table import EntryLayout, EntryTable, PrivateLayout, sequence_slots
from workers.kv.pool import PagePool
from workers.kv.storage import PageStorage
from workers.models.base import ModelConfig


def storage_of(num_pages: int, page_tokens: int = 4) -> PageStorage:
    page_bytes = 2 * page_tokens * TINY.hidden_size * 4
    return PageStorage(
        TINY,
        pool_bytes=num_pages * page_bytes + page_bytes - 1,
        page_tokens=page_tokens,
        dtype=torch.float32,
        device=torch.device("cpu"),
    )


def test_rows_come_back_as_they_were_written() -> None:
    storage = storage_of(6)
    pages = PagePool(storage.num_pages).allocate(3)
    slots = storage.slots(pages.ids, 11)
    k, v = torch.randn(2, 11, TINY.num_kv_heads, TINY.head_dim)
    storage.write(slots, k, v)
    read_k, read_v = storage.read(slots.flip(0))
    assert torch.equal(read_k.flip(0), k)
    assert torch.equal(read_v.flip(0), v)


def test_states_share_pages_with_keys_and_values() -> None:
    storage, pool = storage_of(20), PagePool(20)
    layout = EntryLayout.for_depths(9, {0, 1, 3}, TINY.num_layers)
    assert (layout.kv_depth, layout.state_depths) == (3, (1, 3))
    # 9 tokens: 3 pages of K/V a layer; 9 * 32 state elements in pages of 256: 2
    assert layout.num_pages(storage, TINY.hidden_size) == 3 * 3 + 2 * 2
    table = EntryTable.lay_out(
        layout, pool.allocate(layout.num_pages(storage, TINY.hidden_size)), storage, TINY.hidden_size
    )
    kv = torch.randn(3, 2, 9, TINY.num_kv_heads, TINY.head_dim)
    states = {depth: torch.randn(9, TINY.hidden_size) for depth in layout.state_depths}
    for index in range(3):
        storage.write(table.slots[index], kv[index, 0], kv[index, 1])
    for depth, rows in states.items():
        storage.write_states(table.state_pages[depth], rows)
    for index in range(3):
        assert torch.equal(torch.stack(storage.read(table.slots[index])), kv[index])
    for depth, rows in states.items():
        assert torch.equal(storage.read_states(table.state_pages[depth], 9, TINY.hidden_size), rows)


def test_full_depth_keeps_no_states_and_depth_zero_nothing() -> None:
    storage = storage_of(1)
    assert EntryLayout.for_depths(8, {TINY.num_layers}, TINY.num_layers).num_pages(storage, 32) == 2 * TINY.num_layers
    assert EntryLayout.for_depths(8, {0}, TINY.num_layers).num_pages(storage, 32) == 0


def test_shallow_layers_read_the_entry_and_own_the_rest() -> None:
    storage = storage_of(64)
    pool = PagePool(64)
    entry_layout = EntryLayout.for_depths(6, {2}, TINY.num_layers)
    entry = EntryTable.lay_out(
        entry_layout, pool.allocate(entry_layout.num_pages(storage, TINY.hidden_size)), storage, TINY.hidden_size
    )
    layout = PrivateLayout(TINY.num_layers, num_tokens=15, shared_depth=2, shared_tokens=6, keeps_kv=True)
    pages = pool.allocate(layout.num_pages(storage.page_tokens))
    assert len(pages) == 2 * 3 + 2 * 4
    slots = sequence_slots(layout, pages, entry, storage)
    assert slots.shape == (TINY.num_layers, 15)
    assert torch.equal(slots[:2, :6], entry.slots)
    private = torch.cat((slots[:2, 6:].flatten(), slots[2:].flatten()))
    assert len(private.unique()) == len(private)
    assert not set(private.tolist()) & set(entry.slots.flatten().tolist())


def test_keys_and_values_of_one_step_take_one_layers_pages() -> None:
    layout = PrivateLayout(TINY.num_layers, num_tokens=15, shared_depth=0, shared_tokens=0, keeps_kv=False)
    assert layout.num_pages(4) == 4


@pytest.mark.parametrize(
    ("model", "entry", "request_mib", "alone_mib"),
    [(LLADA_8B, "304 KiB a token", "672 MiB", "1,184 MiB"), (DREAM_7B, "60 KiB a token", "73.5 MiB", "129.5 MiB")],
    ids=lambda value: getattr(value, "architecture", None),
)
def test_the_documented_memory_is_what_the_pool_accounts(
    model: ModelConfig, entry: str, request_mib: str, alone_mib: str
) -> None:
    storage = PageStorage(model, pool_bytes=1 << 30, page_tokens=16, dtype=torch.bfloat16, device=torch.device("meta"))
    prefix, total = 2048, 2048 + 320
    table = DepthTable.for_model(model, None)
    depth = table.lookup(ratio_percent(prefix, total))
    layout = EntryLayout.for_depths(prefix, table.depths_near(depth, BiCacheConfig().entry_depths), model.num_layers)

    def mib(shared_depth: int, shared_tokens: int) -> str:
        pages = PrivateLayout(model.num_layers, total, shared_depth, shared_tokens, keeps_kv=True).num_pages(16)
        return f"{pages * storage.page_bytes / (1 << 20):,.5g} MiB".replace("1184", "1,184")

    kib = layout.num_pages(storage, model.hidden_size) * storage.page_bytes / prefix / 1024
    found = (f"{kib:g} KiB a token", mib(depth, prefix), mib(0, 0))
    assert found == (entry, request_mib, alone_mib)
    documented = (Path(__file__).parents[4] / "docs" / "models.md").read_text()
    assert all(f" {figure} " in documented for figure in found)
    everything = EntryLayout.for_depths(prefix, range(model.num_layers + 1), model.num_layers)
    assert layout.num_pages(storage, model.hidden_size) < everything.num_pages(storage, model.hidden_size) / 2
