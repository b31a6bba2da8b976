"""A small model directory in LLaDA's layout: random weights, a real tokenizer and chat template."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import save_file

from workers.models.factbook.tokenizer import build_tokenizer, save_tokenizer
from workers.models.layers import Transformer
from workers.models.llada import LLADA, parse_config

CONTEXT_LENGTH = 1024


def write_random_checkpoint(directory: Path, *, canvas: int = 16) -> Path:
    """Write one, the same at every call, and return `directory`."""
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
