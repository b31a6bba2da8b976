"""Loads a model directory in Hugging Face's layout, with one tensor in memory at a time."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from workers.errors import UnsupportedModelError
from workers.models.base import Architecture, DiffusionLM, ModelConfig, TorchModel
from workers.models.dream import DREAM
from workers.models.llada import LLADA

ARCHITECTURES: tuple[Architecture, ...] = (LLADA, DREAM)
"""All families of checkpoints that can be served. To add one, write a file like `llada.py` and an entry here."""

SINGLE_FILE, INDEX_FILE = "model.safetensors", "model.safetensors.index.json"
FINGERPRINTED_FILES = ("config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja")
"""The files that, together with the weights, determine the keys and values of a text."""


@dataclass(frozen=True)
class LoadedModel:
    """Holds a model on its device, in eval mode, without gradients."""

    name: str
    config: ModelConfig
    model: DiffusionLM
    fingerprint: str
    """Hex digest over weights, configuration, tokenizer and compute dtype."""
    depth_table: Mapping[int, int] | None
    """Maps a prefix ratio in percent (lower edge) to a safe depth; None if the directory has no depth_table.json."""


def load_model(directory: Path, *, device: torch.device, dtype: torch.dtype) -> LoadedModel:
    """Load the checkpoint in `directory` (config.json, one or several safetensors files).

    Tensors are read, converted and copied one at a time: beyond the model itself, memory holds one tensor.
    Raises UnsupportedModelError, with the file and the reason, if the checkpoint can't be served.
    """
    raw = read_json(directory / "config.json")
    architecture = architecture_of(raw, directory)
    config = architecture.parse_config(raw)
    check_dimensions(config, directory)
    shards = shard_files(directory)
    with torch.device("meta"):
        model = architecture.build(config)
    fill_parameters(model, shards, architecture, device, dtype)
    model.requires_grad_(requires_grad=False).eval()
    return LoadedModel(
        name=directory.resolve().name,
        config=config,
        model=fastest_form(model, device),
        fingerprint=fingerprint(directory, shards, dtype),
        depth_table=read_depth_table(directory),
    )


def fastest_form(model: TorchModel, device: torch.device) -> DiffusionLM:
    """Return the same model in its fastest form for the device."""
    return model.fused() if device.type == "cuda" else model


def read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text())
    except FileNotFoundError as error:
        raise UnsupportedModelError(f"{path} is missing: a model directory needs it") from error
    except (OSError, ValueError) as error:
        raise UnsupportedModelError(f"{path} can't be read as JSON: {error}") from error
    if not isinstance(content, dict):
        raise UnsupportedModelError(f"{path} holds no JSON object")
    return content


def architecture_of(raw: Mapping[str, Any], directory: Path) -> Architecture:
    for architecture in ARCHITECTURES:
        if raw.get("model_type") in architecture.model_types:
            return architecture
    known = ", ".join(kind for architecture in ARCHITECTURES for kind in architecture.model_types)
    raise UnsupportedModelError(
        f"{directory / 'config.json'} has model_type {raw.get('model_type')!r}; supported: {known}"
    )


def check_dimensions(config: ModelConfig, directory: Path) -> None:
    """Raise UnsupportedModelError for dimensions that don't divide by the heads, before a reshape in a layer fails."""
    if config.hidden_size % config.num_heads or config.num_heads % config.num_kv_heads or config.head_dim % 2:
        raise UnsupportedModelError(
            f"{directory / 'config.json'}: hidden size {config.hidden_size}, {config.num_heads} heads and "
            f"{config.num_kv_heads} KV heads don't divide into even head dimensions"
        )


def shard_files(directory: Path) -> list[Path]:
    """Return the safetensors files of the checkpoint, in a fixed order."""
    if (directory / INDEX_FILE).exists():
        weight_map = read_json(directory / INDEX_FILE).get("weight_map", {})
        shards = [directory / name for name in sorted(set(weight_map.values()))]
    else:
        shards = [directory / SINGLE_FILE]
    for shard in shards:
        if not shard.exists():
            raise UnsupportedModelError(
                f"{shard} is missing: weights are read from {SINGLE_FILE}, or from the files that {INDEX_FILE} names"
            )
    return shards


@contextmanager
def open_shard(shard: Path) -> Iterator[Any]:
    """Open a safetensors file; a torn or foreign file becomes an UnsupportedModelError."""
    try:
        with safe_open(shard, framework="pt") as tensors:
            yield tensors
    except SafetensorError as error:
        raise UnsupportedModelError(f"{shard} is no readable safetensors file: {error}") from error


def fill_parameters(
    model: nn.Module, shards: Sequence[Path], architecture: Architecture, device: torch.device, dtype: torch.dtype
) -> None:
    """Move every tensor of the shards into `model`, which is on the meta device."""
    wanted = {architecture.checkpoint_name(name): name for name, _ in model.named_parameters()}
    missing = set(wanted)
    for shard in shards:
        with open_shard(shard) as tensors:
            for name in tensors.keys():  # noqa: SIM118 (a safetensors handle is no mapping)
                if name not in wanted:
                    raise UnsupportedModelError(f"{shard} holds {name}, which architecture {architecture.name} lacks")
                set_parameter(model, wanted[name], tensors.get_tensor(name), name, device, dtype)
                missing.discard(name)
    if missing:
        some = ", ".join(sorted(missing)[:3])
        raise UnsupportedModelError(f"{len(missing)} tensors are in none of the weight files: {some} ...")


def set_parameter(
    model: nn.Module, parameter: str, tensor: Tensor, name: str, device: torch.device, dtype: torch.dtype
) -> None:
    """Move one tensor to the device as `parameter`, whose shape it must have."""
    path, _, kind = parameter.rpartition(".")
    module = model.get_submodule(path)
    expected = module.get_parameter(kind).shape
    if tensor.shape != expected:
        raise UnsupportedModelError(f"{name} has shape {list(tensor.shape)}; config.json asks for {list(expected)}")
    if not tensor.is_floating_point():
        raise UnsupportedModelError(f"{name} is {tensor.dtype}; supported: bf16, fp16 and fp32 weights")
    module.register_parameter(kind, nn.Parameter(tensor.to(device, dtype), requires_grad=False))


def fingerprint(directory: Path, shards: Sequence[Path], dtype: torch.dtype) -> str:
    """Return a digest that differs whenever the same text would give different keys and values."""
    files = [*shards, *(path for name in FINGERPRINTED_FILES if (path := directory / name).exists())]
    with ThreadPoolExecutor() as pool:
        digests = list(pool.map(file_digest, files))
    whole = hashlib.blake2b(str(dtype).encode(), digest_size=16)
    for path, digest in zip(files, digests, strict=True):
        whole.update(path.name.encode() + b"\0" + digest)
    return whole.hexdigest()


def file_digest(path: Path) -> bytes:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "blake2b").digest()


def read_depth_table(directory: Path) -> Mapping[int, int] | None:
    path = directory / "depth_table.json"
    if not path.exists():
        return None
    try:
        return {int(ratio): int(depth) for ratio, depth in read_json(path)["table"].items()}
    except (KeyError, AttributeError, ValueError) as error:
        raise UnsupportedModelError(f'{path} needs {{"table": {{ratio in percent: depth}}}}: {error}') from error
