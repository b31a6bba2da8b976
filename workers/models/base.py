"""What the engine asks of a model: a stack of layers that it can run over any subset of a sequence's rows."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor


@dataclass(frozen=True)
class ModelConfig:
    """Dimensions and special tokens of a masked diffusion LM, in one vocabulary for all architectures."""

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
    """How many rows to the left the logits of a position are read (Dream: 1; position 0 reads its own)."""

    @property
    def head_dim(self) -> int:
        return self.hidden_size // self.num_heads

    @property
    def layer_weights(self) -> int:
        """Elements of one layer's projections: a row costs twice as many FLOPs."""
        attention = 2 * self.hidden_size + 2 * self.num_kv_heads * self.head_dim
        return self.hidden_size * (attention + 3 * self.mlp_size)

    @property
    def kv_elements_per_token(self) -> int:
        """K and V elements that one token occupies over all layers."""
        return 2 * self.num_layers * self.num_kv_heads * self.head_dim


class Layer(Protocol):
    """One transformer layer, split where the engine puts its own attention."""

    def qkv(self, x: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values of rows `x` [..., hidden]; queries and keys are rotated.

        Returns q [..., heads, head_dim], k and v [..., kv_heads, head_dim].
        """
        ...

    def finish(self, x: Tensor, attended: Tensor) -> Tensor:
        """Output projection, residuals and MLP: `attended` [..., heads * head_dim] -> [..., hidden]."""
        ...


class DiffusionLM(Protocol):
    """A bidirectional denoiser. Position and neighbourhood enter only through `rope` and attention."""

    @property
    def config(self) -> ModelConfig: ...

    @property
    def stack(self) -> Sequence[Layer]: ...

    def embed(self, token_ids: Tensor) -> Tensor:
        """Token ids [...] -> hidden states [..., hidden]."""
        ...

    def rope(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Positions [...] -> cos and sin [..., 1, head_dim] in float32."""
        ...

    def logits(self, x: Tensor) -> Tensor:
        """Hidden states after the last layer [..., hidden] -> logits [..., vocab]."""
        ...


@dataclass(frozen=True)
class Architecture:
    """How one family of checkpoints is read: its config keys and its weight names."""

    name: str
    model_types: tuple[str, ...]
    """Values of `model_type` in config.json that this architecture reads."""
    parse_config: Callable[[Mapping[str, Any]], ModelConfig]
    """Raises `UnsupportedModelError` for a config that asks for what the layers don't compute."""
    checkpoint_name: Callable[[str], str]
    """Our parameter name -> the name in the checkpoint's safetensors files."""
