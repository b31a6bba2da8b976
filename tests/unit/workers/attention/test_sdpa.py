from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from tests.unit.workers.tiny import TINY
from workers.attention.sdpa import Reader, attend
from workers.kv.storage import PageStorage
from workers.models.layers import full_attention


@pytest.mark.parametrize("kv_heads", [4, 2, 1])
def test_each_reader_sees_its_own_slots(kv_heads: int) -> None:
    config = replace(TINY, num_kv_heads=kv_heads)
    storage = PageStorage(config, pool_bytes=1 << 16, page_tokens=4, dtype=torch.float32, device=torch.device("cpu"))
    lengths = (7, 5)
    slots = (storage.slots([0, 2], 7), storage.slots([9, 5], 5))  # type: ignore[arg-type]
    q = torch.randn(sum(lengths), config.num_heads, config.head_dim)
    k, v = torch.randn(2, sum(lengths), kv_heads, config.head_dim)
    storage.write(torch.cat(slots), k, v)
    # the first sequence's rows stand around the second's
    order = torch.tensor([0, 1, 2, 7, 8, 9, 10, 11, 3, 4, 5, 6])
    readers = [Reader((slice(0, 3), slice(8, 12)), slots[0]), Reader((slice(3, 8),), slots[1])]
    expected = torch.cat([full_attention(0, q[s], k[s], v[s]) for s in (slice(0, 7), slice(7, 12))]).flatten(1)
    torch.testing.assert_close(attend(q[order], storage, readers), expected[order])
