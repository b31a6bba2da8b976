"""The server loads a model directory with random weights."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from benchmarks.checkpoints import raw_config, write_checkpoint
from benchmarks.dimensions import LLADA_8B
from cluster.generation.tokenization import Tokenizer
from workers.models.llada import parse_config
from workers.models.loader import load_model, shard_files

CPU = torch.device("cpu")
SMALL = replace(
    LLADA_8B,
    num_layers=2,
    hidden_size=32,
    num_heads=2,
    num_kv_heads=2,
    mlp_size=48,
    vocab_size=2000,
    mask_token_id=1999,
    eos_token_id=1999,
    pad_token_id=1998,
)


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("random")
    write_checkpoint(directory, SMALL, CPU)
    return directory


def test_the_loader_reads_what_was_written(directory: Path) -> None:
    loaded = load_model(directory, device=CPU, dtype=torch.bfloat16)
    assert loaded.config == SMALL
    deviations = [parameter.float().std().item() for parameter in loaded.model.parameters() if parameter.ndim == 2]
    assert deviations == pytest.approx([0.02] * len(deviations), rel=0.2)
    assert all((parameter == 1).all() for parameter in loaded.model.parameters() if parameter.ndim == 1)


def test_no_file_holds_more_than_a_layer(directory: Path) -> None:
    assert sorted(path.name for path in shard_files(directory)) == sorted(
        f"{name}.safetensors" for name in ("embedding", "layers.0", "layers.1", "norm", "head")
    )


def test_published_dimensions_are_read_back_from_the_file() -> None:
    assert parse_config(json.loads(json.dumps(raw_config(LLADA_8B)))) == LLADA_8B


def test_every_token_of_the_vocabulary_is_text(directory: Path) -> None:
    tokenization = Tokenizer(directory)
    assert tokenization.vocab_size == tokenization.hole.token_id == SMALL.vocab_size
    assert all(tokenization.pieces([100, 1911, 1999]))


def test_a_vocabulary_without_room_for_the_tokenizer_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="has 1911 tokens"):
        write_checkpoint(tmp_path, replace(SMALL, vocab_size=1000), CPU)
