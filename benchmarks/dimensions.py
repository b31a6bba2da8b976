"""Models of published dimensions with random weights are as fast as the real ones, but answer nonsense."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

import torch
import typer

from benchmarks.drive import Platform
from workers.models.base import ModelConfig
from workers.models.dream import DECODING
from workers.models.layers import RMSNorm, Transformer
from workers.models.loader import LoadedModel, fastest_form

WEIGHT_SCALE = 0.02

LLADA_8B = ModelConfig(
    architecture="llada",
    num_layers=32,
    hidden_size=4096,
    num_heads=32,
    num_kv_heads=32,
    mlp_size=12288,
    vocab_size=126464,
    context_length=4096,
    rope_theta=500_000.0,
    norm_eps=1e-5,
    mask_token_id=126336,
    eos_token_id=126336,
    pad_token_id=126081,
)
"""EOS is the mask token, which is never committed, so that random answers don't end early."""
DREAM_7B = ModelConfig(
    architecture="dream",
    num_layers=28,
    hidden_size=3584,
    num_heads=28,
    num_kv_heads=4,
    mlp_size=18944,
    vocab_size=152064,
    context_length=4096,
    rope_theta=1_000_000.0,
    norm_eps=1e-6,
    mask_token_id=151666,
    eos_token_id=151666,
    pad_token_id=151643,
    qkv_bias=True,
    prediction_shift=1,
    decoding=DECODING,
)
DIMENSIONS: Mapping[str, ModelConfig] = MappingProxyType({"llada-8b": LLADA_8B, "dream-7b": DREAM_7B})


def check_device(name: str, device: str) -> None:
    """Raise typer.BadParameter for dimensions that only a GPU has room for."""
    if name in DIMENSIONS and torch.device(device).type != "cuda":
        raise typer.BadParameter(f"{name} needs a GPU; choose --device cuda, or a bundled model", param_hint="--model")


def load_or_randomize(name: str, platform: Platform) -> LoadedModel:
    """Load a bundled model, or make one of published dimensions with random weights."""
    return make_random_model(name, platform) if name in DIMENSIONS else platform.load(name)


def make_random_model(name: str, platform: Platform) -> LoadedModel:
    """Make a model on the device with weights ~ N(0, 0.02)."""
    config = DIMENSIONS[name]
    with torch.device("meta"):
        model = Transformer(config)
    model = model.to(platform.dtype).to_empty(device=platform.device).requires_grad_(requires_grad=False).eval()
    torch.manual_seed(0)
    for module in model.modules():
        for parameter in module.parameters(recurse=False):
            parameter.fill_(1) if isinstance(module, RMSNorm) else parameter.normal_(0, WEIGHT_SCALE)
    return LoadedModel(
        name=name,
        config=config,
        model=fastest_form(model, platform.device),
        fingerprint=f"random {name}",
        depth_table=None,
    )


def weight_bytes(config: ModelConfig, itemsize: int) -> int:
    """Return the bytes that each forward pass reads: all projections and the head, and few rows of the embedding."""
    return (config.num_layers * config.layer_weights + config.hidden_size * config.vocab_size) * itemsize
