"""Store keys and values into their pages with a Triton kernel: one launch instead of the three of indexed copies."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def _store(
    rows_ptr, slots_ptr, k_ptr, v_ptr, k_stride, v_stride, page_tokens, width: tl.constexpr, block: tl.constexpr
):
    row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, block)
    keep = column < width
    at = rows_ptr + tl.load(slots_ptr + row) * width + column
    tl.store(at, tl.load(k_ptr + row * k_stride + column, mask=keep), mask=keep)
    tl.store(at + page_tokens * width, tl.load(v_ptr + row * v_stride + column, mask=keep), mask=keep)


def store(rows: Tensor, slots: Tensor, k: Tensor, v: Tensor, page_tokens: int) -> None:
    """Store k and v [n, kv_heads, head_dim], whose rows may be strided, at `slots` [n] of `rows`."""
    num_rows, heads, dim = k.shape
    width = heads * dim
    if num_rows:
        block = triton.next_power_of_2(width)
        _store[(num_rows,)](rows, slots, k, v, k.stride(0), v.stride(0), page_tokens, width, block)
