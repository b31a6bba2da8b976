"""Checkpoint directories hold the model, whose dimensions are set here, in LLaDA's layout."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer

from workers.models.factbook.samples import CANVAS
from workers.models.factbook.tokenizer import EOS, MASK, save_tokenizer, special_id
from workers.models.layers import Transformer
from workers.models.llada import LLADA

_VOCAB_MULTIPLE = 64


def raw_config(tokenizer: Tokenizer) -> dict[str, Any]:
    """Return the content of config.json, with LLaDA's keys."""
    vocab_size = tokenizer.get_vocab_size()
    eos, mask = special_id(tokenizer, EOS), special_id(tokenizer, MASK)
    return {
        "architectures": ["LLaDAModelLM"],
        "model_type": "llada",
        "activation_type": "silu",
        "block_type": "llama",
        "layer_norm_type": "rms",
        "rope": True,
        "include_bias": False,
        "weight_tying": False,
        "d_model": 256,
        "n_layers": 12,
        "n_heads": 4,
        "n_kv_heads": 4,
        "mlp_hidden_size": 608,
        "vocab_size": vocab_size,
        "embedding_size": -(-vocab_size // _VOCAB_MULTIPLE) * _VOCAB_MULTIPLE,
        "max_sequence_length": 2048,
        "rope_theta": 10000.0,
        "rms_norm_eps": 1e-5,
        "mask_token_id": mask,
        "eos_token_id": eos,
        "pad_token_id": eos,
        "torch_dtype": "bfloat16",
    }


def new_model(tokenizer: Tokenizer) -> Transformer:
    """Build a model with random weights of deviation 0.5 / sqrt(fan in), smaller in matrices that feed the residual.

    The head starts as the embedding, scaled down. What a layer copies from an input row then already means the same
    token at the output, so that the model learns to copy once and not for each name.
    """
    model = Transformer(LLADA.parse_config(raw_config(tokenizer)))
    depth = (2 * model.config.num_layers) ** -0.5
    for name, parameter in model.layers.named_parameters():
        if parameter.ndim == 2:
            std = 0.5 * parameter.shape[1] ** -0.5
            torch.nn.init.normal_(parameter, std=std * depth if ".o." in name or ".down." in name else std)
    torch.nn.init.normal_(model.embedding.weight, std=0.5)
    with torch.no_grad():
        model.head.weight.copy_(model.embedding.weight * 0.04)
    return model


def save_checkpoint(model: Transformer, tokenizer: Tokenizer, directory: Path) -> None:
    """Write config.json, generation_config.json, the tokenizer's files and model.safetensors in bfloat16."""
    save_tokenizer(directory)
    (directory / "config.json").write_text(json.dumps(raw_config(tokenizer), indent=2) + "\n")
    (directory / "generation_config.json").write_text(json.dumps({"max_new_tokens": CANVAS}, indent=2) + "\n")
    weights = {
        LLADA.checkpoint_name(name): parameter.detach().to("cpu", torch.bfloat16).contiguous()
        for name, parameter in model.named_parameters()
    }
    save_file(weights, str(directory / "model.safetensors"), metadata={"format": "pt"})


def load_checkpoint(directory: Path, device: str | torch.device, dtype: torch.dtype) -> tuple[Transformer, Tokenizer]:
    """Load the model and the tokenizer that `save_checkpoint` wrote."""
    tokenizer = Tokenizer.from_file(str(directory / "tokenizer.json"))
    model = Transformer(LLADA.parse_config(json.loads((directory / "config.json").read_text())))
    weights = load_file(str(directory / "model.safetensors"))
    model.load_state_dict({name: weights[LLADA.checkpoint_name(name)] for name, _ in model.named_parameters()})
    return model.to(device, dtype), tokenizer
