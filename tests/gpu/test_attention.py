from __future__ import annotations

from dataclasses import dataclass, replace

import pytest
import torch

from tests.unit.workers.attention.batches import NUM_LAYERS, asking, random_case
from tests.unit.workers.tiny import TINY
from workers.attention.sdpa import SdpaBackend
from workers.kv.storage import PageStorage
from workers.models.base import ModelConfig

SHAPES = [(4, 4, 64), (8, 2, 128), (7, 1, 128), (3, 3, 48)]
"""(heads, KV heads, head dimension)"""
BOUNDS = {torch.float32: 1e-5, torch.bfloat16: 1e-2}
"""Relative error that each type may have."""


def shaped(heads: int, kv_heads: int, dim: int) -> ModelConfig:
    return replace(TINY, num_heads=heads, num_kv_heads=kv_heads, hidden_size=heads * dim)


@pytest.mark.parametrize("dtype", BOUNDS)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("longest", [30, 900])
@pytest.mark.parametrize("seed", range(3))
def test_kernels_equal_the_reference(
    cuda: torch.device, shape: tuple[int, int, int], dtype: torch.dtype, longest: int, seed: int
) -> None:
    from workers.attention.ragged import RaggedBackend

    config = shaped(*shape)
    case = random_case(config, dtype, cuda, seed, longest)
    ragged = RaggedBackend(case.storage.rows, page_tokens=case.storage.page_tokens, num_heads=config.num_heads)
    attend = ragged.plan(case.readers, NUM_LAYERS)
    expect = SdpaBackend(Wide(case.storage)).plan(case.readers, NUM_LAYERS)
    for layer in range(NUM_LAYERS):
        q = case.q(config, layer).to(dtype)
        rows = asking(case, layer).to(cuda)
        poison(cuda)
        found, expected = attend(layer, q)[rows].float(), expect(layer, q.float())[rows]
        assert not found.isnan().any()
        assert (found - expected).norm() / expected.norm() < BOUNDS[dtype]


@dataclass(frozen=True)
class Wide:
    """A storage that reads in float32."""

    storage: PageStorage

    def read(self, slots: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        k, v = self.storage.read(slots)
        return k.float(), v.float()


def poison(device: torch.device) -> None:
    """What the next outputs are likely made of is NaN, so that an unwritten one shows."""
    torch.full((1 << 24,), torch.nan, device=device)
