"""Holds the Triton kernels between a layer's matrix products: one pass over memory each.

They round at the same points as `workers.models.layers`: the mean square, rotations and SiLU are taken in float32.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def _norm(
    x_ptr,
    added_ptr,
    sum_ptr,
    out_ptr,
    weight_ptr,
    x_stride,
    eps,
    width: tl.constexpr,
    block: tl.constexpr,
    adds: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, block)
    keep = column < width
    x = tl.load(x_ptr + row * x_stride + column, mask=keep, other=0.0)
    if adds:
        x = (x.to(tl.float32) + tl.load(added_ptr + row * width + column, mask=keep, other=0.0).to(tl.float32)).to(
            x.dtype
        )
        tl.store(sum_ptr + row * width + column, x, mask=keep)
    wide = x.to(tl.float32)
    wide = wide * tl.rsqrt(tl.sum(wide * wide, 0) / width + eps)
    weight = tl.load(weight_ptr + column, mask=keep, other=0.0)
    tl.store(out_ptr + row * width + column, wide.to(x.dtype) * weight, mask=keep)


def norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Return the RMSNorm of rows [n, width]."""
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    width = x.shape[1]
    if len(x):
        _norm[(len(x),)](x, x, x, out, weight, x.stride(0), eps, width, triton.next_power_of_2(width), False)
    return out


def add_norm(x: Tensor, added: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """Return the sum x + added, and its RMSNorm; rows are [n, width], `added` is contiguous."""
    total, out = torch.empty_like(added), torch.empty_like(added)
    width = x.shape[1]
    if len(x):
        _norm[(len(x),)](x, added, total, out, weight, x.stride(0), eps, width, triton.next_power_of_2(width), True)
    return total, out


@triton.jit
def _rotate(
    x_ptr,
    cos_ptr,
    sin_ptr,
    x_stride,
    heads: tl.constexpr,
    half: tl.constexpr,
    heads_padded: tl.constexpr,
    half_padded: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    head = tl.arange(0, heads_padded)
    dim = tl.arange(0, half_padded)
    in_half = dim < half
    keep = (head < heads)[:, None] & in_half[None, :]
    at = x_ptr + row * x_stride + head[:, None] * (2 * half) + dim[None, :]
    left = tl.load(at, mask=keep, other=0.0)
    right = tl.load(at + half, mask=keep, other=0.0)
    cos = tl.load(cos_ptr + row * (2 * half) + dim, mask=in_half, other=0.0)[None, :]
    sin = tl.load(sin_ptr + row * (2 * half) + dim, mask=in_half, other=0.0)[None, :]
    a, b = left.to(tl.float32), right.to(tl.float32)
    tl.store(at, (a * cos - b * sin).to(left.dtype), mask=keep)
    tl.store(at + half, (b * cos + a * sin).to(left.dtype), mask=keep)


def rotate_in_place(x: Tensor, cos: Tensor, sin: Tensor) -> None:
    """Rotate x [n, heads, head_dim], whose rows may be strided, by cos and sin [n, 1, head_dim] in float32."""
    num_rows, heads, dim = x.shape
    if num_rows:
        padded = triton.next_power_of_2(heads), triton.next_power_of_2(dim // 2)
        _rotate[(num_rows,)](x, cos, sin, x.stride(0), heads, dim // 2, *padded)


@triton.jit
def _gate(x_ptr, out_ptr, width: tl.constexpr, block: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * block + tl.arange(0, block)
    keep = column < width
    gate = tl.load(x_ptr + row * (2 * width) + column, mask=keep, other=0.0)
    up = tl.load(x_ptr + row * (2 * width) + width + column, mask=keep, other=0.0)
    wide = gate.to(tl.float32)
    tl.store(out_ptr + row * width + column, (wide / (1 + tl.exp(-wide))).to(gate.dtype) * up, mask=keep)


def gated(x: Tensor) -> Tensor:
    """Return SwiGLU's product: x [n, gate | up] -> silu(gate) * up [n, width]."""
    width, block = x.shape[1] // 2, 2048
    out = x.new_empty(len(x), width)
    if len(x):
        _gate[(len(x), triton.cdiv(width, block))](x, out, width, block)
    return out
