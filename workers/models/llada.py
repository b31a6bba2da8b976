"""Reads LLaDA (Nie et al. 2025): LLaDA-8B, LLaDA-1.5 and the bundled factbook models."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from workers.errors import UnsupportedModelError
from workers.models.base import Architecture, ModelConfig
from workers.models.layers import Transformer

REQUIRED_KEYS = ("d_model", "n_layers", "n_heads", "vocab_size", "mask_token_id", "eos_token_id")
"""The keys without which a LLaDA config.json is incomplete."""

SUPPORTED_VALUES: Mapping[str, tuple[Any, ...]] = {
    "activation_type": ("silu", "swiglu"),
    "block_type": ("llama",),
    "layer_norm_type": ("rms",),
    "alibi": (False,),
    "rope": (True,),
    "include_bias": (False,),
    "weight_tying": (False,),
    "scale_logits": (False,),
    "input_emb_norm": (False,),
    "attention_layer_norm": (False,),
}
"""The config values that these layers implement; any other value would silently give wrong logits."""


def parse_config(raw: Mapping[str, Any]) -> ModelConfig:
    if missing := [key for key in REQUIRED_KEYS if key not in raw]:
        raise UnsupportedModelError(f"config.json lacks {', '.join(missing)}, which a LLaDA model needs")
    for key, supported in SUPPORTED_VALUES.items():
        if raw.get(key, supported[0]) not in supported:
            raise UnsupportedModelError(
                f"config.json has {key}={raw[key]!r}; supported: {', '.join(map(str, supported))}"
            )
    width = raw["d_model"]
    return ModelConfig(
        architecture="llada",
        num_layers=raw["n_layers"],
        hidden_size=width,
        num_heads=raw["n_heads"],
        num_kv_heads=raw.get("n_kv_heads") or raw["n_heads"],
        mlp_size=raw.get("mlp_hidden_size") or raw.get("mlp_ratio", 4) * width,
        vocab_size=raw.get("embedding_size") or raw["vocab_size"],
        context_length=raw.get("max_sequence_length", 4096),
        rope_theta=raw.get("rope_theta", 10_000.0),
        norm_eps=raw.get("rms_norm_eps", 1e-5),
        mask_token_id=raw["mask_token_id"],
        eos_token_id=raw["eos_token_id"],
        pad_token_id=raw["pad_token_id"] if raw.get("pad_token_id") is not None else raw["eos_token_id"],
        qkv_bias=bool(raw.get("include_qkv_bias", False)),
    )


STEM = "model.transformer"
TOP_LEVEL_NAMES = {"embedding": "wte", "norm": "ln_f", "head": "ff_out"}
LAYER_NAMES = {
    "attention_norm": "attn_norm",
    "q": "q_proj",
    "k": "k_proj",
    "v": "v_proj",
    "o": "attn_out",
    "mlp_norm": "ff_norm",
    "gate": "ff_proj",
    "up": "up_proj",
    "down": "ff_out",
}


def checkpoint_name(parameter: str) -> str:
    """Translate `layers.3.q.weight` to `model.transformer.blocks.3.q_proj.weight`."""
    match parameter.split("."):
        case ["layers", index, module, kind]:
            return f"{STEM}.blocks.{index}.{LAYER_NAMES[module]}.{kind}"
        case [module, kind]:
            return f"{STEM}.{TOP_LEVEL_NAMES[module]}.{kind}"
        case _:
            raise KeyError(parameter)


LLADA = Architecture("llada", ("llada",), parse_config, checkpoint_name, Transformer)
