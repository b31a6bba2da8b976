"""Store keys, values and states in the tensors behind the pages.

A page holds `page_tokens` key rows, then as many value rows, of one layer. Boundary states (rows of `hidden_size`)
lie flat over whole pages, so that one pool accounts for every byte.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from workers.kv.pool import PageId
from workers.models.base import ModelConfig


class PageStorage:
    """Owns one buffer of `num_pages` pages on `device`, uninitialised: nothing may be read before it was written."""

    def __init__(
        self, model: ModelConfig, *, pool_bytes: int, page_tokens: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        self.page_tokens = page_tokens
        self.page_elements = 2 * page_tokens * model.num_kv_heads * model.head_dim
        self.page_bytes = self.page_elements * dtype.itemsize
        self.num_pages = pool_bytes // self.page_bytes
        shape = ((self.num_pages + 1) * 2 * page_tokens, model.num_kv_heads, model.head_dim)
        self.rows = torch.empty(shape, dtype=dtype, device=device)
        """[rows, kv_heads, head_dim]: a token's K is row `slot`, its V row `slot + page_tokens`."""
        self.scratch_slot = self.num_pages * 2 * page_tokens
        """The slot of rows that are never read, in a page that the pool never allocates."""

    @property
    def device(self) -> torch.device:
        return self.rows.device

    def slots(self, pages: Sequence[PageId], num_tokens: int) -> Tensor:
        """Return the key rows of tokens 0..num_tokens-1 laid over `pages` in order: int64 [num_tokens]."""
        token = torch.arange(num_tokens, device=self.device)
        first_row = torch.tensor(pages, dtype=torch.int64, device=self.device) * (2 * self.page_tokens)
        return first_row[token // self.page_tokens] + token % self.page_tokens

    def write(self, slots: Tensor, k: Tensor, v: Tensor) -> None:
        """Store k and v [n, kv_heads, head_dim] at `slots` [n], which must be distinct except for the scratch slot."""
        if self.rows.is_cuda:
            from workers.kv.kernels import store

            store(self.rows, slots, k, v, self.page_tokens)
            return
        self.rows.index_copy_(0, slots, k)
        self.rows.index_copy_(0, slots + self.page_tokens, v)

    def read(self, slots: Tensor) -> tuple[Tensor, Tensor]:
        """Return copies of K and V [n, kv_heads, head_dim] at `slots` [n]."""
        return self.rows.index_select(0, slots), self.rows.index_select(0, slots + self.page_tokens)

    def write_states(self, pages: Sequence[PageId], states: Tensor) -> None:
        """Store hidden states [n, hidden] over `pages`."""
        self.rows.view(-1, self.page_elements).index_copy_(0, self._index(pages), self._padded(states, len(pages)))

    def read_states(self, pages: Sequence[PageId], num_rows: int, width: int) -> Tensor:
        """Return a copy of the hidden states [num_rows, width] that `write_states` stored."""
        flat = self.rows.view(-1, self.page_elements).index_select(0, self._index(pages)).flatten()
        return flat[: num_rows * width].view(num_rows, width)

    def _index(self, pages: Sequence[PageId]) -> Tensor:
        return torch.tensor(pages, dtype=torch.int64, device=self.device)

    def _padded(self, states: Tensor, num_pages: int) -> Tensor:
        flat = states.new_zeros(num_pages * self.page_elements)
        flat[: states.numel()] = states.flatten()
        return flat.view(num_pages, self.page_elements)
