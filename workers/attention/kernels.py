"""Holds the Triton kernels: attention of tiles over paged keys and values, and the merge of partial results.

Softmax is taken online, as in FlashAttention (Dao et al. 2022, algorithm 1), in float32; products are in the operands'
type, float32 ones without TF32.
"""

from __future__ import annotations

import triton
import triton.language as tl

LOG2_E = tl.constexpr(1.4426950408889634)


@triton.jit(do_not_specialize=["layer"])
def attend_tiles(
    q_ptr,  # [N, heads, dim], rows `q_stride` apart
    kv_ptr,  # [rows, kv_heads, dim]: a token's K is at its slot, its V `page_tokens` rows behind
    out_ptr,  # [N, heads, dim], or [parts, N, heads, dim] in float32
    lse_ptr,  # float32 [parts, N, heads]
    tiles_ptr,  # int64 [tiles, 7]: `workers.attention.tiles.Tile`
    layer,
    num_rows,  # N
    q_stride,
    page_tokens,
    scale,
    heads: tl.constexpr,
    kv_heads: tl.constexpr,
    dim: tl.constexpr,
    dim_padded: tl.constexpr,
    tile_rows: tl.constexpr,
    tile_keys: tl.constexpr,
    in_parts: tl.constexpr,
):
    tile = tiles_ptr + tl.program_id(0) * 7
    head = tl.program_id(1)
    count = tl.load(tile + 1)
    if count == 0:
        return
    first_row = tl.load(tile)
    slots_ptr = tl.load(tile + 2).to(tl.pointer_type(tl.int64)) + layer * tl.load(tile + 3)
    first_key = tl.load(tile + 4)
    last_key = first_key + tl.load(tile + 5)
    part = tl.load(tile + 6)
    dims = tl.arange(0, dim_padded)
    in_dim = dims < dim
    rows = first_row + tl.arange(0, tile_rows)
    in_tile = tl.arange(0, tile_rows) < count
    keep = in_tile[:, None] & in_dim[None, :]
    q = tl.load(q_ptr + rows[:, None] * q_stride + head * dim + dims[None, :], mask=keep, other=0.0)
    head_ptr = kv_ptr + (head // (heads // kv_heads)) * dim + dims[None, :]
    highest = tl.full([tile_rows], float("-inf"), tl.float32)
    total = tl.zeros([tile_rows], tl.float32)
    acc = tl.zeros([tile_rows, dim_padded], tl.float32)
    for start in range(first_key, last_key, tile_keys):
        keys = start + tl.arange(0, tile_keys)
        seen = keys < last_key
        slots = tl.load(slots_ptr + keys, mask=seen, other=0)
        there = seen[:, None] & in_dim[None, :] if dim < dim_padded else seen[:, None]
        k = tl.load(head_ptr + slots[:, None] * (kv_heads * dim), mask=there, other=0.0)
        v = tl.load(head_ptr + (slots + page_tokens)[:, None] * (kv_heads * dim), mask=there, other=0.0)
        scores = tl.dot(q, tl.trans(k), input_precision="ieee") * (scale * LOG2_E)
        scores = tl.where(seen[None, :], scores, float("-inf"))
        risen = tl.maximum(highest, tl.max(scores, 1))
        weights = tl.exp2(scores - risen[:, None])
        fade = tl.exp2(highest - risen)
        total = total * fade + tl.sum(weights, 1)
        acc = tl.dot(weights.to(v.dtype), v, acc * fade[:, None], input_precision="ieee")
        highest = risen
    acc = acc / total[:, None]
    if in_parts:
        at = part * num_rows + rows
        tl.store(lse_ptr + at * heads + head, highest + tl.log2(total), mask=in_tile)
        tl.store(out_ptr + (at[:, None] * heads + head) * dim + dims[None, :], acc, mask=keep)
    else:
        out = out_ptr + (rows[:, None] * heads + head) * dim + dims[None, :]
        tl.store(out, acc.to(out_ptr.dtype.element_ty), mask=keep)


@triton.jit
def merge_parts(
    out_ptr,  # [N, heads, dim]
    parts_ptr,  # float32 [parts, N, heads, dim]
    lse_ptr,  # float32 [parts, N, heads], base 2
    counts_ptr,  # int32 [N]: parts of each row; 0 leaves it alone
    num_rows,  # N
    heads: tl.constexpr,
    dim: tl.constexpr,
    heads_padded: tl.constexpr,
    dim_padded: tl.constexpr,
):
    """Sum one row's partial results, each weighted by its share of the softmax's denominator."""
    row = tl.program_id(0).to(tl.int64)
    count = tl.load(counts_ptr + row)
    if count == 0:
        return
    head = tl.arange(0, heads_padded)
    dims = tl.arange(0, dim_padded)
    in_heads = head < heads
    keep = in_heads[:, None] & (dims < dim)[None, :]
    within = head[:, None] * dim + dims[None, :]
    highest = tl.full([heads_padded], float("-inf"), tl.float32)
    total = tl.zeros([heads_padded], tl.float32)
    acc = tl.zeros([heads_padded, dim_padded], tl.float32)
    for part in range(count):
        at = part * num_rows + row
        lse = tl.load(lse_ptr + at * heads + head, mask=in_heads, other=0.0)
        values = tl.load(parts_ptr + at * heads * dim + within, mask=keep, other=0.0)
        risen = tl.maximum(highest, lse)
        fade = tl.exp2(highest - risen)
        weight = tl.exp2(lse - risen)
        acc = acc * fade[:, None] + values * weight[:, None]
        total = total * fade + weight
        highest = risen
    acc = acc / total[:, None]
    tl.store(out_ptr + row * heads * dim + within, acc.to(out_ptr.dtype.element_ty), mask=keep)
