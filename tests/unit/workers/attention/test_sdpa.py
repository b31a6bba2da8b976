from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from tests.unit.workers.attention.batches import NUM_LAYERS, asking, random_case
from tests.unit.workers.tiny import TINY
from workers.attention.sdpa import SdpaBackend
from workers.models.layers import full_attention


@pytest.mark.parametrize("kv_heads", [4, 2, 1])
@pytest.mark.parametrize("seed", range(4))
def test_each_row_sees_its_own_sequence(kv_heads: int, seed: int) -> None:
    config = replace(TINY, num_kv_heads=kv_heads)
    case = random_case(config, torch.float32, torch.device("cpu"), seed, longest=60)
    attend = SdpaBackend(case.storage).plan(case.readers, NUM_LAYERS)
    for layer in range(NUM_LAYERS):
        q = case.q(config, layer)
        out = attend(layer, q)
        seen = []
        for reader in case.readers:
            k, v = case.storage.read(reader.slots[layer])
            for rows in (reader.base, reader.deep) if reader.asks_deep(layer, NUM_LAYERS) else (reader.base,):
                torch.testing.assert_close(out[rows], full_attention(layer, q[rows], k, v).flatten(1))
                seen.append(torch.arange(rows.start, rows.stop))
        assert torch.cat(seen).tolist() == asking(case, layer).tolist()
