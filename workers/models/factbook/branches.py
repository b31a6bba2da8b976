"""Samples are packed side by side, many questions after one sheet, and attention masks keep them apart.

A packed row has P + K n token slots, where P is a multiple of 128, and K is 64 or a multiple of 128. Every slot past a
part's end is padding:

    | prefix ......pad | suffix canvas tail pad | suffix canvas tail pad | ...
    0                  P                        P+K                      P+2K

A conversation may be cut behind any of its turns: the turns before the cut stand in the prefix, those after it in the
suffix.

Every branch takes the positions right after the prefix and attends to the prefix and to itself, as if it were the
only one. Prefix rows attend to the prefix, and to all branches unless the layer isolates the prefix.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask

from workers.models.factbook.samples import CANVAS, Sample

BRANCH = 64
TILE = 128
MAX_LENGTH = 2048
"""Most tokens of a prompt with its canvas."""
AttentionFn = Callable[[Tensor, Tensor, Tensor], Tensor]
"""A function of q, k and v [batch, slots, heads, head_dim] that returns the same shape."""


@dataclass(frozen=True)
class Shape:
    """A shape sizes packed rows: slots of the prefix and of a branch, and the number of branches."""

    prefix_slots: int
    branch_slots: int
    num_branches: int

    @property
    def num_slots(self) -> int:
        return self.prefix_slots + self.branch_slots * self.num_branches


@dataclass(frozen=True)
class PackedBatch:
    """A batch holds packed samples: `ids` [B, S], `prefix_len` [B], the others [B, branches].

    A `canvas_len` of 0 means that the row lacks this branch. `tail_len` tokens behind the canvas are given.
    """

    ids: Tensor
    prefix_len: Tensor
    suffix_len: Tensor
    canvas_len: Tensor
    answer_len: Tensor
    tail_len: Tensor
    branch_slots: int = field(default=BRANCH, kw_only=True)

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """Return the tensors in the order of the fields."""
        return self.ids, self.prefix_len, self.suffix_len, self.canvas_len, self.answer_len, self.tail_len

    def to(self, device: str | torch.device) -> "PackedBatch":
        """Copy the batch to a device, as int64."""
        moved = (tensor.to(device, non_blocking=True).long() for tensor in self.tensors)
        return PackedBatch(*moved, branch_slots=self.branch_slots)

    @property
    def prefix_slots(self) -> int:
        return self.ids.shape[1] - self.branch_slots * self.suffix_len.shape[1]


def pack(
    samples: Sequence[Sample],
    prefix_slots: int,
    num_slots: int,
    eos: int,
    canvas_lens: NDArray[np.int64],
    branch_slots: int = BRANCH,
) -> PackedBatch:
    """Pack samples side by side and fill their canvases with EOS after the answer.

    `canvas_lens` [B, branches] holds for the branches whose canvas is not fixed; a canvas has at least one EOS then,
    and ends with its branch and with the context.
    """
    shape = (len(samples), num_slots)
    ids = np.full((len(samples), prefix_slots + branch_slots * num_slots), eos, dtype=np.int16)
    prefix_len = np.zeros(len(samples), dtype=np.int16)
    suffix_len, answer_len, canvas_len, tail_len = (np.zeros(shape, dtype=np.int16) for _ in range(4))
    for row, sample in enumerate(samples):
        prefix_len[row] = len(sample.prefix)
        ids[row, : len(sample.prefix)] = sample.prefix
        for k, (suffix, answer) in enumerate(zip(sample.suffixes, sample.answers, strict=True)):
            start = prefix_slots + branch_slots * k
            tail = sample.tails[k] if sample.tails else []
            canvas = sample.canvases[k] if sample.canvases else None
            if canvas is None:
                given = len(suffix) + len(tail)
                room = min(branch_slots - given, MAX_LENGTH - len(sample.prefix) - given)
                canvas = min(max(int(canvas_lens[row, k]), len(answer) + 1), room)
            ids[row, start : start + len(suffix) + len(answer)] = suffix + answer
            end = start + len(suffix) + canvas
            ids[row, end : end + len(tail)] = tail
            suffix_len[row, k], answer_len[row, k] = len(suffix), len(answer)
            canvas_len[row, k], tail_len[row, k] = canvas, len(tail)
    arrays = (ids, prefix_len, suffix_len, canvas_len, answer_len, tail_len)
    return PackedBatch(*map(torch.from_numpy, arrays), branch_slots=branch_slots)


def layout(batch: PackedBatch, canvas_slots: int = CANVAS) -> tuple[Tensor, Tensor, Tensor]:
    """Return positions [B, S], owners [B, S] and the first slots of each canvas [B, branches, canvas_slots].

    A slot's owner is 0 in the prefix, k + 1 in branch k and -1 in padding.
    """
    prefix_slots, num_slots, branch_slots = batch.prefix_slots, batch.ids.shape[1], batch.branch_slots
    slot = torch.arange(num_slots, device=batch.ids.device).expand_as(batch.ids)
    prefix_len = batch.prefix_len.unsqueeze(1)
    branch = (slot - prefix_slots).clamp(min=0) // branch_slots
    offset = (slot - prefix_slots).clamp(min=0) % branch_slots
    in_prefix = slot < prefix_slots
    positions = torch.where(in_prefix, slot, prefix_len + offset)
    used = (batch.suffix_len + batch.canvas_len + batch.tail_len).gather(1, branch)
    owners = torch.where(in_prefix, torch.where(slot < prefix_len, 0, -1), torch.where(offset < used, branch + 1, -1))
    starts = prefix_slots + branch_slots * torch.arange(batch.suffix_len.shape[1], device=slot.device)
    canvas = (starts + batch.suffix_len).unsqueeze(-1) + torch.arange(canvas_slots, device=slot.device)
    return positions, owners, canvas.clamp(max=num_slots - 1)


def dense_attention(owners: Tensor, prefix_slots: int, *, isolated: bool) -> AttentionFn:
    """Return attention by an explicit mask, which runs on any device and is slow for long rows."""
    query, key = owners.unsqueeze(2), owners.unsqueeze(1)
    in_prefix = torch.arange(owners.shape[1], device=owners.device).unsqueeze(1) < prefix_slots
    visible = (key == 0) | ((key > 0) & (query == key))
    if not isolated:
        visible = visible | ((key > 0) & in_prefix)
    mask = visible.unsqueeze(1)

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        q, k, v = (t.transpose(1, 2) for t in (q, k, v))
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2)

    return attend


class TiledMask:
    """Masks FlexAttention at one batch shape as `dense_attention` does; `set_owners` refills it in place."""

    def __init__(self, owners: Tensor, prefix_slots: int, *, isolated: bool, branch_slots: int = BRANCH) -> None:
        self._in_prefix = torch.arange(owners.shape[1], device=owners.device) < prefix_slots
        self._isolated = isolated
        keys, queries = torch.empty_like(owners, dtype=torch.int32), torch.empty_like(owners, dtype=torch.int32)
        self._keys, self._queries = keys, queries
        self.set_owners(owners)
        num_tiles, num_prefix = owners.shape[1] // TILE, prefix_slots // TILE
        prefix = list(range(num_prefix))
        rows = [prefix if isolated else list(range(num_tiles)) for _ in prefix]
        group = max(1, branch_slots // TILE)  # tiles that a branch fills
        for first in range(num_prefix, num_tiles, group):
            rows += [[*prefix, *range(first, first + group)]] * group
        counts = torch.tensor([len(row) for row in rows], dtype=torch.int32)
        indices = torch.tensor([row + [0] * (num_tiles - len(row)) for row in rows], dtype=torch.int32)

        def is_visible(b: Tensor, _h: Tensor, q: Tensor, kv: Tensor) -> Tensor:
            key, query = keys[b, kv], queries[b, q]
            return (key == 0) | ((key > 0) & ((query == key) | (query == 0)))

        blocks = BlockMask.from_kv_blocks(counts[None, None], indices[None, None], BLOCK_SIZE=TILE, mask_mod=is_visible)
        self.blocks = blocks.to(str(owners.device))

    def set_owners(self, owners: Tensor) -> None:
        """Set the owners [B, S] of the next batch. An isolated prefix row counts as padding, so it sees no branch."""
        self._keys.copy_(owners)
        self._queries.copy_(owners.masked_fill(self._in_prefix, -1) if self._isolated else owners)
