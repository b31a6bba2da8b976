"""Small model directories with random weights, for tests that load or serve one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from workers.models.base import Architecture
from workers.models.factbook.tokenizer import build_tokenizer, save_tokenizer
from workers.models.layers import Transformer
from workers.models.llada import LLADA, parse_config

CONTEXT_LENGTH = 1024

LLADA_CONFIG: dict[str, Any] = {
    "model_type": "llada",
    "d_model": 48,
    "n_layers": 3,
    "n_heads": 6,
    "n_kv_heads": 6,
    "mlp_hidden_size": 80,
    "vocab_size": 97,
    "embedding_size": 97,
    "rope_theta": 500000.0,
    "rms_norm_eps": 1e-5,
    "max_sequence_length": 256,
    "mask_token_id": 96,
    "eos_token_id": 95,
    "pad_token_id": 95,
}

DREAM_CONFIG: dict[str, Any] = {
    "model_type": "Dream",
    "hidden_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "intermediate_size": 80,
    "vocab_size": 97,
    "rope_theta": 1000000.0,
    "rms_norm_eps": 1e-6,
    "max_position_embeddings": 131072,
    "mask_token_id": 96,
    "eos_token_id": 95,
    "pad_token_id": 95,
}


def write_checkpoint(
    directory: Path,
    architecture: Architecture,
    config: dict[str, Any],
    *,
    shards: int = 1,
    dtype: torch.dtype = torch.float32,
) -> Path:
    """Write `config` and random weights in the layout of `architecture`, without a tokenizer; return `directory`."""
    torch.manual_seed(7)
    model = architecture.build(architecture.parse_config(config))
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    weights = {
        architecture.checkpoint_name(name): parameter.detach().to(dtype) for name, parameter in model.named_parameters()
    }
    (directory / "config.json").write_text(json.dumps(config))
    if shards == 1:
        save_file(weights, directory / "model.safetensors")
        return directory
    weight_map = {name: f"model-{i % shards + 1:05}-of-{shards:05}.safetensors" for i, name in enumerate(weights)}
    for file in set(weight_map.values()):
        save_file({name: weights[name] for name in weights if weight_map[name] == file}, directory / file)
    (directory / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    return directory


def write_random_checkpoint(directory: Path, *, canvas: int = 16) -> Path:
    """Write a small LLaDA with tokenizer and chat template, the same at every call, and return `directory`."""
    save_tokenizer(directory)
    tokenizer = build_tokenizer()
    raw = {
        "model_type": "llada",
        "d_model": 32,
        "n_layers": 3,
        "n_heads": 2,
        "mlp_hidden_size": 64,
        "vocab_size": tokenizer.get_vocab_size(),
        "max_sequence_length": CONTEXT_LENGTH,
        "mask_token_id": tokenizer.token_to_id("<|mask|>"),
        "eos_token_id": tokenizer.token_to_id("<|endoftext|>"),
    }
    (directory / "config.json").write_text(json.dumps(raw))
    (directory / "generation_config.json").write_text(json.dumps({"max_new_tokens": canvas}))
    (directory / "depth_table.json").write_text(json.dumps({"table": {"0": 2}}))
    torch.manual_seed(0)
    model = Transformer(parse_config(raw))
    weights = {LLADA.checkpoint_name(name): tensor.detach() for name, tensor in model.named_parameters()}
    save_file(weights, directory / "model.safetensors")
    return directory
