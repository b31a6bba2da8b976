"""Logits equal those of `transformers`' own models with the same weights under full attention."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM

from tests.support.checkpoints import DREAM_CONFIG, LLADA_CONFIG
from tests.unit.workers.models.conftest import WriteCheckpoint
from workers.models.dream import DREAM
from workers.models.layers import full_attention
from workers.models.llada import LAYER_NAMES, LLADA
from workers.models.loader import load_model

QWEN_NAMES = {
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


def to_llama(name: str) -> str:
    """LLaDA's checkpoint names in transformers' words."""
    top = {"wte": "model.embed_tokens", "ln_f": "model.norm", "ff_out": "lm_head"}
    parts = name.removeprefix("model.transformer.").split(".")
    if parts[0] != "blocks":
        return f"{top[parts[0]]}.{parts[1]}"
    ours = {theirs: our for our, theirs in LAYER_NAMES.items()}[parts[2]]
    return f"model.layers.{parts[1]}.{QWEN_NAMES[ours]}.{parts[3]}"


def oracle_logits(oracle: torch.nn.Module, token_ids: torch.Tensor) -> torch.Tensor:
    """The causal oracle, made bidirectional by a 4-D mask that hides nothing."""
    length = token_ids.shape[1]
    everything = torch.zeros(token_ids.shape[0], 1, length, length)
    with torch.no_grad():
        return oracle.eval()(input_ids=token_ids, attention_mask=everything, use_cache=False).logits


def ours(directory: Path, token_ids: torch.Tensor) -> torch.Tensor:
    loaded = load_model(directory, device=torch.device("cpu"), dtype=torch.float32)
    return loaded.model(token_ids, full_attention)  # type: ignore[operator]


@pytest.mark.parametrize("num_kv_heads", [6, 3])
def test_llada_equals_llama_with_a_full_mask(write_checkpoint: WriteCheckpoint, num_kv_heads: int) -> None:
    raw = {**LLADA_CONFIG, "n_kv_heads": num_kv_heads}
    directory = write_checkpoint(LLADA, raw)
    oracle = LlamaForCausalLM(
        LlamaConfig(
            hidden_size=raw["d_model"],
            num_hidden_layers=raw["n_layers"],
            num_attention_heads=raw["n_heads"],
            num_key_value_heads=num_kv_heads,
            intermediate_size=raw["mlp_hidden_size"],
            vocab_size=raw["vocab_size"],
            rope_parameters={"rope_type": "default", "rope_theta": raw["rope_theta"]},
            rms_norm_eps=raw["rms_norm_eps"],
            attn_implementation="eager",
        )
    )
    weights = load_file(directory / "model.safetensors")
    oracle.load_state_dict({to_llama(name): tensor for name, tensor in weights.items()})
    token_ids = torch.randint(0, 97, (2, 41))
    assert_same(ours(directory, token_ids), oracle_logits(oracle, token_ids))


def test_dream_equals_qwen2_with_a_full_mask(write_checkpoint: WriteCheckpoint) -> None:
    raw = DREAM_CONFIG
    directory = write_checkpoint(DREAM, raw)
    dimensions: dict[str, Any] = {
        key: raw[key]
        for key in (
            "hidden_size",
            "num_hidden_layers",
            "num_attention_heads",
            "num_key_value_heads",
            "intermediate_size",
            "vocab_size",
            "rms_norm_eps",
        )
    }
    oracle = Qwen2ForCausalLM(
        Qwen2Config(
            **dimensions,
            rope_parameters={"rope_type": "default", "rope_theta": raw["rope_theta"]},
            attn_implementation="eager",
        )
    )
    oracle.load_state_dict(load_file(directory / "model.safetensors"))
    token_ids = torch.randint(0, 97, (2, 41))
    assert_same(ours(directory, token_ids), oracle_logits(oracle, token_ids))


def assert_same(logits: torch.Tensor, expected: torch.Tensor) -> None:
    assert expected.std() > 0.1, "the oracle must say something"
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-4)
