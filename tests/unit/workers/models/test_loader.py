"""Checkpoints that load, and the reasons that are given for those that don't."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.support.checkpoints import DREAM_CONFIG, LLADA_CONFIG
from tests.unit.workers.models.conftest import WriteCheckpoint
from workers.errors import UnsupportedModelError
from workers.models.dream import DREAM
from workers.models.layers import full_attention
from workers.models.llada import LLADA
from workers.models.loader import LoadedModel, load_model

CPU = torch.device("cpu")


def load(directory, dtype: torch.dtype = torch.float32) -> LoadedModel:
    return load_model(directory, device=CPU, dtype=dtype)


@pytest.mark.parametrize(("architecture", "config"), [(LLADA, LLADA_CONFIG), (DREAM, DREAM_CONFIG)])
def test_shards_give_the_same_model_as_one_file(write_checkpoint: WriteCheckpoint, architecture, config) -> None:
    token_ids = torch.randint(0, 97, (1, 12))
    whole = load(write_checkpoint(architecture, config)).model(token_ids, full_attention)
    (write_checkpoint(architecture, config) / "model.safetensors").unlink()
    sharded = load(write_checkpoint(architecture, config, shards=3)).model(token_ids, full_attention)
    assert torch.equal(whole, sharded)


@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("computed", [torch.float32, torch.bfloat16])
def test_stored_and_compute_dtype_are_independent(
    write_checkpoint: WriteCheckpoint, stored: torch.dtype, computed: torch.dtype
) -> None:
    loaded = load(write_checkpoint(LLADA, LLADA_CONFIG, dtype=stored), computed)
    assert {parameter.dtype for parameter in loaded.model.parameters()} == {computed}
    assert not any(parameter.requires_grad for parameter in loaded.model.parameters())


def test_dream_reads_one_row_to_the_left_within_its_trained_context(write_checkpoint: WriteCheckpoint) -> None:
    config = load(write_checkpoint(DREAM, DREAM_CONFIG)).config
    assert (config.prediction_shift, config.context_length, config.qkv_bias) == (1, 2048, True)


def test_fingerprint_distinguishes_weights_dtype_and_tokenizer(write_checkpoint: WriteCheckpoint) -> None:
    directory = write_checkpoint(LLADA, LLADA_CONFIG)
    seen = [load(directory).fingerprint, load(directory, torch.bfloat16).fingerprint]
    (directory / "tokenizer.json").write_text("{}")
    seen.append(load(directory).fingerprint)
    weights = load_file(directory / "model.safetensors")
    weights["model.transformer.ln_f.weight"][0] += 1
    save_file(weights, directory / "model.safetensors")
    seen.append(load(directory).fingerprint)
    assert len(set(seen)) == 4
    assert load(directory).fingerprint == seen[-1]


def test_depth_table_beside_the_weights_is_read(write_checkpoint: WriteCheckpoint) -> None:
    directory = write_checkpoint(LLADA, LLADA_CONFIG)
    assert load(directory).depth_table is None
    (directory / "depth_table.json").write_text(json.dumps({"table": {"0": 0, "50": 2}}))
    assert load(directory).depth_table == {0: 0, 50: 2}
    (directory / "depth_table.json").write_text("{}")
    with pytest.raises(UnsupportedModelError, match=r"depth_table\.json needs"):
        load(directory)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "llama"}, "model_type 'llama'; supported: llada, dream"),
        ({"d_model": 50}, "don't divide"),
        ({"n_layers": 4}, "in none of the weight files: model.transformer.blocks.3"),
        ({"n_layers": 2}, r"holds model\.transformer\.blocks\.2.* lacks"),
        ({"mlp_hidden_size": 64}, r"ff_.* has shape .* config\.json asks for"),
        ({"weight_tying": True}, "weight_tying=True; supported: False"),
        ({"rope": False}, "rope=False"),
    ],
)
def test_what_cannot_be_served_is_named(write_checkpoint: WriteCheckpoint, change: dict, message: str) -> None:
    directory = write_checkpoint(LLADA, LLADA_CONFIG)
    (directory / "config.json").write_text(json.dumps({**LLADA_CONFIG, **change}))
    with pytest.raises(UnsupportedModelError, match=message):
        load(directory)


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("config.json", None, r"config\.json is missing"),
        ("config.json", "{", "can't be read as JSON"),
        ("config.json", "[]", "holds no JSON object"),
        ("config.json", '{"model_type": "llada"}', "lacks d_model, n_layers"),
        ("model.safetensors", None, r"model\.safetensors is missing: weights are read from"),
        ("model.safetensors", "junk", "no readable safetensors file"),
    ],
)
def test_damaged_directories_are_refused(
    write_checkpoint: WriteCheckpoint, file: str, content: str | None, message: str
) -> None:
    directory = write_checkpoint(LLADA, LLADA_CONFIG)
    (directory / file).unlink()
    if content is not None:
        (directory / file).write_text(content)
    with pytest.raises(UnsupportedModelError, match=message):
        load(directory)
