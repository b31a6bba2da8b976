"""Loading takes the model's own memory, and little more: tried under a limit on data."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.support.checkpoints import LLADA_CONFIG
from tests.unit.workers.models.conftest import WriteCheckpoint
from workers.models.llada import LLADA

LOAD = """
import resource
import sys
from pathlib import Path

import torch
from workers.models.loader import load_model

torch.set_num_threads(1)
directory, room = Path(sys.argv[1]), int(sys.argv[2])
[used_kib] = [int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmData")]
resource.setrlimit(resource.RLIMIT_DATA, (used_kib * 1024 + room,) * 2)
load_model(directory, device=torch.device("cpu"), dtype=torch.float32)
"""
VOCAB, WIDTH, SHARDS = 4096, 768, 8
CONFIG = {
    **LLADA_CONFIG,
    "d_model": WIDTH,
    "n_layers": 5,
    "mlp_hidden_size": 2048,
    "vocab_size": VOCAB,
    "embedding_size": VOCAB,
}
SLACK_BYTES = 64 << 20
"""Threads that hash the files, and the allocator's own."""


def load_within(directory: Path, room_bytes: int) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", LOAD, str(directory), str(room_bytes)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.mark.skipif(sys.platform != "linux", reason="limits on data are Linux's")
@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16])
def test_loading_takes_the_model_and_one_file(write_checkpoint: WriteCheckpoint, stored: torch.dtype) -> None:
    directory = write_checkpoint(LLADA, CONFIG, shards=SHARDS, dtype=stored)
    files = [file.stat().st_size for file in directory.glob("*.safetensors")]
    model_bytes = sum(files) * 4 // stored.itemsize
    room = max(files) + VOCAB * WIDTH * 4 + SLACK_BYTES
    assert room < model_bytes  # else a second copy would fit too
    loaded = load_within(directory, model_bytes + room)
    assert loaded.returncode == 0, loaded.stderr
    failed = load_within(directory, model_bytes - SLACK_BYTES)  # the limit does limit
    assert failed.returncode != 0
    assert "memory" in failed.stderr.lower()
