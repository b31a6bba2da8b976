"""Declares the interface of a model to the engine: a stack of layers that run over any subset of a sequence's rows."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from workers.decoding.rules import Unmasking
from workers.decoding.timetable import CommitSchedule

AttentionMask = Callable[[Tensor, Tensor], Tensor]
"""Positions of rows [n] and of keys [T] -> bool [n, T], true where the row sees the key."""


@dataclass(frozen=True)
class DecodingDefaults:
    """Holds the decoding rules of a family's authors, for requests that name none; LLaDA's by default."""

    unmasking: Unmasking = Unmasking.LOW_CONFIDENCE
    timing: CommitSchedule = CommitSchedule.QUOTA


@dataclass(frozen=True)
class ModelConfig:
    """Holds a masked diffusion LM's dimensions and special tokens, under the same names for all architectures.

    A family whose layers need more adds fields in a subclass.
    """

    architecture: str
    num_layers: int
    hidden_size: int
    num_heads: int
    num_kv_heads: int
    mlp_size: int
    vocab_size: int
    context_length: int
    rope_theta: float
    norm_eps: float
    mask_token_id: int
    eos_token_id: int
    pad_token_id: int
    qkv_bias: bool = False
    prediction_shift: int = 0
    """Number of rows to the left of a position at which its logits are read (Dream: 1; none for position 0)."""
    decoding: DecodingDefaults = DecodingDefaults()
    attention_mask: AttentionMask | None = None
    """None if every row sees every key. Only the reference attention, on a CPU, computes anything else."""

    @property
    def head_dim(self) -> int:
        return self.hidden_size // self.num_heads

    def visible(self, rows: Sequence[int], keys: Sequence[int], device: torch.device) -> Tensor | None:
        """Return the mask between rows and keys at these positions; None if every row sees every key."""
        if self.attention_mask is None:
            return None
        return self.attention_mask(torch.tensor(rows, device=device), torch.tensor(keys, device=device))

    @property
    def layer_weights(self) -> int:
        """Return the number of elements of one layer's projections; a row costs twice as many FLOPs."""
        attention = 2 * self.hidden_size + 2 * self.num_kv_heads * self.head_dim
        return self.hidden_size * (attention + 3 * self.mlp_size)

    @property
    def kv_elements_per_token(self) -> int:
        """Return the number of K and V elements of one token over all layers."""
        return 2 * self.num_layers * self.num_kv_heads * self.head_dim


class Layer(Protocol):
    """Computes one transformer layer in two parts; the engine computes attention between them."""

    def qkv(self, x: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Project rows `x` [..., hidden] to queries and keys, which are rotated, and values.

        Return q [..., heads, head_dim], k and v [..., kv_heads, head_dim].
        """
        ...

    def finish(self, x: Tensor, attended: Tensor) -> Tensor:
        """Add output projection, residuals and MLP: `attended` [..., heads * head_dim] -> [..., hidden]."""
        ...


class DiffusionLM(Protocol):
    """Computes a bidirectional denoiser. Positions enter only through `rope`; rows interact only through attention."""

    @property
    def config(self) -> ModelConfig: ...

    @property
    def stack(self) -> Sequence[Layer]: ...

    def embed(self, token_ids: Tensor) -> Tensor:
        """Turn token ids [...] into hidden states [..., hidden]."""
        ...

    def rope(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Return cos and sin [..., 1, head_dim] of positions [...], in float32."""
        ...

    def logits(self, x: Tensor) -> Tensor:
        """Turn hidden states after the last layer [..., hidden] into logits [..., vocab]."""
        ...


class TorchModel(nn.Module, ABC):
    """Implements `DiffusionLM` for an architecture; its parameters are a checkpoint's tensors."""

    config: ModelConfig

    @property
    @abstractmethod
    def stack(self) -> Sequence[Layer]: ...

    @abstractmethod
    def embed(self, token_ids: Tensor) -> Tensor: ...

    @abstractmethod
    def rope(self, positions: Tensor) -> tuple[Tensor, Tensor]: ...

    @abstractmethod
    def logits(self, x: Tensor) -> Tensor: ...

    def fused(self) -> DiffusionLM:
        """Return the same model with fewer kernel launches, for a GPU; this one may be unusable afterwards."""
        return self


@dataclass(frozen=True)
class Architecture:
    """Describes how checkpoints of one family are read and run."""

    name: str
    model_types: tuple[str, ...]
    """Values of `model_type` in config.json that this architecture reads."""
    parse_config: Callable[[Mapping[str, Any]], ModelConfig]
    """Reads dimensions and special tokens from config.json, and adds the family's decoding defaults and attention mask.
    Raises `UnsupportedModelError` for a config that the layers don't implement.
    """
    checkpoint_name: Callable[[str], str]
    """Maps a name of our parameters to the name in the checkpoint's safetensors files."""
    build: Callable[[ModelConfig], TorchModel]
    """Makes the model, whose weights are loaded later."""
