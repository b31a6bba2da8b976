"""Reads Dream (Ye et al. 2025): Qwen2's layers, with each position's token predicted one row to its left."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from workers.decoding.rules import Unmasking
from workers.decoding.timetable import CommitSchedule
from workers.errors import UnsupportedModelError
from workers.models.base import Architecture, DecodingDefaults, ModelConfig
from workers.models.layers import Transformer

REQUIRED_KEYS = (
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "vocab_size",
    "mask_token_id",
    "eos_token_id",
)
"""The keys without which a Dream config.json is incomplete."""

SUPPORTED_VALUES: Mapping[str, tuple[Any, ...]] = {
    "hidden_act": ("silu",),
    "rope_scaling": (None,),
    "use_sliding_window": (False,),
    "tie_word_embeddings": (False,),
}
"""The config values that these layers implement; any other value would silently give wrong logits."""

TRAINED_CONTEXT = 2048
"""The context that Dream was trained on; its config has that of the Qwen2.5 weights that it started from."""

DECODING = DecodingDefaults(Unmasking.ENTROPY, CommitSchedule.DREAM)
"""The rules that Dream's authors decode with."""


def parse_config(raw: Mapping[str, Any]) -> ModelConfig:
    if missing := [key for key in REQUIRED_KEYS if key not in raw]:
        raise UnsupportedModelError(f"config.json lacks {', '.join(missing)}, which a Dream model needs")
    for key, supported in SUPPORTED_VALUES.items():
        if raw.get(key, supported[0]) not in supported:
            raise UnsupportedModelError(f"config.json has {key}={raw[key]!r}; supported: {supported[0]!r}")
    return ModelConfig(
        architecture="dream",
        num_layers=raw["num_hidden_layers"],
        hidden_size=raw["hidden_size"],
        num_heads=raw["num_attention_heads"],
        num_kv_heads=raw.get("num_key_value_heads") or raw["num_attention_heads"],
        mlp_size=raw["intermediate_size"],
        vocab_size=raw["vocab_size"],
        context_length=min(raw.get("max_position_embeddings", TRAINED_CONTEXT), TRAINED_CONTEXT),
        rope_theta=raw.get("rope_theta", 1_000_000.0),
        norm_eps=raw.get("rms_norm_eps", 1e-6),
        mask_token_id=raw["mask_token_id"],
        eos_token_id=raw["eos_token_id"],
        pad_token_id=raw["pad_token_id"] if raw.get("pad_token_id") is not None else raw["eos_token_id"],
        qkv_bias=True,
        prediction_shift=1,
        decoding=DECODING,
    )


TOP_LEVEL_NAMES = {"embedding": "model.embed_tokens", "norm": "model.norm", "head": "lm_head"}
LAYER_NAMES = {
    "attention_norm": "input_layernorm",
    "q": "self_attn.q_proj",
    "k": "self_attn.k_proj",
    "v": "self_attn.v_proj",
    "o": "self_attn.o_proj",
    "mlp_norm": "post_attention_layernorm",
    "gate": "mlp.gate_proj",
    "up": "mlp.up_proj",
    "down": "mlp.down_proj",
}


def checkpoint_name(parameter: str) -> str:
    """Translate `layers.3.q.bias` to `model.layers.3.self_attn.q_proj.bias`."""
    match parameter.split("."):
        case ["layers", index, module, kind]:
            return f"model.layers.{index}.{LAYER_NAMES[module]}.{kind}"
        case [module, kind]:
            return f"{TOP_LEVEL_NAMES[module]}.{kind}"
        case _:
            raise KeyError(parameter)


DREAM = Architecture("dream", ("dream", "Dream"), parse_config, checkpoint_name, Transformer)
