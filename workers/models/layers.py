"""Defines the pre-norm transformer that LLaDA, Dream and their kin share: RMSNorm, rotary positions, SwiGLU.

Attention itself is absent: a caller takes `qkv`, attends as its cache policy says, and calls `finish`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from workers.models.base import DiffusionLM, Layer, ModelConfig, TorchModel


class RMSNorm(nn.Module):
    """Computes x / rms(x) * weight, the mean square in float32 (Zhang & Sennrich 2019, eq. 4)."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        wide = x.float()
        wide = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + self.eps)
        return wide.to(x.dtype) * self.weight


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate x [..., heads, head_dim] by its position in the half-split layout, computed in float32."""
    wide = x.float()
    left, right = wide.chunk(2, dim=-1)
    return (wide * cos + torch.cat((-right, left), dim=-1) * sin).to(x.dtype)


class DecoderLayer(nn.Module):
    """Implements `workers.models.base.Layer`."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        width, kv_width = config.hidden_size, config.num_kv_heads * config.head_dim
        self.heads, self.kv_heads = config.num_heads, config.num_kv_heads
        self.attention_norm = RMSNorm(width, config.norm_eps)
        self.q = nn.Linear(width, width, bias=config.qkv_bias)
        self.k = nn.Linear(width, kv_width, bias=config.qkv_bias)
        self.v = nn.Linear(width, kv_width, bias=config.qkv_bias)
        self.o = nn.Linear(width, width, bias=False)
        self.mlp_norm = RMSNorm(width, config.norm_eps)
        self.gate = nn.Linear(width, config.mlp_size, bias=False)
        self.up = nn.Linear(width, config.mlp_size, bias=False)
        self.down = nn.Linear(config.mlp_size, width, bias=False)

    def qkv(self, x: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        normed = self.attention_norm(x)
        q = self.q(normed).unflatten(-1, (self.heads, -1))
        k = self.k(normed).unflatten(-1, (self.kv_heads, -1))
        v = self.v(normed).unflatten(-1, (self.kv_heads, -1))
        return rotate(q, cos, sin), rotate(k, cos, sin), v

    def finish(self, x: Tensor, attended: Tensor) -> Tensor:
        x = x + cast(Tensor, self.o(attended))
        normed = self.mlp_norm(x)
        return x + cast(Tensor, self.down(F.silu(self.gate(normed)) * self.up(normed)))


class Transformer(TorchModel):
    """Stacks `DecoderLayer`s between an embedding and a head."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        weight = torch.empty(config.vocab_size, config.hidden_size)
        self.embedding = nn.Embedding.from_pretrained(weight, freeze=False)  # type: ignore[no-untyped-call]
        if not self.embedding.weight.is_meta:  # there, torch would load its compiler to draw nothing
            nn.init.normal_(self.embedding.weight)
        self.layers = nn.ModuleList(DecoderLayer(config) for _ in range(config.num_layers))
        self.norm = RMSNorm(config.hidden_size, config.norm_eps)
        self.head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)

    @property
    def stack(self) -> Sequence[Layer]:
        return cast(Sequence[Layer], self.layers)

    def embed(self, token_ids: Tensor) -> Tensor:
        return cast(Tensor, self.embedding(token_ids))

    def rope(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Return cos and sin of position * theta^(-2i/head_dim) (Su et al. 2021, sec. 3.2.2), twice for two halves."""
        dim = self.config.head_dim
        exponents = torch.arange(0, dim, 2, dtype=torch.float32, device=positions.device) / dim
        angles = positions.float().unsqueeze(-1) / self.config.rope_theta**exponents
        angles = torch.cat((angles, angles), dim=-1).unsqueeze(-2)
        return angles.cos(), angles.sin()

    def logits(self, x: Tensor) -> Tensor:
        return cast(Tensor, self.head(self.norm(x)))

    def fused(self) -> DiffusionLM:
        if any(type(layer) is not DecoderLayer for layer in self.layers):
            return self
        from workers.models.fused import FusedTransformer  # with Triton, which only a GPU's machine can import

        return FusedTransformer(self)

    def forward(
        self,
        token_ids: Tensor,
        attend: Callable[[int, Tensor, Tensor, Tensor], Tensor],
        positions: Tensor | None = None,
    ) -> Tensor:
        """Turn token ids [..., T] at `positions` [..., T] (0..T-1 by default) into logits [..., T, vocab].

        `attend(layer, q, k, v)` takes and returns [..., T, heads, head_dim]; `full_attention` is the plain one.
        """
        if positions is None:
            positions = torch.arange(token_ids.shape[-1], device=token_ids.device)
        cos, sin = self.rope(positions)
        x = self.embed(token_ids)
        for index, layer in enumerate(self.stack):
            x = layer.finish(x, attend(index, *layer.qkv(x, cos, sin)).flatten(-2))
        return self.logits(x)


def full_attention(_layer: int, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    """Let every row attend to every row, or to those for which `mask` [T, T] is true.

    All tensors are [..., T, heads, head_dim]; grouped-query heads are allowed.
    """
    q, k, v = (t.transpose(-3, -2) for t in (q, k, v))
    grouped = q.shape[-3] != k.shape[-3]
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=grouped).transpose(-3, -2)
