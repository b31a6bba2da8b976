"""Runs the transformer's layers on a GPU with fewer launches: fused projections, and one kernel between any two."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from workers.models.base import Layer, ModelConfig
from workers.models.kernels import add_norm, gated, norm, rotate_in_place
from workers.models.layers import DecoderLayer, Transformer


class FusedLayer:
    """Implements `workers.models.base.Layer` with another layer's weights, which it takes over."""

    def __init__(self, layer: DecoderLayer, config: ModelConfig) -> None:
        """Take over `layer`, which is unusable afterwards: its joined weights are freed, to keep a single copy."""
        self._heads, self._kv_heads, self._eps = config.num_heads, config.num_kv_heads, config.norm_eps
        self._attention_norm, self._mlp_norm = layer.attention_norm.weight, layer.mlp_norm.weight
        self._qkv, self._qkv_bias = join(layer, "q", "k", "v")
        self._gate_up, _ = join(layer, "gate", "up")
        self._o, self._down = layer.o.weight, layer.down.weight

    def qkv(self, x: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        joined = F.linear(norm(x, self._attention_norm, self._eps), self._qkv, self._qkv_bias)
        heads = joined.view(len(x), self._heads + 2 * self._kv_heads, -1)
        rotate_in_place(heads[:, : self._heads + self._kv_heads], cos, sin)
        q, k, v = torch.split(heads, [self._heads, self._kv_heads, self._kv_heads], dim=1)
        return q, k, v

    def finish(self, x: Tensor, attended: Tensor) -> Tensor:
        x, normed = add_norm(x, F.linear(attended, self._o), self._mlp_norm, self._eps)
        return x.addmm_(gated(F.linear(normed, self._gate_up)), self._down.T)


def join(layer: nn.Module, *names: str) -> tuple[Tensor, Tensor | None]:
    """Return the weights and biases of several projections, stacked along the output, and free the originals."""
    projections = [layer.get_submodule(name) for name in names]
    weight = torch.cat([projection.get_parameter("weight") for projection in projections])
    biases = [projection.bias for projection in projections if isinstance(projection.bias, Tensor)]
    for name in names:
        delattr(layer, name)
    return weight, torch.cat(biases) if biases else None


class FusedTransformer:
    """Implements `workers.models.base.DiffusionLM` with the weights of a `Transformer`, which it takes over."""

    def __init__(self, model: Transformer) -> None:
        self.config = model.config
        self._model = model
        self._stack = [FusedLayer(layer, model.config) for layer in model.layers if isinstance(layer, DecoderLayer)]

    @property
    def stack(self) -> Sequence[Layer]:
        return self._stack

    def embed(self, token_ids: Tensor) -> Tensor:
        return self._model.embed(token_ids)

    def rope(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        return self._model.rope(positions)

    def logits(self, x: Tensor) -> Tensor:
        return F.linear(norm(x, self._model.norm.weight, self.config.norm_eps), self._model.head.weight)
