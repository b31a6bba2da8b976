"""Writes model directories in LLaDA's layout, of any dimensions and with random weights, that a server can load."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from benchmarks.dimensions import WEIGHT_SCALE
from workers.models.base import ModelConfig
from workers.models.bundle import model_directory
from workers.models.layers import Transformer
from workers.models.llada import LLADA
from workers.models.loader import INDEX_FILE

TOKENIZER_OF = "factbook"


def write_checkpoint(directory: Path, config: ModelConfig, device: torch.device) -> None:
    """Write bf16 weights ~ N(0, 0.02), drawn on `device`, with one layer, embedding or head in memory at a time.

    Tokenizer and chat template are the bundled model's, with more words to fill the vocabulary. `config` must be of the
    architecture llada, with a vocabulary that is at least as large as the bundled model's.
    """
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "config.json").write_text(json.dumps(raw_config(config)))
    _write_tokenizer(directory, config.vocab_size)
    with torch.device("meta"):
        model = Transformer(config)
    generator = torch.Generator(device).manual_seed(0)
    weight_map: dict[str, str] = {}
    for module_name, module in _shards(model):
        file = f"{module_name}.safetensors"
        weights = {
            LLADA.checkpoint_name(f"{module_name}.{name}"): _draw(parameter, generator)
            for name, parameter in module.named_parameters()
        }
        save_file(weights, directory / file)
        weight_map |= dict.fromkeys(weights, file)
    (directory / INDEX_FILE).write_text(json.dumps({"weight_map": weight_map}))


def raw_config(config: ModelConfig) -> dict[str, Any]:
    """Return the content of config.json, with LLaDA's keys."""
    return {
        "model_type": "llada",
        "d_model": config.hidden_size,
        "n_layers": config.num_layers,
        "n_heads": config.num_heads,
        "n_kv_heads": config.num_kv_heads,
        "mlp_hidden_size": config.mlp_size,
        "vocab_size": config.vocab_size,
        "max_sequence_length": config.context_length,
        "rope_theta": config.rope_theta,
        "rms_norm_eps": config.norm_eps,
        "mask_token_id": config.mask_token_id,
        "eos_token_id": config.eos_token_id,
        "pad_token_id": config.pad_token_id,
    }


def _shards(model: Transformer) -> list[tuple[str, nn.Module]]:
    layers = [(f"layers.{index}", layer) for index, layer in enumerate(model.layers)]
    return [("embedding", model.embedding), *layers, ("norm", model.norm), ("head", model.head)]


def _draw(parameter: Tensor, generator: torch.Generator) -> Tensor:
    """Return ones for a norm's vector, and random values for a matrix."""
    if parameter.ndim == 1:
        return torch.ones(parameter.shape, dtype=torch.bfloat16)
    values = torch.empty(parameter.shape, dtype=torch.bfloat16, device=generator.device)
    return values.normal_(0, WEIGHT_SCALE, generator=generator).cpu()


def _write_tokenizer(directory: Path, vocab_size: int) -> None:
    """Write a tokenizer in which every id is a word, so that random tokens become text as real ones do."""
    source = model_directory(TOKENIZER_OF)
    (directory / "tokenizer_config.json").write_bytes((source / "tokenizer_config.json").read_bytes())
    content = json.loads((source / "tokenizer.json").read_text())
    vocabulary = content["model"]["vocab"]
    if vocab_size < len(vocabulary):
        raise ValueError(f"the tokenizer has {len(vocabulary)} tokens, but the model has room for {vocab_size}")
    vocabulary |= {f" word{number}": number for number in range(len(vocabulary), vocab_size)}
    (directory / "tokenizer.json").write_text(json.dumps(content))
