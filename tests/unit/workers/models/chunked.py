"""A family of other layers in one file, as `workers/models/llada.py` is one.

It has LayerNorms, one GELU projection, positions that are added to queries and keys, and rows that see no later chunk
than their own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from workers.decoding.rules import Unmasking
from workers.decoding.timetable import CommitSchedule
from workers.models.base import Architecture, DecodingDefaults, Layer, ModelConfig, TorchModel

CHUNK = 8
RAW: Mapping[str, Any] = {"model_type": "chunked", "width": 32, "layers": 3, "heads": 4, "vocab": 97, "chunk": CHUNK}


@dataclass(frozen=True)
class ChunkedConfig(ModelConfig):
    chunk: int = CHUNK


def sees(rows: Tensor, keys: Tensor, *, chunk: int) -> Tensor:
    return rows[:, None] // chunk >= keys[None] // chunk


def parse_config(raw: Mapping[str, Any]) -> ModelConfig:
    return ChunkedConfig(
        architecture="chunked",
        num_layers=raw["layers"],
        hidden_size=raw["width"],
        num_heads=raw["heads"],
        num_kv_heads=raw["heads"],
        mlp_size=2 * raw["width"],
        vocab_size=raw["vocab"],
        context_length=128,
        rope_theta=0.0,
        norm_eps=1e-5,
        mask_token_id=96,
        eos_token_id=95,
        pad_token_id=95,
        decoding=DecodingDefaults(Unmasking.TOPK_MARGIN, CommitSchedule.DREAM),
        attention_mask=partial(sees, chunk=raw["chunk"]),
        chunk=raw["chunk"],
    )


class ChunkedLayer(nn.Module):
    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        width = config.hidden_size
        self.heads = config.num_heads
        self.before, self.behind = nn.LayerNorm(width), nn.LayerNorm(width)
        self.joined, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.wide, self.narrow = nn.Linear(width, config.mlp_size), nn.Linear(config.mlp_size, width)

    def qkv(self, x: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        q, k, v = self.joined(self.before(x)).unflatten(-1, (3, self.heads, -1)).unbind(-3)
        return q + cos, k + sin, v

    def finish(self, x: Tensor, attended: Tensor) -> Tensor:
        x = x + self.out(attended)
        return cast(Tensor, x + self.narrow(F.gelu(self.wide(self.behind(x)))))


class ChunkedModel(TorchModel):
    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        assert isinstance(config, ChunkedConfig)
        self.config = config
        self.tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.head = nn.Linear(config.hidden_size, config.vocab_size)
        self.blocks = nn.ModuleList(ChunkedLayer(config) for _ in range(config.num_layers))

    @property
    def stack(self) -> Sequence[Layer]:
        return cast(Sequence[Layer], self.blocks)

    def embed(self, token_ids: Tensor) -> Tensor:
        return cast(Tensor, self.tokens(token_ids))

    def rope(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """What these layers add to queries and keys: the position within its chunk, and the chunk."""
        within, chunk = positions % self.config.chunk, positions // self.config.chunk
        dims = torch.arange(self.config.head_dim)
        return tuple(9 * (p.float()[..., None, None] + dims).sin() for p in (within, chunk))  # type: ignore[return-value]

    def logits(self, x: Tensor) -> Tensor:
        return cast(Tensor, self.head(x))


def checkpoint_name(parameter: str) -> str:
    return f"chunked.{parameter}"


CHUNKED = Architecture("chunked", ("chunked",), parse_config, checkpoint_name, ChunkedModel)
