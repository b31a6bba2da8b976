from __future__ import annotations

from copy import deepcopy
from dataclasses import replace

import pytest
import torch

from tests.unit.workers.tiny import TINY
from workers.models.layers import Transformer

BOUNDS = {torch.float32: 1e-5, torch.bfloat16: 1e-2}


@pytest.mark.parametrize("dtype", BOUNDS)
@pytest.mark.parametrize("num_rows", [1, 33])
@pytest.mark.parametrize(("kv_heads", "bias"), [(4, False), (2, True)])
def test_fused_layers_equal_the_plain_ones(
    cuda: torch.device, dtype: torch.dtype, num_rows: int, kv_heads: int, *, bias: bool
) -> None:
    from workers.models.fused import FusedTransformer

    config = replace(TINY, hidden_size=192, num_kv_heads=kv_heads, qkv_bias=bias, mlp_size=80)
    torch.manual_seed(0)
    plain = Transformer(config).to(cuda, dtype).requires_grad_(requires_grad=False)
    fused = FusedTransformer(deepcopy(plain))
    rope = plain.rope(3 * torch.arange(num_rows, device=cuda))
    x = torch.randn(num_rows, config.hidden_size, device=cuda, dtype=dtype)
    with torch.inference_mode():
        for ours, theirs in zip(fused.stack, plain.stack, strict=True):
            for found, expected in zip(ours.qkv(x, *rope), theirs.qkv(x, *rope), strict=True):
                close(found, expected, BOUNDS[dtype])
            attended = torch.randn_like(x)
            x, expected = ours.finish(x, attended), theirs.finish(x, attended)
            close(x, expected, BOUNDS[dtype])
        close(fused.logits(x), plain.logits(x), BOUNDS[dtype])


def close(found: torch.Tensor, expected: torch.Tensor, bound: float) -> None:
    assert (found - expected).norm() / expected.norm() < bound
