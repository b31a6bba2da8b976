"""Tiny random checkpoints in the two layouts, and `transformers` models with the same weights."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from workers.models.base import Architecture

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

WriteCheckpoint = Callable[..., Path]


@pytest.fixture
def write_checkpoint(tmp_path: Path) -> WriteCheckpoint:
    def write(
        architecture: Architecture, config: dict[str, Any], *, shards: int = 1, dtype: torch.dtype = torch.float32
    ) -> Path:
        torch.manual_seed(7)
        model = architecture.build(architecture.parse_config(config))
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, std=0.3)
        weights = {
            architecture.checkpoint_name(name): parameter.detach().to(dtype)
            for name, parameter in model.named_parameters()
        }
        (tmp_path / "config.json").write_text(json.dumps(config))
        if shards == 1:
            save_file(weights, tmp_path / "model.safetensors")
            return tmp_path
        weight_map = {name: f"model-{i % shards + 1:05}-of-{shards:05}.safetensors" for i, name in enumerate(weights)}
        for file in set(weight_map.values()):
            save_file({name: weights[name] for name in weights if weight_map[name] == file}, tmp_path / file)
        (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
        return tmp_path

    return write
